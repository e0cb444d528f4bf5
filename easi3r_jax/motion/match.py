"""Motion from matching: tokens are matched between two frames and a camera is fitted; outliers are dynamic.

Matching is array code, in batches of pairs. RANSAC runs on the host, pair by pair.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from easi3r_jax.core import sharding
from easi3r_jax.core.arrays import Array, Bool, Float, Int
from easi3r_jax.core.geometry import camera, se3
from easi3r_jax.core.geometry.focal import weiszfeld_focal
from easi3r_jax.core.geometry.pnp import solve_pnp
from easi3r_jax.core.types import MotionResidual, PairPredictions
from easi3r_jax.motion.partners import mean_over_partners

# Temperature of the softmax over cosine similarities.
_TEMPERATURE = 0.05
# Largest distance, in tokens, between a token and the match of its match (mutual consistency).
_MAX_RETURN_DISTANCE = 1
# Pairs matched at a time: a batch's similarities are in memory, (batch, N, N).
_BATCH = 8
_RANSAC_ITERATIONS = 100
# Inlier threshold of RANSAC, in patches.
_MAX_ERROR = 0.5


def match_residual(
    predictions: PairPredictions, features: Float[Array, "T N C"], grid: tuple[int, int], *, seed: int = 0
) -> MotionResidual:
    """Distance of a token's projection into the partner's camera from its match. Host code between two device calls.

    For frame i and partner j, the tokens of i are matched to those of j (`match_tokens`). RANSAC-PnP estimates camera j
    from the points of i in camera i (pair (i, j), means over patches) and the matched pixels of j, with an inlier
    threshold of half a patch. All matched points are projected into camera j. The residual is the distance from the
    matched pixel divided by the focal length (about the angle in radians), at most 1. A token's residual is the mean
    over the partners for which it has a match and PnP finds a camera.

    Args:
      predictions: of E pairs; a pair of a frame with itself is ignored.
      features: (T, N, C), from the encoder.
      grid: (h, w) tokens.
      seed: of RANSAC.

    Returns:
      Residuals in units of the focal length.
    """
    edges = np.asarray(predictions.edges)
    height, width = predictions.points_i.shape[1:3]
    patch = height // grid[0]
    positions, matched = match_tokens(jnp.asarray(features), jnp.asarray(edges), grid)
    found = (*_points_and_focals(predictions.points_i, grid), positions, matched)
    points, focals, positions, matched = sharding.on_host(found)
    points, matched = np.asarray(points, np.float64), np.array(matched)
    pixels = np.asarray(positions, np.float64) * patch + (patch - 1) / 2  # patch centres in pixels
    focals = frame_focals(np.asarray(focals, np.float64), edges, len(features))
    centre = np.asarray(camera.default_principal_point(height, width), np.float64)

    residual = np.ones(matched.shape)
    matched &= (edges[:, 0] != edges[:, 1])[:, None] & np.isfinite(points).all(-1)
    for e, (_, j) in enumerate(edges):
        chosen = matched[e]
        focal = focals[j]
        matrix = np.array([[focal, 0, centre[0]], [0, focal, centre[1]], [0, 0, 1]])
        pose = solve_pnp(
            points[e, chosen],
            pixels[e, chosen],
            matrix,
            iterations=_RANSAC_ITERATIONS,
            max_error=_MAX_ERROR * patch,
            seed=seed,
        )
        if pose is None:
            matched[e] = False
            continue
        in_camera = (points[e, chosen] - pose[:3, 3]) @ pose[:3, :3]
        in_front = in_camera[:, 2] > 0  # a point behind the camera gets the largest residual
        rays = in_camera[:, :2] / np.where(in_front, in_camera[:, 2], 1)[:, None]
        distance = np.linalg.norm(rays - (pixels[e, chosen] - centre) / focal, axis=-1)
        residual[e, chosen] = np.where(in_front, np.minimum(distance, 1), 1)
    residual, matched = sharding.agreed((residual, matched), sharding.mesh_of(predictions))
    shape = (len(edges), *grid)
    return _mean_over_partners(
        jnp.asarray(residual.reshape(shape), jnp.float32),
        jnp.asarray(matched.reshape(shape)),
        jnp.asarray(edges),
        len(features),
    )


@partial(jax.jit, static_argnames=("grid",))
def match_tokens(
    features: Float[Array, "T N C"], edges: Int[Array, "E 2"], grid: tuple[int, int]
) -> tuple[Float[Array, "E N 2"], Bool[Array, "E N"]]:
    """Matches the tokens of frame i to those of frame j, for every pair.

    Features are compared by cosine similarity, after the clip's mean feature is subtracted: a part common to all tokens
    carries no information. The best token of j is refined by a softmax over it and its eight neighbours. A match is
    valid if the best token's own best token in i is the starting token or one of its neighbours.

    Args:
      features: (T, N, C).
      edges: (E, 2) int.
      grid: (h, w).

    Returns:
      (E, N, 2) float32 positions (x, y) in tokens of frame j, (0, 0) at the centre of the first one; (E, N) bool, which
      matches are valid.
    """
    features = features.astype(jnp.float32)
    features = features - jnp.mean(features, axis=(0, 1), keepdims=True)
    norms = se3.safe_norm(features)[..., None]
    features = features / jnp.maximum(norms, jnp.finfo(jnp.float32).tiny)
    height, width = grid
    places = np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1).reshape(-1, 2).astype(np.int32)
    steps = np.stack(np.meshgrid([-1, 0, 1], [-1, 0, 1]), axis=-1).reshape(-1, 2).astype(np.int32)

    def of_pair(edge: Array) -> tuple[Array, Array]:
        similarity = jnp.matmul(features[edge[0]], features[edge[1]].T, precision=jax.lax.Precision.HIGHEST)
        best, back = jnp.argmax(similarity, axis=1), jnp.argmax(similarity, axis=0)
        around = jnp.asarray(places)[best][:, None] + steps[None]  # (N, 9, 2)
        inside = jnp.all((around >= 0) & (around < np.array([width, height], np.int32)[None, None]), axis=-1)
        index = jnp.where(inside, around[..., 1] * width + around[..., 0], 0)
        values = jnp.where(inside, jnp.take_along_axis(similarity, index, axis=1), -jnp.inf)
        weights = jax.nn.softmax(values / _TEMPERATURE, axis=-1)
        position = jnp.sum(weights[..., None] * around.astype(jnp.float32), axis=1)
        away = jnp.max(jnp.abs(jnp.asarray(places)[back[best]] - places), axis=-1)
        return position, away <= _MAX_RETURN_DISTANCE

    return jax.lax.map(of_pair, edges, batch_size=_BATCH)


def frame_focals(
    focals: Float[np.ndarray, "E"], edges: Int[np.ndarray, "E 2"], num_frames: int
) -> Float[np.ndarray, "T"]:
    """(T,) focal length of each frame: the median over the pairs in which it is i, or over all pairs if it never is."""
    chosen = edges[:, 0][None] == np.arange(num_frames)[:, None]
    return np.array([np.median(focals[pairs] if pairs.any() else focals) for pairs in chosen])


@partial(jax.jit, static_argnames=("grid",))
def _points_and_focals(points_i: Array, grid: tuple[int, int]) -> tuple[Array, Array]:
    """(E, N, 3) means of the points over patches, and (E,) focal lengths in pixels."""
    num_edges, height, width, _ = points_i.shape
    patches = points_i.reshape(num_edges, grid[0], height // grid[0], grid[1], width // grid[1], 3)
    principal_point = camera.default_principal_point(height, width)
    focals = jax.lax.map(lambda x: weiszfeld_focal(x.astype(jnp.float32), principal_point), points_i, batch_size=_BATCH)
    return jnp.mean(patches, axis=(2, 4)).reshape(num_edges, -1, 3), focals


_mean_over_partners = jax.jit(mean_over_partners, static_argnames=("num_frames",))
