"""What trainers' objects become, what is called UNSAFE, and what hostile pickles may cost."""

import argparse
import collections
import dataclasses
import enum
import functools
import inspect
import io
import operator
import os
import pickle
import platform
import signal
import socket
import struct
import subprocess
import time
import tracemalloc
import types
import urllib.parse

import pytest

from easi3r_jax.core.errors import CheckpointError
from easi3r_jax.weights.convert import pickled, pickles
from tests.torch_writer import Call, Global, Tensor, dumps

HEAD, STOP = pickle.PROTO + b"\x04", pickle.STOP
GET0, PUT0 = pickle.BINGET + b"\0", pickle.BINPUT + b"\0"


def load(raw):
    return pickles.load(io.BytesIO(raw), pickled.Storage)


def text(value):
    raw = value.encode()
    return pickle.BINUNICODE + struct.pack("<I", len(raw)) + raw


class Trainer:
    """Names of a user's own, nested."""

    class Mode(enum.Enum):
        TRAIN = "train"

    @dataclasses.dataclass
    class Options:
        lr: float = 0.1
        model: str = "M()"

    def step(self):
        pass


class Ordered(collections.OrderedDict):
    pass


class Attributes(dict):
    """As many packages' dictionaries: its items are its attributes."""

    def __init__(self, **items):
        super().__init__(**items)
        self.__dict__ = self


class Slotted:
    __slots__ = ("__dict__", "model")


def recursive_tuple(size):
    inside = []
    whole = (inside, *range(size))
    inside.append(whole)
    return whole


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize(
    "value",
    [
        *(Trainer.Mode.TRAIN, Trainer.Mode, Trainer.Options(), [Trainer.Options(), Trainer.Options()]),
        *(Trainer().step, str.lower, dict.fromkeys, collections.OrderedDict.fromkeys, Trainer.step),
        *(recursive_tuple(1), recursive_tuple(2), recursive_tuple(9), 1 << 4000),
        *(types.SimpleNamespace(a=1), platform.uname(), operator.itemgetter(1), operator.attrgetter("lr")),
        *(operator.methodcaller("lower"), signal.SIGTERM, signal.Handlers.SIG_IGN, socket.AF_INET, list[int]),
        *(inspect.signature(load), inspect.Parameter.empty, os.path.join, os.path.basename, type(None)),
        *(os.stat("."), os.terminal_size((80, 24)), os.times(), os.uname()),
        *(subprocess.CompletedProcess(["git"], 0, b"main"), urllib.parse.urlparse("tcp://localhost:1")),
        *(functools.partial(int, base=2), {"nested": {"deep": Trainer.Options}}),
    ],
    ids=lambda value: str(value) if type(value) is int and value < 100 else type(value).__name__,  # alike everywhere
)
def test_objects_of_trainers_are_inert_and_not_unsafe(value, protocol):
    found = load(pickle.dumps({"before": 1, "it": value, "after": [2]}, protocol))
    assert found["before"] == 1 and found["after"] == [2]
    assert type(found["it"]).__module__.partition(".")[0] in ("builtins", "easi3r_jax")  # never the class itself


@pytest.mark.parametrize("module", ["code", "profile", "trace", "types", "platform", "operator", "commands", "site"])
@pytest.mark.parametrize("name", ["Trainer", "Trainer.Mode", "Config", "train_step"])
def test_a_users_package_may_have_the_name_of_a_standard_module(module, name):
    assert load(HEAD + text(module) + text(name) + pickle.STACK_GLOBAL + STOP).name == f"{module}.{name}"
    outer, _, inner = name.partition(".")
    assert load(dumps(Call(Global("builtins", "getattr"), (Global(module, outer), inner or "x"))))


@pytest.mark.parametrize(
    ("module", "name"),
    [
        *(("os", "system"), ("posix", "popen"), ("nt", "system"), ("subprocess", "check_output"), ("sys", "modules")),
        *(("shutil", "rmtree"), ("runpy", "run_path"), ("importlib", "import_module"), ("pty", "spawn")),
        *(("builtins", "eval"), ("builtins", "exec"), ("__builtin__", "compile"), ("builtins", "open")),
        *(("types", "FunctionType"), ("types", "CodeType"), ("marshal", "loads"), ("pickle", "loads")),
        *(("_pickle", "Unpickler"), ("dill", "loads"), ("code", "interact"), ("code", "InteractiveInterpreter")),
        *(("pdb", "run"), ("profile", "run"), ("cProfile", "runctx"), ("trace", "Trace.run"), ("timeit", "timeit")),
        *(("webbrowser", "open"), ("socket", "create_connection"), ("ctypes", "CDLL"), ("threading", "Thread")),
        *(("signal", "raise_signal"), ("urllib.request", "urlopen"), ("requests", "get"), ("requests.api", "post")),
        *(("pathlib", "Path.touch"), ("pathlib", "PosixPath.unlink"), ("io", "open"), ("tempfile", "mkstemp")),
        *(("asyncio", "create_subprocess_shell"), ("multiprocessing", "Process"), ("pip", "main")),
        *(("torch", "load"), ("torch.hub", "load"), ("numpy", "load"), ("joblib", "load")),
        *(("torch.serialization", "os.system"), ("logging", "os.popen"), ("a.b.c", "d.subprocess.Popen")),
        *(("builtins", "object.__subclasses__"), ("x", "f.__globals__"), ("builtins", "str.__class__.__base__")),
    ],
)
def test_what_runs_something_is_unsafe_however_it_is_named(module, name):
    ways = [HEAD + text(module) + text(name) + pickle.STACK_GLOBAL + STOP]
    outer, _, inner = name.rpartition(".")
    if inner and outer:
        ways.append(dumps(Call(Global("builtins", "getattr"), (Global(module, outer), inner))))
        ways.append(dumps(Call(Call(Global("builtins", "getattr"), (Global(module, outer), inner)), ("x",))))  # type: ignore[arg-type]
    for raw in ways:
        with pytest.raises(CheckpointError, match=r"UNSAFE: it requests .*nothing in it was executed"):
            load(raw)


@pytest.mark.parametrize("name", ["attrgetter", "itemgetter", "methodcaller"])
def test_a_getter_is_an_option_but_calling_it_is_unsafe(name):
    getter = Call(Global("operator", name), ("system",))
    assert load(dumps({"it": getter}))
    with pytest.raises(CheckpointError, match="UNSAFE"):
        load(dumps(Call(getter, (Global("x", "y"),))))  # type: ignore[arg-type]


@pytest.mark.parametrize("protocol", [2, 4])
def test_attributes_of_a_dictionary_are_no_items(protocol):
    model = Ordered(a=1, b=2)
    model.__dict__ |= {"_metadata": {"version": 1}, "b": 9}  # an attribute with the name of an item
    config = Attributes(model="M()", lr=1)
    found = load(pickle.dumps({"model": model, "args": config, "empty": Attributes()}, protocol))
    assert found == {"model": {"a": 1, "b": 2}, "args": {"model": "M()", "lr": 1}, "empty": {}}
    assert not found["model"].duplicates and not found["args"].duplicates


def test_attributes_in_slots_are_kept():
    value = Slotted()
    value.model = "M()"
    value.__dict__["other"] = 1
    assert load(pickle.dumps(value, 2)) == {"model": "M()", "other": 1}


def test_items_never_join_attributes():
    thing = pickle.GLOBAL + b"x\nY\n" + pickle.EMPTY_TUPLE + pickle.REDUCE
    state = pickle.EMPTY_DICT + text("a") + pickle.NEWTRUE + pickle.SETITEM
    item = text("a") + pickle.NEWFALSE + pickle.SETITEM
    several = pickle.MARK + item[:-1] + pickle.SETITEMS
    for items in (item, several):
        with pytest.raises(CheckpointError, match="items"):
            load(HEAD + thing + state + pickle.BUILD + items + STOP)
        assert load(HEAD + thing + items + state + pickle.BUILD + STOP) == {"a": False}
    twice = load(HEAD + thing + (state + pickle.BUILD) * 2 + STOP)
    assert twice.duplicates == ["a"]


def test_arguments_of_a_program_are_still_read():
    assert load(pickle.dumps(argparse.Namespace(model="M()", mode=Trainer.Mode.TRAIN), 2))["model"] == "M()"


LONG = 4_000_000
INTEGER = pickle.LONG4 + struct.pack("<i", LONG) + bytes(LONG - 1) + b"\xff"
NAME = text("s" * 2_000_000) + PUT0


@pytest.mark.parametrize(
    "code",
    [
        pickle.GLOBAL + b"os\n" + b"a." * 80_000 + b"a\n",
        pickle.GLOBAL + b"a." * 80_000 + b"a\nb\n",
        text("torch") + text("a." * 1_000_000 + "a") + pickle.STACK_GLOBAL,
        (pickle.GLOBAL + b"x\n" + b"a." * 100 + b"a\n") * 10_000,
        (pickle.GLOBAL + b"x\n" + b"a." * 30 + b"a\n") * 20_000,
        NAME + (GET0 * 2 + pickle.STACK_GLOBAL) * 200,
        text("s" * 100) + PUT0 + (GET0 * 2 + pickle.STACK_GLOBAL) * 50_000,
        INTEGER + PUT0 + pickle.EMPTY_SET + pickle.MARK + GET0 * 60_000 + pickle.ADDITEMS,
        INTEGER + PUT0 + pickle.EMPTY_DICT + pickle.MARK + GET0 * 60_000 + pickle.SETITEMS,
        (INTEGER + pickle.POP) * 3,
        dumps(Call(Global("builtins", "getattr"), (Global("x", "y"), "a" * 2_000_000)))[:-1],
        pickle.GLOBAL + b"x\ny\n" + (pickle.EMPTY_TUPLE + pickle.REDUCE) * 40_000,
        pickle.GLOBAL
        + b"builtins\ngetattr\n"
        + PUT0
        + pickle.POP
        + (GET0 + pickle.GLOBAL + b"x\ny\n" + text("a" * 90) + pickle.TUPLE2 + pickle.REDUCE) * 10_000,
    ],
    ids=[
        *("name", "module", "stack", "many", "short", "repeated", "classes", "set", "dict", "integers", "attribute"),
        *("calls", "attributes"),
    ],
)
def test_names_and_numbers_cost_neither_memory_nor_time(code):
    tracemalloc.start()
    start = time.process_time()
    try:
        load(HEAD + code + STOP)
    except CheckpointError as error:
        assert len(str(error)) < 300 and str(error).isprintable()  # noqa: PT017
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 120e6
    assert time.process_time() - start < 10


@pytest.mark.parametrize(
    "code",
    [
        pickle.STRING + b"S" * 5_000_000 + b"\n",
        pickle.STRING + b"'" + b"\xff" * 5_000_000 + b"\n",
        pickle.FLOAT + b"F" * 5_000_000 + b"\n",
        pickle.INT + b"x" * 5_000_000 + b"\n",
        pickle.LONG + b"x" * 5_000_000 + b"L\n",
        pickle.GET + b"x" * 5_000_000 + b"\n",
        pickle.PUT + b"\x1b[31m\n",
        pickle.UNICODE + b"\\ud8" * 5_000_000 + b"\n",
        pickle.GLOBAL + b"\xff" * 5_000_000 + b"\n",
        pickle.GLOBAL + b"x" * 5_000_000 + b"\ny\n",
        pickle.INST + b"x" * 5_000_000 + b"\ny\n",
        text("\x1b[31m" * 1000) + pickle.BINPERSID,
        pickle.BINGET + b"\x07",
        b"\x00",
        b"\xff",
    ],
)
def test_messages_are_short(code):
    with pytest.raises(CheckpointError) as caught:
        load(HEAD + code + STOP)
    assert len(str(caught.value)) < 200 and str(caught.value).isprintable()


@pytest.mark.parametrize("kind", ["ComplexFloatStorage", "QInt8Storage", "UntypedStorage", "FutureStorage"])
def test_tensors_of_other_kinds_are_inert(kind):
    storage = Global("torch.storage" if kind == "UntypedStorage" else "torch", kind)
    made = HEAD + pickle.GLOBAL + b"torch._utils\n_rebuild_tensor_v2\n" + pickle.MARK
    made += dumps(("storage", storage, "0", "cpu", 4))[2:-1] + pickle.BINPERSID
    made += b"".join(dumps(v)[2:-1] for v in (0, (4,), (1,), False, {})) + pickle.TUPLE + pickle.REDUCE + PUT0
    assert isinstance(load(made + STOP), pickled.Placeholder)
    parameter = pickle.GLOBAL + b"torch._utils\n_rebuild_parameter\n" + GET0 + pickle.NEWTRUE + pickle.EMPTY_DICT
    found = load(made + parameter + pickle.TUPLE3 + pickle.REDUCE + pickle.TUPLE2 + STOP)
    assert all(isinstance(value, pickled.Placeholder) and kind in value.name for value in found)


def test_a_tensor_with_attributes_of_its_own_is_a_tensor():
    """As torch writes it: a parameter with a mark on it."""
    tensor = Tensor("0", (2,))
    made = load(dumps(tensor))
    parameter = Call(Global("torch._utils", "_rebuild_parameter_with_state"), (tensor, True, {}, {"shard": True}))
    assert load(dumps(parameter)) == made
    whole = Call(
        Global("torch._tensor", "_rebuild_from_type_v2"),
        (Global("torch._utils", "_rebuild_parameter"), Global("torch", "Tensor"), (tensor, True, {}), {"mark": 1}),
    )
    assert load(dumps(whole)) == made
