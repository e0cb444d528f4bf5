"""Optical flow by a network, between frames of any size, and its forward-backward consistency.

    frames, edges ──estimate_flow──▶ flow of every pair ──flow[reverse], consistent_flow──▶ where it holds

`dense_flow` is the source of flow that needs no weights.

Flow is in pixels (x, y) of the frames: a point at x in frame i is at x + flow in frame j.
"""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.ndimage import map_coordinates
from jax.sharding import Mesh

from easi3r_jax.core import sharding
from easi3r_jax.core.arrays import Array, Bool, Float, Int, Shaped, UInt8, all_finite
from easi3r_jax.core.batches import Batches, most_at_once, pad_pairs
from easi3r_jax.core.errors import InputError
from easi3r_jax.core.geometry import camera
from easi3r_jax.core.sharding import REPLICATED, ROWS
from easi3r_jax.core.types import Frames, Progress, silent
from easi3r_jax.models import FlowNetwork
from easi3r_jax.models.correlation import MAX_CORRELATION_BYTES
from easi3r_jax.models.flow_layers import ITERATIONS, STRIDE

#: Frames with a side (padded to the networks' stride) below this are upsampled: the networks expect large images.
SMALLEST_SIDE = 128

# Temporary memory per pixel of SEA-RAFT, the largest of the networks: 912 bytes at 512 x 288, correlations included, in
# XLA's count for a CPU (`compiled.memory_analysis()`).
_BYTES_PER_PIXEL = 1024
# Tolerance at the image's edge in pixels, so that rounding does not push static points outside.
_EDGE_TOLERANCE = 1e-3


def estimate_flow(
    network: FlowNetwork,
    rgb: UInt8[Array, "T H W 3"],
    edges: Int[np.ndarray, "E 2"],
    *,
    batch: int = 0,
    iterations: int = ITERATIONS,
    progress: Progress = silent,
) -> Float[Array, "E H W 2"]:
    """Flow of every directed pair of a clip. Runs on the host, batch by batch; the network itself is pure.

    Frames with a padded side below `SMALLEST_SIDE` are upsampled (bilinear) by the smallest sufficient integer factor,
    and the flow is downsampled again (mean over blocks, divided by the factor). All batches have one shape, so the
    network compiles once. If the network lies on a mesh, the pairs are sharded.

    Device memory: 3 bytes per pixel of the clip and 8 per pixel of a pair (65 frames of 512 × 288 in 600 pairs:
    0.7 GB). In addition, for each pair of a batch at the network's size, about 1 KiB per pixel and the correlations,
    (4 / 3) (H W / 32)² bytes a pair or `models.correlation.MAX_CORRELATION_BYTES` in all, whichever is less.

    Args:
      network: RAFT or SEA-RAFT.
      rgb: (T, H, W, 3) uint8.
      edges: (E, 2) int, pairs of frame numbers (i, j).
      batch: pairs at a time; 0: as many as fit into modest memory.
      iterations: of the network's refinement.
      progress: called before each batch and at the end, for the stage "flow".

    Returns:
      (E, H, W, 2) float32 pixels (x, y), from frame i to frame j; sharded by pairs if the network lies on a mesh.

    Raises:
      InputError: pairs of frames that do not exist; weights or frames that do not give finite flow.
    """
    num_frames, height, width = rgb.shape[:3]
    edges = np.asarray(edges, np.int32).reshape(-1, 2)
    total = len(edges)
    if not total:
        return jnp.zeros((0, height, width, 2), jnp.float32)
    if edges.min() < 0 or edges.max() >= num_frames:
        raise InputError(
            f"Flow was requested between frames {edges.min()}..{edges.max()}; there are 0..{num_frames - 1}."
        )
    mesh = sharding.mesh_of(network)
    rgb = sharding.replicate(jnp.asarray(rgb), mesh)
    edges, valid = pad_pairs(edges, 0, mesh)
    batches = Batches(edges, _most_at_once(math.prod(network_size(height, width))), mesh, valid=valid, batch=batch)
    store = (batches.empty((height, width, 2), "float32"),)
    for n in range(batches.count):
        progress("flow", batches.done(n), total, "")
        images = _gather_batch(rgb, batches[n][0], mesh)
        store = jax.block_until_ready(batches.keep(store, (_flow_batch(network, *images, iterations, mesh),), n))
    if not bool(all_finite(store[0])):
        raise InputError("The network's flow is infinite or NaN: wrong weights?")
    progress("flow", total, total, "")
    return store[0] if len(edges) == total else store[0][:total]


def network_flow(
    network: FlowNetwork, frames: Frames, edges: Int[np.ndarray, "E 2"], *, progress: Progress = silent
) -> tuple[Float[Array, "E H W 2"], None]:
    """`estimate_flow` as `reconstruct(..., flow=functools.partial(network_flow, network))` takes it.

    Returns:
      flow: see `estimate_flow`.
      known: None: as in the released programs, the network's flow is used everywhere.
    """
    return estimate_flow(network, frames.rgb, edges, progress=progress), None


def pad_images(
    rgb: Shaped[Array, "B H W C"], multiple: int = STRIDE
) -> tuple[Shaped[Array, "B height width C"], tuple[int, int]]:
    """Pads images (B, H, W, C) by repeating edge pixels until both sides are multiples.

    Returns:
      The padded images, and the offset (row, column) of the originals in them: half of the padding, rounded down.
    """
    (top, bottom), (left, right) = (
        (missing // 2, missing - missing // 2) for missing in (-side % multiple for side in rgb.shape[1:3])
    )
    return jnp.pad(rgb, ((0, 0), (top, bottom), (left, right), (0, 0)), mode="edge"), (top, left)


@jax.jit
def consistent_flow(
    forward: Float[Array, "B H W 2"], backward: Float[Array, "B H W 2"], tolerance: float = 3.0
) -> Bool[Array, "B H W"]:
    """Forward-backward consistency, as checked by the released programs.

    Backward flow is sampled bilinearly at the target of forward flow, with integer coordinates at pixel centres
    (`align_corners` in PyTorch). The *sum* over x and y of forward and backward flow must be below the tolerance in
    magnitude: errors of opposite sign cancel. Targets beyond the centres of the outermost pixels are inconsistent.

    Args:
      forward: (B, H, W, 2) flow from i to j, pixels (x, y).
      backward: (B, H, W, 2) from j to i: `flow[reverse_edges(edges, T)[0]]`, see `core.pairs`.
      tolerance: pixels.

    Returns:
      (B, H, W) bool.
    """
    height, width = forward.shape[1:3]
    aim = camera.pixel_grid(height, width)[None] + forward
    last = jnp.asarray([width - 1, height - 1], aim.dtype).reshape(1, 1, 1, 2)
    inside = jnp.all((aim >= -_EDGE_TOLERANCE) & (aim <= last + _EDGE_TOLERANCE), axis=-1)
    # Samples the sum over x and y, equal to the sum of samples with half the look-ups. Clamped at the edge.
    sample = jax.vmap(lambda image, at: map_coordinates(image, [at[..., 1], at[..., 0]], order=1, mode="nearest"))
    error = jnp.sum(forward, axis=-1) + sample(jnp.sum(backward, axis=-1), aim)
    return inside & (jnp.abs(error) < tolerance)


def _factor(height: int, width: int) -> int:
    """Upsampling factor: the smallest integer for which both padded sides reach `SMALLEST_SIDE`."""
    return (SMALLEST_SIDE - STRIDE) // min(height, width) + 1


def network_size(height: int, width: int) -> tuple[int, int]:
    """Height and width of a frame as the network sees it: upsampled and padded."""
    factor = _factor(height, width)
    return -(-factor * height // STRIDE) * STRIDE, -(-factor * width // STRIDE) * STRIDE


def _most_at_once(pixels: int) -> int:
    """Pairs at a time that fit into modest memory, and whose correlations need not be recomputed at each look-up."""
    correlations = 4 * (pixels / STRIDE**2) ** 2 * 4 / 3  # levels shrink by four
    fitting = most_at_once(_BYTES_PER_PIXEL * pixels + correlations, on_cpu=1 << 28)
    return max(1, min(fitting, int(MAX_CORRELATION_BYTES / correlations)))


@partial(jax.jit, static_argnames=("mesh",))
def _gather_batch(rgb: Array, edges: Array, mesh: Mesh | None) -> tuple[Array, Array]:
    gather = sharding.shard_map(lambda rgb, edges: (rgb[edges[:, 0]], rgb[edges[:, 1]]), mesh, (REPLICATED, ROWS), ROWS)
    return gather(rgb, edges)


@partial(jax.jit, static_argnames=("iterations", "mesh"))
def _flow_batch(network: FlowNetwork, rgb_i: Array, rgb_j: Array, iterations: int, mesh: Mesh | None) -> Array:
    def share(network: FlowNetwork, rgb_i: Array, rgb_j: Array) -> Array:
        return _flow_of(network, rgb_i, rgb_j, iterations)

    return sharding.shard_map(share, mesh, (REPLICATED, ROWS, ROWS), ROWS)(network, rgb_i, rgb_j)


def _flow_of(network: FlowNetwork, rgb_i: Array, rgb_j: Array, iterations: int) -> Array:
    count, height, width = rgb_i.shape[:3]
    factor = _factor(height, width)
    images = jnp.concatenate([rgb_i, rgb_j]).astype(jnp.float32)
    if factor > 1:
        images = jax.image.resize(images, (2 * count, factor * height, factor * width, 3), "bilinear")
    padded, (top, left) = pad_images(images)
    flow, _ = network(padded[:count], padded[count:], iterations)
    flow = flow[:, top : top + factor * height, left : left + factor * width]
    return jnp.mean(flow.reshape(count, height, factor, width, factor, 2), axis=(2, 4)) / factor
