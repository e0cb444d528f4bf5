"""Dynamic and static regions from optical flow: where cameras do not explain it, and where they do (MonST3R, sec. 3.3).

Before the alignment, flow is compared with each pair's own cameras; after it, with the clip's cameras.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from easi3r_jax.alignment.flow import ego_flow
from easi3r_jax.alignment.pair import two_frames
from easi3r_jax.core import sharding
from easi3r_jax.core.arrays import Array, Bool, Float, Int
from easi3r_jax.core.config import AlignConfig
from easi3r_jax.core.geometry import se3
from easi3r_jax.core.sharding import REPLICATED, ROWS
from easi3r_jax.core.types import Geometry, PairPredictions, Progress, silent

# Pairs between two progress reports.
_PAIRS_PER_REPORT = 10
# The two edges of a pair.
_BOTH_WAYS = np.array([[0, 1], [1, 0]], np.int32)


def flow_residual(
    predictions: PairPredictions,
    flow: Float[Array, "E H W 2"],
    config: AlignConfig = AlignConfig(),
    *,
    flow_known: Bool[Array, "E H W"] | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> Float[Array, "T H W"]:
    """How far the flow is from the flow induced by camera motion, (T, H, W) float32 in [0, 1].

    Runs on the host (PnP); `ego_flow` is its pure part.

    Each pair of frames is reconstructed in closed form (`two_frames`, with one focal length per frame). For each
    direction, the length of the difference between flow and ego flow is min-max normalised over the image; a frame gets
    the mean over its pairs. Pairs with only one direction and pixels without known flow are ignored.

    Args:
      predictions: pairs in both directions.
      flow: (E, H, W, 2) pixels, from i to j.
      config: PnP options.
      flow_known: (E, H, W) bool; None: all of it.
      seed: for RANSAC.
      progress: called every few pairs, for the stage "flow masks".
    """
    pairs = both_directions(predictions)
    config = dataclasses.replace(config, shared_focal=False)

    def geometries() -> Iterator[tuple[np.ndarray, Geometry]]:
        for done, rows in enumerate(pairs):  # PnP is host code: one pair after another
            if not done % _PAIRS_PER_REPORT:
                progress("flow masks", done, len(pairs), "")
            yield rows, two_frames(one_pair(predictions, rows), config, seed=seed)

    residual = mean_residual(geometries(), predictions, flow, flow_known)
    progress("flow masks", len(pairs), len(pairs), "")
    return residual


def mean_residual(
    geometries: Iterable[tuple[Int[np.ndarray, "2"], Geometry]],
    predictions: PairPredictions,
    flow: Float[Array, "E H W 2"],
    flow_known: Bool[Array, "E H W"] | None = None,
) -> Float[Array, "T H W"]:
    """`flow_residual` where the pairs' cameras are found already.

    Args:
      geometries: for each pair of frames its rows in the predictions, as from `both_directions`, and its geometry.
      predictions, flow, flow_known: see `flow_residual`.
    """
    edges, shape = np.asarray(predictions.edges, np.int32), (predictions.total_frames, *flow.shape[1:3])
    total, count = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    flow = jnp.asarray(flow)  # once: `_add_pair` takes all of it for every pair
    flow_known = None if flow_known is None else jnp.asarray(flow_known)
    for rows, geometry in geometries:
        total, count = _add_pair(total, count, geometry, flow, flow_known, rows, edges[rows, 0])
    return _mean(total, count)


def both_directions(predictions: PairPredictions) -> list[Int[np.ndarray, "2"]]:
    """For every two frames that are paired in both directions, the rows (2,) of (i, j) and (j, i), i < j."""
    number = {(int(i), int(j)): e for e, (i, j) in enumerate(predictions.clip_edges)}
    return [np.array([e, number[j, i]]) for (i, j), e in number.items() if i < j and (j, i) in number]


def one_pair(predictions: PairPredictions, rows: Int[np.ndarray, "2"]) -> PairPredictions:
    """Two directions of one pair as a clip of two frames."""
    both = _rows_of(dataclasses.replace(predictions, valid=None, num_frames=2), rows)
    return dataclasses.replace(both, edges=_BOTH_WAYS)


@jax.jit
def _rows_of(tree: PairPredictions, rows: Array) -> PairPredictions:
    return jax.tree.map(lambda x: x[rows], tree)


def static_regions(
    geometry: Geometry,
    flow: Float[Array, "E H W 2"],
    edges: Int[Array, "E 2"],
    tolerance: float,
    flow_known: Bool[Array, "E H W"] | None = None,
    valid: Bool[Array, "E"] | None = None,
) -> Bool[Array, "T H W"]:
    """Where the flow agrees with the cameras in at least half of a frame's pairs, (T, H, W) bool.

    Called from the host; it has no derivative.

    A pair agrees at a pixel if the sum of the absolute differences in x and y between flow and ego flow is below the
    tolerance (MonST3R, eq. 3). Pairs whose flow is unknown there do not vote; a pixel without votes is static.

    Args:
      geometry: result of the alignment.
      flow: (E, H, W, 2) pixels.
      edges: (E, 2).
      tolerance: pixels.
      flow_known: (E, H, W) bool; None: all of it.
      valid: (E,) bool, False for padding; None: all are valid.
    """
    counts = np.ones(len(edges), bool) if valid is None else np.asarray(valid)
    known = counts[:, None, None] & (True if flow_known is None else sharding.on_host(flow_known))
    known = np.broadcast_to(known, flow.shape[:3])
    mesh = sharding.mesh_of_rows(flow)
    edges, known = sharding.shard_rows((np.asarray(edges, np.int32), known), mesh)
    return _votes(geometry, flow, edges, jnp.float32(tolerance), known, mesh)


@jax.jit
def _add_pair(
    total, count, geometry: Geometry, flow: Array, flow_known: Array | None, rows: Array, frames: Array
) -> tuple[Array, Array]:
    """Adds the errors of both directions of one pair, two rows of the flow, to the sums of its frames."""
    flow = flow[rows]
    known = jnp.ones(flow.shape[:3], bool) if flow_known is None else flow_known[rows]
    error = _distance(geometry, flow, jnp.asarray(_BOTH_WAYS), order=2)
    low = jnp.min(error, axis=(1, 2), keepdims=True, where=known, initial=jnp.inf)
    high = jnp.max(error, axis=(1, 2), keepdims=True, where=known, initial=-jnp.inf)
    spread = high - low
    share = jnp.where(known & (spread > 0), (error - low) / jnp.where(spread > 0, spread, 1), 0)
    return total.at[frames].add(share), count.at[frames].add(known.astype(count.dtype))


@jax.jit
def _mean(total: Array, count: Array) -> Array:
    return total / jnp.maximum(count, 1)


@partial(jax.jit, static_argnames=("mesh",))
def _votes(geometry: Geometry, flow: Array, edges: Array, tolerance: Array, known: Array, mesh: Mesh | None) -> Array:
    def share(geometry: Geometry, edges: Array, flow: Array, known: Array) -> tuple[Array, Array]:
        def vote(carry: tuple[Array, Array], inputs: tuple[Array, Array, Array]) -> tuple[tuple[Array, Array], None]:
            agree, asked = carry
            edge, one_flow, one_known = inputs
            close = _distance(geometry, one_flow[None], edge[None], order=1)[0] < tolerance
            agree = agree.at[edge[0]].add((close & one_known).astype(jnp.int32))
            return (agree, asked.at[edge[0]].add(one_known.astype(jnp.int32))), None

        nobody = jnp.zeros(geometry.depth.shape, jnp.int32)
        return sharding.psum(jax.lax.scan(vote, (nobody, nobody), (edges, flow, known))[0], mesh)

    agree, asked = sharding.shard_map(share, mesh, (REPLICATED, ROWS, ROWS, ROWS), REPLICATED)(
        geometry, edges, flow, known
    )
    return 2 * agree >= asked


def _distance(geometry: Geometry, flow: Array, edges: Array, order: int) -> Array:
    """(B, H, W): norm, of the given order, of ego flow minus flow."""
    i, j = edges[:, 0], edges[:, 1]
    poses, matrices = geometry.world_from_cam, geometry.intrinsics
    j_from_i = se3.compose(se3.inverse(poses[j]), poses[i])
    expected = ego_flow(j_from_i, geometry.depth[i], matrices[i], matrices[j])
    difference = jnp.moveaxis(expected, 1, -1).reshape(flow.shape) - flow
    return jnp.sum(jnp.abs(difference), axis=-1) if order == 1 else se3.safe_norm(difference)
