"""What optical flow says of motion: where the cameras do not explain it, and where they do (MonST3R, sec. 3.3).

Before the alignment, each pair's own cameras are held against its flow; after it, the clip's cameras.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from easi3r_jax.alignment.flow import ego_flow
from easi3r_jax.alignment.pair import two_frames
from easi3r_jax.core import sharding
from easi3r_jax.core.config import AlignConfig
from easi3r_jax.core.geometry import se3
from easi3r_jax.core.sharding import ROWS, WHOLE
from easi3r_jax.core.types import Array, Bool, Float, Geometry, Int, PairPredictions, Progress, silent

# Pairs between two reports.
_REPORT = 10
# A pair's own edges.
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
    """How far the flow is from what the camera's motion gives, (T, H, W) float32 in [0, 1].

    Each two frames are reconstructed in closed form (`two_frames`, each with its own focal length). The length of the
    difference between flow and ego flow is brought to 0..1 over the image, for each direction of each pair; a frame has
    the mean over its pairs. Pairs that come in one direction only say nothing; neither do a frame's pixels without
    known flow.

    Args:
      predictions: pairs in both directions.
      flow: (E, H, W, 2) pixels, from i to j.
      config: of PnP.
      flow_known: (E, H, W) bool; None: all of it.
      seed: of RANSAC.
      progress: called every few pairs, of the stage "flow masks".
    """
    edges, num_frames = predictions.clip_edges, predictions.total_frames
    number = {(int(i), int(j)): e for e, (i, j) in enumerate(edges)}
    pairs = [(e, number[j, i]) for (i, j), e in number.items() if i < j and (j, i) in number]
    size = flow.shape[1:3]
    total, count = jnp.zeros((num_frames, *size), jnp.float32), jnp.zeros((num_frames, *size), jnp.float32)
    if flow_known is None:
        flow_known = jnp.ones((1, *size), bool)
    config = dataclasses.replace(config, shared_focal=False)
    for done, pair in enumerate(pairs):  # PnP is host code: one pair after another
        if not done % _REPORT:
            progress("flow masks", done, len(pairs), "")
        there = np.asarray(pair)
        both = dataclasses.replace(predictions, valid=None, num_frames=2)
        both = jax.tree.map(lambda x, there=there: x[there], both)
        result = two_frames(dataclasses.replace(both, edges=_BOTH_WAYS), config, seed=seed)
        known = flow_known[there if len(flow_known) > 1 else np.zeros(2, int)]
        total, count = _add_pair(total, count, result, flow[there], known, edges[there, 0])
    progress("flow masks", len(pairs), len(pairs), "")
    return total / jnp.maximum(count, 1)


def static_regions(
    geometry: Geometry,
    flow: Float[Array, "E H W 2"],
    edges: Int[Array, "E 2"],
    tolerance: float,
    flow_known: Bool[Array, "E H W"] | None = None,
    valid: Bool[Array, "E"] | None = None,
) -> Bool[Array, "T H W"]:
    """Where the flow is that of the cameras, (T, H, W) bool: in half of a frame's pairs at least.

    A pair agrees at a pixel if the sum of the differences in x and y between flow and ego flow is below the tolerance
    (MonST3R, eq. 3). Pairs whose flow is not known there do not vote; without votes, a pixel counts as static.

    Args:
      geometry: of the alignment.
      flow: (E, H, W, 2) pixels.
      edges: (E, 2).
      tolerance: pixels.
      flow_known: (E, H, W) bool; None: all of it.
      valid: (E,) bool, False for padding; None: all pairs count.
    """
    counts = np.ones(len(edges), bool) if valid is None else np.asarray(valid)
    known = counts[:, None, None] & (True if flow_known is None else np.asarray(flow_known))
    known = np.broadcast_to(known, flow.shape[:3])
    mesh = sharding.mesh_of_rows(flow)
    edges, known = sharding.by_rows((np.asarray(edges, np.int32), known), mesh)
    return _votes(geometry, flow, edges, jnp.float32(tolerance), known, mesh)


@jax.jit
def _add_pair(total, count, geometry: Geometry, flow: Array, known: Array, frames: Array) -> tuple[Array, Array]:
    """Adds the errors of both directions of one pair to the sums of its frames."""
    error = _distance(geometry, flow, jnp.asarray(_BOTH_WAYS), order=2)
    low = jnp.min(error, axis=(1, 2), keepdims=True, where=known, initial=jnp.inf)
    high = jnp.max(error, axis=(1, 2), keepdims=True, where=known, initial=-jnp.inf)
    spread = high - low
    share = jnp.where(known & (spread > 0), (error - low) / jnp.where(spread > 0, spread, 1), 0)
    return total.at[frames].add(share), count.at[frames].add(known.astype(count.dtype))


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
        return sharding.summed(jax.lax.scan(vote, (nobody, nobody), (edges, flow, known))[0], mesh)

    agree, asked = sharding.divided(share, mesh, (WHOLE, ROWS, ROWS, ROWS), WHOLE)(geometry, edges, flow, known)
    return 2 * agree >= asked


def _distance(geometry: Geometry, flow: Array, edges: Array, order: int) -> Array:
    """(B, H, W): norm of the given order of flow less ego flow."""
    i, j = edges[:, 0], edges[:, 1]
    poses, matrices = geometry.world_from_cam, geometry.intrinsics
    j_from_i = se3.compose(se3.inverse(poses[j]), poses[i])
    expected = ego_flow(j_from_i, geometry.depth[i], matrices[i], matrices[j])
    difference = jnp.moveaxis(expected, 1, -1).reshape(flow.shape) - flow
    return jnp.sum(jnp.abs(difference), axis=-1) if order == 1 else se3.safe_norm(difference)
