"""Devices as one mesh."""

from __future__ import annotations

import os

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

#: The mesh's only axis: examples (training pairs, directed pairs, edges) are divided along it.
DATA = "data"


def num_cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def split_cpu(batch_size: int, count: int | None = None) -> None:
    """Makes a device of each processor core this process may use, as far as their number divides the batch.

    A small network trains faster on two devices of one thread each than on one of two threads: its operations are too
    small to share. To be called before anything is computed; accelerators are not concerned, nor is anything done where
    XLA_FLAGS says how many devices a CPU is.

    Args:
      batch_size: examples of a step.
      count: how many devices instead.
    """
    if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    divisors = (n for n in range(1, num_cores() + 1) if batch_size % n == 0)
    jax.config.update("jax_num_cpu_devices", count or max(divisors))


def data_mesh() -> Mesh:
    """All devices of this process along one axis."""
    return jax.make_mesh(
        (jax.local_device_count(),), (DATA,), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.local_devices()
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())
