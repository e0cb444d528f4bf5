"""Devices as one mesh.

On a CPU, `XLA_FLAGS=--xla_force_host_platform_device_count=2` makes two devices of one. Two that compute with one
thread each (`--xla_cpu_multi_thread_eigen=false`) train a small network faster than one with two threads, whose
operations are too small to share.
"""

from __future__ import annotations

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

#: The mesh's only axis: examples (training pairs, directed pairs, edges) are divided along it.
DATA = "data"


def data_mesh() -> Mesh:
    """All devices of all processes along one axis."""
    return jax.make_mesh((jax.device_count(),), (DATA,), axis_types=(jax.sharding.AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def divided(mesh: Mesh) -> NamedSharding:
    """The first axis is divided among the devices."""
    return NamedSharding(mesh, PartitionSpec(DATA))
