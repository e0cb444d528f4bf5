"""What the network's confidence says of pairs, frames and pixels."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from easi3r_jax.core import sharding
from easi3r_jax.core.arrays import Array, Bool, Float
from easi3r_jax.core.geometry.pnp import solve_pnp
from easi3r_jax.core.sharding import REPLICATED, ROWS
from easi3r_jax.core.types import PairPredictions

# Minimum share of a frame's pixels that must pass `min_confidence`, and the most confident share used otherwise.
_MIN_CONFIDENT_SHARE, _FALLBACK_SHARE = 0.01, 0.25


def edge_scores(predictions: PairPredictions) -> Float[np.ndarray, "pairs"]:
    """(E',) mean confidence of frame i times that of frame j, of the pairs that are not padding. On the host."""
    scores = _scores(predictions.confidence_i, predictions.confidence_j)
    return sharding.on_host(scores)[: len(predictions.clip_edges)]


@jax.jit
def _scores(confidence_i: Array, confidence_j: Array) -> Array:
    return jnp.mean(_wide(confidence_i), axis=(1, 2)) * jnp.mean(_wide(confidence_j), axis=(1, 2))


def frame_confidence(predictions: PairPredictions) -> Float[Array, "T H W"]:
    """(T, H, W): maximum confidence of every pixel over the pairs that contain its frame; 0 for a frame in none."""
    return _largest_confidence(
        np.asarray(predictions.edges, np.int32),
        predictions.confidence_i,
        predictions.confidence_j,
        predictions.total_frames,
        sharding.mesh_of_rows(predictions),
    )


@partial(jax.jit, static_argnames=("num_frames", "mesh"))
def _largest_confidence(
    edges: Array, confidence_i: Array, confidence_j: Array, num_frames: int, mesh: Mesh | None
) -> Array:
    def share(edges: Array, confidence_i: Array, confidence_j: Array) -> Array:
        out = jnp.zeros((num_frames, *confidence_i.shape[1:]), confidence_i.dtype)
        out = out.at[edges[:, 0]].max(confidence_i).at[edges[:, 1]].max(confidence_j)
        return sharding.pmax(_wide(out), mesh)

    return sharding.shard_map(share, mesh, (ROWS, ROWS, ROWS), REPLICATED)(edges, confidence_i, confidence_j)


def _wide(x: Array) -> Array:
    """At least float32: predictions may be stored in half precision."""
    return x if x.dtype.itemsize >= 4 else x.astype(jnp.float32)


def confident_pixels(confidence: Float[np.ndarray, "H W"], min_confidence: float) -> Bool[np.ndarray, "H W"]:
    """(H, W) confidence -> (H, W) bool: pixels above `min_confidence`; the best quarter if these are under 1 %."""
    mask = confidence > min_confidence
    if mask.mean() < _MIN_CONFIDENT_SHARE:
        mask = confidence >= np.quantile(confidence, 1 - _FALLBACK_SHARE)
    return mask


def pnp_pose(
    points: Float[np.ndarray, "H W 3"],
    confidence: Float[np.ndarray, "H W"],
    focal: float,
    principal_point: Float[np.ndarray, "2"],
    *,
    min_confidence: float,
    iterations: int,
    seed: int,
) -> Float[np.ndarray, "4 4"] | None:
    """World from camera of a frame whose pixels see these world points (RANSAC-PnP on the confident ones), if found."""
    mask = confident_pixels(confidence, min_confidence)
    rows, columns = np.nonzero(mask)
    pixels = np.stack([columns, rows], axis=-1).astype(np.float32)
    matrix = np.array([[focal, 0, principal_point[0]], [0, focal, principal_point[1]], [0, 0, 1]])
    return solve_pnp(points[mask], pixels, matrix, iterations=iterations, seed=seed)
