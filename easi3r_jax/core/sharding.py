"""Devices as one mesh, and arrays divided over it.

Computation follows the arrays: put a network on a mesh (`whole(model, data_mesh())`), and the passes divide frames and
pairs over its devices, so that `align` finds the pairs' point maps divided, and divides its work as they are. What is
small lies whole on every device.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from easi3r_jax.core.errors import ConfigError
from easi3r_jax.core.types import Array, Int

_T = TypeVar("_T")

#: The mesh's only axis: examples (training pairs, directed pairs, edges) are divided along it.
DATA = "data"
#: How a function's arguments and results lie on a mesh (see `divided`): their first axis divided, or whole everywhere.
ROWS, WHOLE = PartitionSpec(DATA), PartitionSpec()


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


def data_mesh(count: int | None = None) -> Mesh:
    """The first `count` devices of this process, or all, along one axis.

    Raises:
      ConfigError: it has fewer.
    """
    devices = jax.local_devices()
    if count is not None and not 0 < count <= len(devices):
        raise ConfigError(f"{count} devices are asked for; this process has {len(devices)}.")
    devices = devices[:count]
    return jax.make_mesh((len(devices),), (DATA,), axis_types=(jax.sharding.AxisType.Auto,), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, WHOLE)


def mesh_of(tree: Any) -> Mesh | None:
    """The mesh that arrays lie on; None where that is one device, or host memory."""
    for leaf in jax.tree.leaves(tree):
        sharding = getattr(leaf, "sharding", None)
        if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, Mesh) and sharding.mesh.size > 1:
            return sharding.mesh
    return None


def mesh_of_rows(tree: Any) -> Mesh | None:
    """The mesh over whose devices arrays are divided by their first axis (`by_rows`); None where none is."""
    for leaf in jax.tree.leaves(tree):
        if (mesh := mesh_of(leaf)) is not None and leaf.sharding.spec[:1] == (DATA,):
            return mesh
    return None


def num_shares(mesh: Mesh | None) -> int:
    """Into how many parts rows are divided."""
    return 1 if mesh is None else mesh.size


def whole(tree: _T, mesh: Mesh | None) -> _T:
    """Arrays whole on every device, e.g. a network's parameters; as they are where there is one device."""
    return tree if mesh is None or mesh.size == 1 else jax.device_put(tree, replicated(mesh))


def scattered(tree: _T, mesh: Mesh | None) -> _T:
    """Arrays of which every device keeps a part: along the first axis that can be divided, if there is one.

    For parameters that are in the way while something else runs, e.g. the alignment: what needs them gathers all of
    them while it runs, so a network that does not fit on a device does not run on several either.
    """
    if mesh is None or mesh.size == 1:
        return tree

    def scatter(x: jax.Array) -> jax.Array:
        axis = next((n for n, length in enumerate(x.shape) if length % mesh.size == 0), None)
        spec = WHOLE if axis is None else PartitionSpec(*[None] * axis, DATA)
        return jax.device_put(x, NamedSharding(mesh, spec))

    return jax.tree.map(scatter, tree)


def by_rows(tree: _T, mesh: Mesh | None) -> _T:
    """Divides arrays by their first axis, a multiple of the number of devices; as they are without a mesh."""
    return tree if mesh is None else jax.device_put(tree, NamedSharding(mesh, ROWS))


def divided(f: Callable[..., Any], mesh: Mesh | None, in_specs: Any, out_specs: Any) -> Callable[..., Any]:
    """`f`, run by every device on its share: of `ROWS` arguments a device sees its own. `f` itself without a mesh."""
    if mesh is None:
        return f
    return jax.shard_map(f, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def summed(tree: _T, mesh: Mesh | None) -> _T:
    """Within `divided`: the sum over all devices."""
    return tree if mesh is None else jax.lax.psum(tree, DATA)


def maximum(tree: _T, mesh: Mesh | None) -> _T:
    """Within `divided`: the largest of all devices."""
    return tree if mesh is None else jax.lax.pmax(tree, DATA)


def share_number(mesh: Mesh | None) -> Int[Array, ""] | int:
    """Within `divided`: which share this device has."""
    return 0 if mesh is None else jax.lax.axis_index(DATA)
