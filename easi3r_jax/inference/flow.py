"""Optical flow between the frames of a clip, at any size, and where flow there and back agree.

    frames, edges ──estimate_flow──▶ flow of every pair ──flow[reverse_edges(edges)], consistent_flow──▶ where it holds

Flow is in pixels (x, y) of the frames: what is at x in frame i is at x + flow in frame j.
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
from easi3r_jax.core.batches import Batches, pad_pairs
from easi3r_jax.core.errors import ConfigError, InputError
from easi3r_jax.core.geometry import camera
from easi3r_jax.core.sharding import ROWS, WHOLE
from easi3r_jax.core.types import Array, Bool, Float, Int, Progress, Shaped, UInt8, all_finite, silent
from easi3r_jax.models import FlowNetwork
from easi3r_jax.models.correlation import MAX_CORRELATION_BYTES
from easi3r_jax.models.flow_layers import ITERATIONS, STRIDE

#: Sides, padded to the networks' stride, below which frames are enlarged: the networks know large images only.
SMALLEST_SIDE = 128

# Temporary memory per pixel of SEA-RAFT, the largest of the networks: 912 bytes at 512 x 288, correlations included, in
# XLA's count for a CPU (`compiled.memory_analysis()`).
_BYTES_PER_PIXEL = 1024
# Pixels by which rounding may carry what stays where it is over the image's edge.
_ROUNDING = 1e-3


def estimate_flow(
    network: FlowNetwork,
    rgb: UInt8[Array, "T H W 3"],
    edges: Int[np.ndarray, "E 2"],
    *,
    batch: int = 0,
    iterations: int = ITERATIONS,
    progress: Progress = silent,
) -> Float[Array, "E H W 2"]:
    """Flow of every directed pair of a clip.

    Frames with a padded side below `SMALLEST_SIDE` are enlarged by the smallest whole factor that mends it (bilinear),
    and the flow is brought back (mean over the factor's blocks, over the factor). All batches have one shape: one
    compilation. Where the network lies on a mesh, its pairs are sharded.

    Memory on the device: 3 bytes for each pixel of the clip and 8 for each pixel of a pair (65 frames of 512 × 288 in
    600 pairs: 0.7 GB), and for a batch, of what the network sees, about 1 KiB a pixel and pair and the correlations,
    (4 / 3) (H W / 32)² bytes a pair or `models.correlation.MAX_CORRELATION_BYTES` in all, whichever is less.

    Args:
      network: RAFT or SEA-RAFT.
      rgb: (T, H, W, 3) uint8.
      edges: (E, 2) int, pairs of frame numbers (i, j).
      batch: pairs at a time; 0: as many as fit into modest memory.
      iterations: of the network's refinement.
      progress: called before each batch and at the end, of the stage "flow".

    Returns:
      (E, H, W, 2) float32 pixels (x, y), from frame i to frame j; sharded by pairs where the network lies on a mesh.

    Raises:
      InputError: pairs of frames that do not exist; weights or frames that give no finite flow.
    """
    num_frames, height, width = rgb.shape[:3]
    edges = np.asarray(edges, np.int32).reshape(-1, 2)
    total = len(edges)
    if not total:
        return jnp.zeros((0, height, width, 2), jnp.float32)
    if edges.min() < 0 or edges.max() >= num_frames:
        raise InputError(f"Flow is wanted between frames {edges.min()}..{edges.max()}; there are 0..{num_frames - 1}.")
    mesh = sharding.mesh_of(network)
    rgb = sharding.whole(jnp.asarray(rgb), mesh)
    edges, valid = pad_pairs(edges, 0, mesh)
    batches = Batches(edges, _most_at_once(math.prod(network_size(height, width))), mesh, valid=valid, batch=batch)
    store = (batches.empty((height, width, 2), "float32"),)
    for n in range(batches.count):
        progress("flow", batches.done(n), total, "")
        images = _gather_batch(rgb, batches[n][0], mesh)
        store = jax.block_until_ready(batches.keep(store, (_flow_batch(network, *images, iterations, mesh),), n))
    if not bool(all_finite(store[0])):
        raise InputError("The network's flow is infinite or undefined: wrong weights?")
    progress("flow", total, total, "")
    return store[0] if len(edges) == total else store[0][:total]


def pad_images(
    rgb: Shaped[Array, "B H W C"], multiple: int = STRIDE
) -> tuple[Shaped[Array, "B height width C"], tuple[int, int]]:
    """Repeats the edge pixels of images (B, H, W, C) until both sides are multiples.

    Returns:
      The larger images, and where the original ones begin in them (row, column): half of the padding is before, rounded
      down.
    """
    (top, bottom), (left, right) = (
        (missing // 2, missing - missing // 2) for missing in (-side % multiple for side in rgb.shape[1:3])
    )
    return jnp.pad(rgb, ((0, 0), (top, bottom), (left, right), (0, 0)), mode="edge"), (top, left)


@jax.jit
def consistent_flow(
    forward: Float[Array, "B H W 2"], backward: Float[Array, "B H W 2"], tolerance: float = 3.0
) -> Bool[Array, "B H W"]:
    """Where flow there and back ends where it began: the released programs' check.

    Backward flow is sampled bilinearly where forward flow points, between pixels that are integers at pixel centres
    (`align_corners` in PyTorch's words). It is the *sum* over x and y of forward and backward flow that must be below
    the tolerance in size: errors of opposite sign cancel. What points beyond the centres of the outermost pixels is not
    consistent, whatever lies there.

    Args:
      forward: (B, H, W, 2) flow from i to j, pixels (x, y).
      backward: (B, H, W, 2) from j to i: `flow[reverse_edges(edges)]`.
      tolerance: pixels.

    Returns:
      (B, H, W) bool.
    """
    height, width = forward.shape[1:3]
    aim = camera.pixel_grid(height, width)[None] + forward
    last = jnp.asarray([width - 1, height - 1], aim.dtype).reshape(1, 1, 1, 2)
    inside = jnp.all((aim >= -_ROUNDING) & (aim <= last + _ROUNDING), axis=-1)
    # Sums over x and y are sampled: the same as summing samples, for half the look-ups. At the edge, the edge's value.
    sample = jax.vmap(lambda image, at: map_coordinates(image, [at[..., 1], at[..., 0]], order=1, mode="nearest"))
    error = jnp.sum(forward, axis=-1) + sample(jnp.sum(backward, axis=-1), aim)
    return inside & (jnp.abs(error) < tolerance)


def reverse_edges(edges: Int[np.ndarray, "E 2"]) -> Int[np.ndarray, "E"]:
    """The number of every pair's reverse: (E, 2) pairs (i, j) -> (E,) int.

    Raises:
      ConfigError: a pair that comes in one direction only.
    """
    pairs = [(int(i), int(j)) for i, j in np.asarray(edges)]
    number = {pair: e for e, pair in enumerate(pairs)}
    alone = [(i, j) for i, j in pairs if (j, i) not in number]
    if alone:
        raise ConfigError(
            f"{len(alone)} of {len(pairs)} pairs come in one direction only (the first: {alone[0][0]} to "
            f"{alone[0][1]}): take a symmetric pair graph."
        )
    return np.array([number[j, i] for i, j in pairs], np.int32)


def _factor(height: int, width: int) -> int:
    """How often frames are enlarged: smallest whole number after which both padded sides reach `SMALLEST_SIDE`."""
    return (SMALLEST_SIDE - STRIDE) // min(height, width) + 1


def network_size(height: int, width: int) -> tuple[int, int]:
    """Height and width of a frame as the network sees it: enlarged and padded."""
    factor = _factor(height, width)
    return -(-factor * height // STRIDE) * STRIDE, -(-factor * width // STRIDE) * STRIDE


def _most_at_once(pixels: int) -> int:
    """Pairs at a time: what fits into modest memory, and whose correlations are not computed anew at each look-up."""
    memory = 1 << (28 if jax.default_backend() == "cpu" else 32)
    correlations = 4 * (pixels / STRIDE**2) ** 2 * 4 / 3  # levels shrink by four
    return max(1, int(min(memory / (_BYTES_PER_PIXEL * pixels + correlations), MAX_CORRELATION_BYTES / correlations)))


@partial(jax.jit, static_argnames=("mesh",))
def _gather_batch(rgb: Array, edges: Array, mesh: Mesh | None) -> tuple[Array, Array]:
    gather = sharding.divided(lambda rgb, edges: (rgb[edges[:, 0]], rgb[edges[:, 1]]), mesh, (WHOLE, ROWS), ROWS)
    return gather(rgb, edges)


@partial(jax.jit, static_argnames=("iterations", "mesh"))
def _flow_batch(network: FlowNetwork, rgb_i: Array, rgb_j: Array, iterations: int, mesh: Mesh | None) -> Array:
    def share(network: FlowNetwork, rgb_i: Array, rgb_j: Array) -> Array:
        return _flow_of(network, rgb_i, rgb_j, iterations)

    return sharding.divided(share, mesh, (WHOLE, ROWS, ROWS), ROWS)(network, rgb_i, rgb_j)


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
