"""Training data: pairs of views with depth and cameras, and the targets made from them."""

from __future__ import annotations

import jax.numpy as jnp

from easi3r_jax.core.arrays import Array, Bool, Float, Int, Shaped, UInt8, pytree_dataclass
from easi3r_jax.core.geometry import camera, se3


@pytree_dataclass
class ViewPairs:
    """B pairs of two views.

    Attributes:
      rgb: (B, 2, H, W, 3) uint8.
      depth: (B, 2, H, W) float32 z in the view's own camera; 0 where unknown.
      intrinsics: (B, 2, 3, 3) float32, pixels.
      world_from_cam: (B, 2, 4, 4) float32. Each view shows dynamic objects where they are at its own time.
    """

    rgb: UInt8[Array, "B 2 H W 3"]
    depth: Float[Array, "B 2 H W"]
    intrinsics: Float[Array, "B 2 3 3"]
    world_from_cam: Float[Array, "B 2 4 4"]


@pytree_dataclass
class Targets:
    """Ground truth for E directed pairs (i, j).

    Attributes:
      points_i, points_j: (E, H, W, 3) float32, the points of the pixels of each view, in camera *i*.
      valid_i, valid_j: (E, H, W) bool, where they are known.
    """

    points_i: Float[Array, "E H W 3"]
    points_j: Float[Array, "E H W 3"]
    valid_i: Bool[Array, "E H W"]
    valid_j: Bool[Array, "E H W"]


def both_ways(
    first: Shaped[Array, "B *rest"], second: Shaped[Array, "B *rest"]
) -> tuple[Shaped[Array, "2*B *rest"], Shaped[Array, "2*B *rest"]]:
    """From values of B first and second views to values of i and j of 2 B directed pairs: (1, 2), then (2, 1)."""
    return jnp.concatenate([first, second]), jnp.concatenate([second, first])


def edges_both_ways(pairs: int) -> Int[Array, "E 2"]:
    """(2 B, 2) int32 views (i, j) of the directed pairs of `both_ways`; view v of pair b has the number 2 b + v."""
    number = 2 * jnp.arange(pairs, dtype=jnp.int32)
    return jnp.stack(both_ways(number, number + 1), axis=1)


def targets_of(pairs: ViewPairs) -> Targets:
    """The point maps of both directions of every pair, 2 B in total (see `both_ways`)."""
    valid = pairs.depth > 0
    points = camera.unproject(pairs.depth, pairs.intrinsics)
    pose_i, pose_j = both_ways(pairs.world_from_cam[:, 0], pairs.world_from_cam[:, 1])
    points_i, points_j = both_ways(points[:, 0], points[:, 1])
    valid_i, valid_j = both_ways(valid[:, 0], valid[:, 1])
    points_j = se3.transform_points(se3.compose(se3.inverse(pose_i), pose_j), points_j)
    return Targets(points_i=points_i, points_j=points_j, valid_i=valid_i, valid_j=valid_j)
