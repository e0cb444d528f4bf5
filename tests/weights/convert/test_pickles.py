"""The pickle reader executes nothing, needs little memory, and reports errors in one line."""

import collections
import datetime
import enum
import fractions
import functools
import io
import pathlib
import pickle
import struct
import time
import tracemalloc

import numpy as np
import pytest

from easi3r_jax.core.errors import CheckpointError
from easi3r_jax.weights.convert import pickled, pickles
from easi3r_jax.weights.convert.torch_file import open_torch_file
from tests.torch_writer import Call, Global, Tensor, dumps, namespace, write

HEAD, STOP = pickle.PROTO + b"\x02", pickle.STOP
INTEGERS = pickle.MARK + b"".join(pickle.BININT2 + struct.pack("<H", n) for n in range(60_000)) + pickle.TUPLE
PUT0, GET0, PUT1, GET1 = (code + index for index in (b"\0", b"\1") for code in (pickle.BINPUT, pickle.BINGET))
NAMESPACE = pickle.GLOBAL + b"argparse\nNamespace\n"
SET = pickle.GLOBAL + b"builtins\nset\n"
STATE = pickle.EMPTY_DICT + pickle.MARK + INTEGERS[1:-1] + pickle.SETITEMS + PUT0


def load(raw, numel=100):
    def find_storage(key, dtype, count):
        if count > numel:
            raise CheckpointError("too short")
        return pickled.Storage(key, dtype, count)

    return pickles.load(io.BytesIO(raw), find_storage)


def test_plain_values_are_read_as_by_python():
    value = {"a": [1, -5, 2**40, -(2**40), 0.5, None, True, "ü", ("x", ()), {"b": []}], "c": {1: 2.0}}
    for protocol in (2, 3, 4, 5):
        assert load(pickle.dumps(value, protocol)) == value
    assert load(dumps(value)) == value == pickle.loads(dumps(value))  # noqa: S301
    assert load(pickle.dumps({"s": {1, 2}}, 2)) == {"s": {1, 2}}


def test_a_namespace_is_read_as_its_attributes():
    assert load(dumps(namespace(model="M()", lr=0.1))) == {"model": "M()", "lr": 0.1}


def test_a_tensor_is_a_checked_view():
    spec = load(dumps(Tensor("k", (2, 3), offset=5, stride=(10, 2), numel=100)))
    assert spec.storage == pickled.Storage("k", "float32", 100)
    assert (spec.offset, spec.shape, spec.stride, spec.extent) == (5, (2, 3), (10, 2), 15)


@pytest.mark.parametrize("stride", [(1, 2), (3, 1), (0, 1), (5, 2)])
def test_a_strided_tensor_is_read_as_numpy_would(tmp_path, stride):
    numbers = np.arange(20, dtype=np.float32)
    write(tmp_path / "x.pth", Tensor("0", (2, 3), offset=4, stride=stride, numel=20), [("0", numbers)])
    file = open_torch_file(tmp_path / "x.pth")
    expected = [[numbers[4 + r * stride[0] + c * stride[1]] for c in range(3)] for r in range(2)]
    np.testing.assert_array_equal(file.lazy(file.root).read(), np.array(expected))


@pytest.mark.parametrize(
    "tensor",
    [
        Tensor("0", (101,), numel=100),
        Tensor("0", (100,), offset=1, numel=100),
        Tensor("0", (2, 2), stride=(99, 1), numel=100),
        Tensor("0", (1000, 1000), stride=(0, 0), numel=100),  # would be larger than the file
        Tensor("0", (2**40, 2**40), stride=(0, 0), numel=100),
        Tensor("0", (-1,), stride=(1,), numel=100),
        Tensor("0", (2,), stride=(-1,), offset=1, numel=100),
        Tensor("0", (2,), offset=-1, numel=100),
        Tensor("0", (2,), stride=(1, 1), numel=100),
        Tensor("0", (1,) * 9, numel=100),
        Tensor("0", (2**70,), numel=100),
        Tensor("0", (2.0,), stride=(1,), numel=100),
        Tensor("0", (1,), numel=-1),
        Tensor("0", (1,), numel=2**80),
        Tensor("0", (1,), numel=101),  # more than the file has
    ],
)
def test_tensor_outside_its_storage_is_refused(tensor):
    with pytest.raises(CheckpointError):
        load(dumps(tensor))


@pytest.mark.parametrize(
    ("module", "name"),
    [
        *(("os", "system"), ("posix", "system"), ("os.path", "join"), ("subprocess", "Popen"), ("builtins", "eval")),
        *(("builtins", "exec"), ("__builtin__", "execfile"), ("builtins", "__import__"), ("torch", "load")),
        *(("torch.hub", "load"), ("runpy", "_run_code"), ("pickle", "loads"), ("marshal", "loads")),
        *(("os", "\x1b[31m"), ("os", "a\\b")),
    ],
)
def test_what_only_attacks_need_is_refused_by_name(module, name):
    for raw in (
        dumps(Global(module, name)),
        pickle.PROTO + b"\x04" + dumps(module)[2:-1] + dumps(name)[2:-1] + pickle.STACK_GLOBAL + STOP,
    ):
        with pytest.raises(CheckpointError, match=r"UNSAFE: it requests .*nothing in it was executed") as caught:
            load(raw)
        assert str(caught.value).isprintable()


class Colour(enum.Enum):
    RED = 1


class Ordered(collections.OrderedDict):
    pass


class Options:
    def __init__(self, **values: object):
        self.__dict__.update(values)


class Slots:
    __slots__ = ("a",)

    def __init__(self):
        self.a = 1


class Many(list):
    pass


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize(
    "value",
    [
        *(np.float64(0.5), np.int64(3), np.bool_(True), np.arange(3), np.zeros((2, 2), "f4"), np.dtype("f8")),
        *(pathlib.PurePosixPath("/a/b"), collections.defaultdict(list, a=[1]), collections.Counter("aab"), 1 + 2j),
        *(collections.deque([1, 2]), Colour.RED, Slots(), Many([1]), datetime.timedelta(1), datetime.date(2020, 1, 1)),
        *(frozenset({1, 2}), frozenset({(1, 2)}), {(1, 2): 3}, {1, (2, 3)}, {1 << 64: 3}, range(3), slice(1, 2)),
        *(functools.partial(max, 1), bytearray(b"x"), fractions.Fraction(1, 3), int, np.random.default_rng(0)),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, int) else str(value),
)
def test_what_trainers_leave_beside_the_weights_is_inert(value, protocol):
    found = load(pickle.dumps({"before": 1, "it": value, "after": [2]}, protocol))
    assert found["before"] == 1 and found["after"] == [2]
    assert type(found["it"]).__module__.partition(".")[0] in ("builtins", "easi3r_jax")  # never the class itself


def test_names_with_escapes_that_are_none_are_names():
    assert load(pickle.GLOBAL + b"\\q\n\\z\n" + STOP).name == "\\q.\\z"


def test_subclasses_of_dictionaries_and_options_keep_their_content():
    value = {"model": Ordered(a=1, b=2), "args": Options(model="M()", sizes=[1, 2]), "history": Ordered({(1, 2): 3})}
    for protocol in (2, 4):
        found = load(pickle.dumps(value, protocol))
        assert found == {"model": {"a": 1, "b": 2}, "args": {"model": "M()", "sizes": [1, 2]}, "history": {}}


@pytest.mark.parametrize("function", ["text", 1, None, [], {}, (), Tensor("0", (1,)), namespace(a=1)])
def test_only_known_functions_are_called(function):
    with pytest.raises(CheckpointError):
        load(dumps(Call(function, ("x",))))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "value",
    [
        Call(Global("torch", "FloatStorage"), (10**12,)),  # a class that cannot be called
        Call(Global("collections", "OrderedDict"), ([["a", 1]],)),
        Call(Global("argparse", "Namespace"), ("x",)),
        Call(Global("torch._utils", "_rebuild_parameter"), ("x",)),
        Call(Global("torch._utils", "_rebuild_tensor_v2"), ()),
        Call(Global("torch._utils", "_rebuild_tensor_v2"), (1, 2, 3, 4)),
        Call(Global("builtins", "set"), (3,)),
    ],
)
def test_unsupported_arguments_are_refused(value):
    with pytest.raises(CheckpointError) as caught:
        load(dumps(value))
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "code",
    [
        b"",
        STOP,
        pickle.NONE + pickle.NONE + STOP,
        pickle.NONE,
        pickle.TUPLE2 + STOP,
        pickle.APPEND + STOP,
        pickle.MARK + STOP,
        pickle.TUPLE + STOP,
        pickle.MARK + pickle.APPEND + STOP,
        pickle.EMPTY_LIST + pickle.BUILD + STOP,
        pickle.EMPTY_LIST + pickle.MARK + pickle.NONE + pickle.SETITEMS + STOP,
        pickle.EMPTY_DICT + pickle.MARK + pickle.NONE + pickle.SETITEMS + STOP,
        pickle.BINGET + b"\7" + STOP,
        pickle.LONG_BINGET + b"\xff\xff\xff\xff" + STOP,
        pickle.NONE + pickle.BINPERSID + STOP,
        pickle.BINUNICODE + b"\xff\xff\xff\x7f" + STOP,
        pickle.BINUNICODE8 + b"\xff" * 8 + STOP,
        pickle.BINBYTES8 + b"\xff" * 7 + b"\x7f" + STOP,
        pickle.LONG4 + b"\xff\xff\xff\x7f" + STOP,
        pickle.LONG4 + b"\xff\xff\xff\xff" + STOP,
        pickle.SHORT_BINUNICODE + b"\2\xff\xff" + STOP,
        pickle.INT + b"9" * 10_000 + b"\n" + STOP,
        pickle.STRING + b"'\\q'\n" + STOP,
        pickle.EXT1 + b"\1" + STOP,
        pickle.INST + b"os\nsystem\n" + STOP,
        pickle.MARK + pickle.OBJ + STOP,
        pickle.NEWOBJ_EX + STOP,
        pickle.PERSID + b"x\n" + STOP,
        pickle.BYTEARRAY8 + b"\xff" * 8 + STOP,
        b"\x00\x00",
    ],
)
def test_broken_pickles_are_refused(code):
    with pytest.raises(CheckpointError):
        load(HEAD + code)


@pytest.mark.parametrize(
    "code",
    [
        pickle.NONE + pickle.LONG_BINPUT + b"\xff\xff\xff\xff",  # a list as the memo would take 32 GB
        pickle.EMPTY_LIST * 200_000 + pickle.APPEND * 199_999,
        pickle.EMPTY_TUPLE + pickle.TUPLE1 * 400_000,
        pickle.EMPTY_LIST + PUT0 + (pickle.MARK + GET0 * 8 + pickle.APPENDS) * 100,  # lists that contain themselves
        (pickle.EMPTY_DICT + pickle.POP) * 400_000,
        pickle.MARK + pickle.EMPTY_DICT * 900_000 + pickle.TUPLE,
        # A few bytes that copy a large container many times.
        INTEGERS + PUT0 + SET + PUT1 + (GET1 + GET0 + pickle.TUPLE1 + pickle.REDUCE) * 999,
        STATE + (NAMESPACE + pickle.EMPTY_TUPLE + pickle.NEWOBJ + GET0 + pickle.BUILD) * 999,
        INTEGERS + PUT0 + NAMESPACE + PUT1 + (GET1 + GET0 + pickle.REDUCE) * 999,
        # Keys with the same hash: a dictionary of them takes quadratic time.
        pickle.EMPTY_DICT
        + pickle.MARK
        + b"".join(dumps((n + 1) * (2**61 - 1))[2:-1] + pickle.NONE for n in range(40_000))
        + pickle.SETITEMS,
    ],
    ids=["memo", "lists", "tuples", "cycle", "many", "wide", "sets", "namespaces", "arguments", "hashes"],
)
def test_bombs_cost_neither_memory_nor_time(code):
    tracemalloc.start()
    start = time.process_time()
    try:
        load(HEAD + code + STOP)
    except CheckpointError as error:
        assert len(str(error)) < 300  # noqa: PT017
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 120e6
    assert time.process_time() - start < 20


def test_duplicate_keys_are_recorded():
    pair = dumps("a")[2:-1] + pickle.NONE
    value = load(HEAD + pickle.EMPTY_DICT + pickle.MARK + pair * 2 + pickle.SETITEMS + STOP)
    assert value.duplicates == ["a"]


def test_damaged_pickles_of_trainers_are_refused_or_inert():
    """Bits flipped, bytes cut and repeated."""
    value = {
        "a": np.float64(1),
        "b": np.arange(3),
        "c": Ordered(x=1),
        "d": pathlib.PurePosixPath("/a"),
        "e": [{1: (2,)}],
    }
    whole = [pickle.dumps(value, protocol) for protocol in (2, 3, 4, 5)]
    rng = np.random.default_rng(0)
    said = []
    for _ in range(3000):
        raw = bytearray(whole[rng.integers(4)])
        for _ in range(rng.integers(1, 6)):
            place, length = rng.integers(len(raw)), rng.integers(1, 12)
            match rng.integers(3):
                case 0:
                    raw[place] ^= 1 << int(rng.integers(8))
                case 1:
                    del raw[place : min(place + length, len(raw) - 2)]
                case _:
                    raw[place:place] = raw[place : place + length]
        try:
            load(bytes(raw))
        except CheckpointError as error:
            said.append(str(error))
    assert 1500 < len(said) < 3000 and max(map(len, said)) < 400
