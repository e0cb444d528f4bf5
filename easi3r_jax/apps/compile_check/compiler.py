"""The TPU compiler, which runs on a CPU: what it says of a program's memory, operations, bytes and collectives."""

from __future__ import annotations

import dataclasses
import math
import os
import re
import time
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh

from easi3r_jax.apps import flops
from easi3r_jax.apps.compile_check.programs import Program, bytes_of
from easi3r_jax.core import sharding
from easi3r_jax.core.errors import ConfigError

#: Bytes of memory of a device, by the first part of a topology's name.
MEMORY = {"v4": 32e9, "v5e": 16e9, "v5p": 95e9, "v6e": 32e9}
_COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")
_COLLECTIVE = re.compile(rf" = (.*?) ({'|'.join(_COLLECTIVES)})(?:-start)?\(")
_ARRAY = re.compile(r"([a-z]+\d*[a-z\d]*)\[([\d,]*)\]")
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f64": 8, "s64": 8, "u64": 8}
#: The TPU's library looks for a TPU, and reports at length that there is none.
_QUIET = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler says of a program, for one device.

    Attributes:
      seconds: of the compilation.
      memory: bytes at the peak, arguments and results included.
      beside: bytes of other arrays that are in memory meanwhile.
      products: operations of products and convolutions, loops included, by kind (`flops.products`); not the compiler's.
      flops, moved: operations and bytes as the compiler counts them, a loop's body once.
      collectives: (count, bytes) of each kind of communication, a loop's body once.
    """

    seconds: float
    memory: float
    beside: float
    products: dict[str, float]
    flops: float
    moved: float
    collectives: dict[str, tuple[int, float]]


def topology(name: str) -> list[Any]:
    """The devices of a topology, e.g. v5e:4x4, which need not exist.

    Raises:
      ConfigError: the TPU's compiler is not installed, or does not know the topology.
    """
    for variable, value in _QUIET.items():
        os.environ.setdefault(variable, value)
    if name.split(":")[0] not in MEMORY:
        raise ConfigError(f"Unknown topology {name!r}: it begins with one of {', '.join(MEMORY)}, e.g. v5e:4x4.")
    try:
        return list(topologies.get_topology_desc(name, platform="tpu").devices)
    except jax.errors.JaxRuntimeError as error:
        raise ConfigError(f"Unknown topology {name!r}: {_one_line(error)}") from error
    except RuntimeError as error:
        raise ConfigError(
            "The TPU's compiler is missing: install it with `pip install 'easi3r_jax[tpu]'`, or give PYTHONPATH a "
            "folder that has libtpu in the version of jax[tpu]. It needs no TPU."
        ) from error


def mesh_of(devices: list[Any]) -> Mesh:
    """All devices of a topology along one axis, as `sharding.data_mesh`."""
    return jax.make_mesh(
        (len(devices),), (sharding.DATA,), axis_types=(jax.sharding.AxisType.Auto,), devices=np.array(devices).tolist()
    )


def compile_program(program: Program) -> Compiled | str:
    """Compiles a program for the devices of its arguments; one line that says why, where it does not compile."""
    began = time.perf_counter()
    traced = program.trace()
    try:
        compiled = traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        return _one_line(error)
    seconds = time.perf_counter() - began
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis() or {}
    return Compiled(
        seconds=seconds,
        # Not the sum of arguments, results and temporaries: temporaries are counted as if none shared its place.
        memory=float(memory.peak_memory_in_bytes + memory.generated_code_size_in_bytes),
        beside=float(bytes_of(program.beside)),
        products=flops.products(traced.jaxpr.jaxpr),
        flops=max(0.0, cost.get("flops", 0.0)),
        moved=cost.get("bytes accessed", 0.0),
        collectives=collectives_of(compiled.as_text()),
    )


def collectives_of(text: str) -> dict[str, tuple[int, float]]:
    """(count, bytes of the results) of each kind of communication in a compiled program's text."""
    found: dict[str, tuple[int, float]] = {}
    for shapes, kind in _COLLECTIVE.findall(text):
        sizes = [
            _BYTES.get(dtype, 4) * math.prod(int(n) for n in axes.split(",") if n)
            for dtype, axes in _ARRAY.findall(re.sub(r"\{[^}]*\}", "", shapes))
        ]
        count, total = found.get(kind, (0, 0.0))
        found[kind] = (count + 1, total + float(sum(sizes)))
    return found


def _one_line(error: Exception) -> str:
    """The beginning of an error of the compiler's."""
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else f"{text[:300]} ..."
