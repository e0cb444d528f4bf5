"""Devices as one mesh, and arrays sharded over it.

Computation follows the arrays. Replicate a network over a mesh (`replicate(model, data_mesh())`), and the passes shard
frames and pairs over its devices. `align` then finds sharded point maps and shards its work the same way. Small arrays
are replicated.

The mesh may span the processes of several hosts (`data_mesh(all_hosts=True)`), joined by `jax.distributed.initialize`.
All of them then call the same functions with the same host arrays. Two things differ from one process: an array of the
mesh is read by `on_host`, and what the host computes itself is made the same everywhere by `agreed`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from easi3r_jax.core.arrays import Array, Int
from easi3r_jax.core.errors import ConfigError

_T = TypeVar("_T")

#: The mesh's only axis: examples (training pairs, directed pairs, edges) are sharded along it.
DATA = "data"
#: Layouts of a function's arguments and results on a mesh (see `shard_map`): first axis sharded, or replicated.
ROWS, REPLICATED = PartitionSpec(DATA), PartitionSpec()


def num_cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def split_cpu(batch_size: int, count: int | None = None) -> None:
    """Exposes CPU cores as separate devices: the largest number of available cores that divides the batch.

    A small network trains faster on two single-threaded devices than on one with two threads: its operations are too
    small to be split over threads. Call this before anything is computed. It does not affect accelerators, and does
    nothing where XLA_FLAGS already sets the number of CPU devices.

    Args:
      batch_size: examples in a step.
      count: number of devices to use instead.
    """
    if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    divisors = (n for n in range(1, num_cores() + 1) if batch_size % n == 0)
    jax.config.update("jax_num_cpu_devices", count or max(divisors))


def data_mesh(count: int | None = None, *, all_hosts: bool = False) -> Mesh:
    """The first `count` devices, or all, along one axis.

    Args:
      count: number of devices; None: all.
      all_hosts: those of all processes that `jax.distributed.initialize` has joined, not of this process alone.

    Raises:
      ConfigError: there are fewer devices, or a process would have none.
    """
    devices = jax.devices() if all_hosts else jax.local_devices()
    if all_hosts and count not in (None, len(devices)) and jax.process_count() > 1:
        raise ConfigError(f"{count} devices were requested; several hosts use all that they have, {len(devices)}.")
    if count is not None and not 0 < count <= len(devices):
        raise ConfigError(f"{count} devices were requested; this process has {len(devices)}.")
    devices = devices[:count]
    return jax.make_mesh((len(devices),), (DATA,), axis_types=(jax.sharding.AxisType.Auto,), devices=devices)


def replicated_sharding(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, REPLICATED)


def mesh_of(tree: Any) -> Mesh | None:
    """The mesh that arrays lie on; None for a single device or host memory."""
    for leaf in jax.tree.leaves(tree):
        sharding = getattr(leaf, "sharding", None)
        if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, Mesh) and sharding.mesh.size > 1:
            return sharding.mesh
    return None


def mesh_of_rows(tree: Any) -> Mesh | None:
    """The mesh over which arrays are sharded by their first axis (`shard_rows`); None if none is."""
    for leaf in jax.tree.leaves(tree):
        if (mesh := mesh_of(leaf)) is not None and leaf.sharding.spec[:1] == (DATA,):
            return mesh
    return None


def num_shards(mesh: Mesh | None) -> int:
    """Number of shards that rows are split into."""
    return 1 if mesh is None else mesh.size


def spans_hosts(mesh: Mesh | None) -> bool:
    """Whether some devices of the mesh belong to other processes."""
    return mesh is not None and mesh.is_multi_process


def put(tree: _T, where: Sharding) -> _T:
    """`jax.device_put`, also to devices of other processes, which must call it with the same arrays.

    `jax.device_put` compares host arrays over the network to see that they are the same; here each process just copies
    its part to its own devices.
    """
    if where.is_fully_addressable:
        return jax.device_put(tree, where)

    def place(x: Any) -> Any:
        if isinstance(x, jax.Array) and not x.is_fully_addressable:
            return jax.device_put(x, where)
        x = x if isinstance(x, jax.Array) else np.asarray(x)
        parts = [jax.device_put(x[part], d) for d, part in where.addressable_devices_indices_map(x.shape).items()]
        return jax.make_array_from_single_device_arrays(x.shape, where, parts)

    return jax.tree.map(place, tree)


def on_host(tree: _T) -> _T:
    """Arrays as NumPy arrays, on every process; those of a mesh over several hosts are gathered first."""

    def read(x: Any) -> np.ndarray:
        if isinstance(x, jax.Array) and not x.is_fully_addressable and not x.is_fully_replicated:
            return np.asarray(multihost_utils.process_allgather(x, tiled=True))
        return np.asarray(x)

    return jax.tree.map(read, tree)


def agreed(tree: _T, mesh: Mesh | None) -> _T:
    """Host arrays as process 0 of the mesh has them; unchanged if the mesh is of one process.

    For what the host computes, such as RANSAC: another processor may round differently, and take other inliers. Dtypes
    are kept, whether JAX has 64 bits switched on or not.
    """
    if not spans_hosts(mesh):
        return tree
    arrays = jax.tree.map(np.asarray, tree)
    as_bytes = jax.tree.map(lambda x: np.frombuffer(x.tobytes(), np.uint8), arrays)
    first = multihost_utils.broadcast_one_to_all(as_bytes)
    return jax.tree.map(lambda x, b: np.frombuffer(np.asarray(b).tobytes(), x.dtype).reshape(x.shape), arrays, first)


def agreed_text(text: str, mesh: Mesh | None) -> str:
    """The text that process 0 of the mesh passes; others may pass any other."""
    if not spans_hosts(mesh):
        return text
    own = np.frombuffer(text.encode(), np.uint8)
    length = int(agreed(np.array(len(own)), mesh))
    return agreed(np.resize(own if len(own) else np.zeros(1, np.uint8), length), mesh).tobytes().decode()


def replicate(tree: _T, mesh: Mesh | None) -> _T:
    """Replicates arrays on every device, e.g. a network's parameters; unchanged on a single device."""
    return tree if mesh is None or mesh.size == 1 else put(tree, replicated_sharding(mesh))


def placed(tree: _T, mesh: Mesh | None, beside: Any) -> _T:
    """Replicates arrays on every device of a mesh; without one, commits them to where arrays of `beside` are committed.

    If no array of `beside` and of the tree is committed to a device, none will be.
    """
    if mesh is not None:
        return replicate(tree, mesh)
    bound = (
        leaf.sharding for leaf in jax.tree.leaves((beside, tree)) if isinstance(leaf, jax.Array) and leaf.committed
    )
    where = next(bound, None)
    return tree if where is not None and not where.is_fully_replicated else jax.device_put(tree, where)


def shard_parameters(tree: _T, mesh: Mesh | None) -> _T:
    """Shards each array along its first axis that divides evenly; arrays without one are replicated.

    This frees memory while something else runs, e.g. the alignment. Whatever uses the parameters gathers all of them
    first, so a network that does not fit on one device does not run on several either.
    """
    if mesh is None or mesh.size == 1:
        return tree

    def scatter(x: jax.Array) -> jax.Array:
        axis = next((n for n, length in enumerate(x.shape) if length % mesh.size == 0), None)
        spec = REPLICATED if axis is None else PartitionSpec(*[None] * axis, DATA)
        return put(x, NamedSharding(mesh, spec))

    return jax.tree.map(scatter, tree)


def shard_rows(tree: _T, mesh: Mesh | None) -> _T:
    """Shards arrays along their first axis, a multiple of the number of devices; unchanged without a mesh."""
    return tree if mesh is None else put(tree, NamedSharding(mesh, ROWS))


def own_rows(count: int, mesh: Mesh | None) -> Int[np.ndarray, "own"]:
    """The rows, of `count` that are sharded over the mesh, that this process's devices hold; ascending."""
    if not spans_hosts(mesh):
        return np.arange(count)
    parts = NamedSharding(mesh, ROWS).addressable_devices_indices_map((count,)).values()  # type: ignore[arg-type]
    return np.unique(np.concatenate([np.arange(count)[part] for part in parts]))


def shard_own_rows(tree: _T, count: int, mesh: Mesh | None) -> _T:
    """As `shard_rows`, of arrays of which each process has made its `own_rows` alone."""
    if not spans_hosts(mesh):
        return shard_rows(tree, mesh)
    own, rows = own_rows(count, mesh), NamedSharding(mesh, ROWS)  # type: ignore[arg-type]

    def place(x: np.ndarray) -> jax.Array:
        shape = (count, *x.shape[1:])
        where = rows.addressable_devices_indices_map((count,)).items()
        parts = [jax.device_put(x[np.searchsorted(own, np.arange(count)[part])], d) for d, part in where]
        return jax.make_array_from_single_device_arrays(shape, rows, parts)

    return jax.tree.map(place, tree)


def shard_map(f: Callable[..., Any], mesh: Mesh | None, in_specs: Any, out_specs: Any) -> Callable[..., Any]:
    """`f` mapped over shards: each device sees its own rows of `ROWS` arguments. `f` itself without a mesh."""
    if mesh is None:
        return f
    return jax.shard_map(f, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def psum(tree: _T, mesh: Mesh | None) -> _T:
    """Within `shard_map`: the sum over all devices."""
    return tree if mesh is None else jax.lax.psum(tree, DATA)


def pmax(tree: _T, mesh: Mesh | None) -> _T:
    """Within `shard_map`: the maximum over all devices."""
    return tree if mesh is None else jax.lax.pmax(tree, DATA)


def shard_index(mesh: Mesh | None) -> Int[Array, ""] | int:
    """Within `shard_map`: the index of this device's shard."""
    return 0 if mesh is None else jax.lax.axis_index(DATA)
