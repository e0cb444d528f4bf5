"""How clusters of a frame's points differ from what the other frames show where they project (VGGT4D, as released).

Letters, beside those of `core.types`: P points of a frame, k clusters.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from easi3r_jax.core.arrays import Array, Bool, Float, Int
from easi3r_jax.core.geometry import camera, se3


class Views(NamedTuple):
    """What the frames of a clip show.

    Attributes:
      depth: (T, H, W) float32, z in the camera.
      masks: (T, H, W) bool, True where the frame is dynamic.
      colours: (T, H, W, 3) float32 in [0, 1].
      intrinsics: (T, 3, 3) float32, pixels.
    """

    depth: Float[Array, "T H W"]
    masks: Bool[Array, "T H W"]
    colours: Float[Array, "T H W 3"]
    intrinsics: Float[Array, "T 3 3"]


class Samples(NamedTuple):
    """How the views differ from a frame's points: sums over the views that show a static surface at or behind a point.

    Attributes:
      count: (P,) float32, number of these views.
      depth: (P,) float32, sum of the absolute differences in depth.
      colour: (P,) float32, sum over views and channels of the absolute differences in colour.
    """

    count: Float[Array, "P"]
    depth: Float[Array, "P"]
    colour: Float[Array, "P"]


class Losses(NamedTuple):
    """Mean difference of each cluster; infinite if too few views show its surroundings.

    Attributes:
      depth: (k,) float64, in the unit of the depth.
      colour: (k,) float64, summed over the channels.
      total: (k,) float64, depth + weight · colour.
    """

    depth: Float[np.ndarray, "k"]
    colour: Float[np.ndarray, "k"]
    total: Float[np.ndarray, "k"]


@jax.jit
def sample_views(
    points: Float[Array, "P 3"],
    colours: Float[Array, "P 3"],
    views: Views,
    views_from_cam: Float[Array, "T 4 4"],
    others: Bool[Array, "T"],
    margin: Float[Array, ""],
) -> Samples:
    """Compares a frame's points with what the other frames show where they project. Pure.

    A view counts for a point that projects into it, outside its mask, and lies in front of its surface, or less than
    `margin` behind. A point far in front counts, and differs much; one that is farther behind may be hidden. Depth is
    the nearest pixel's; mask and colour are bilinear.

    Args:
      points: (P, 3) in the camera of frame t.
      colours: (P, 3) in [0, 1].
      views: of all frames.
      views_from_cam: (T, 4, 4), from camera t to the views' cameras.
      others: (T,) bool, which views to compare with.
      margin: in the unit of the depth.
    """
    points, colours = jnp.asarray(points), jnp.asarray(colours)

    def add(sums: Samples, view: tuple[Views, Array, Array]) -> tuple[Samples, None]:
        shown, view_from_cam, counts = view
        pixels, z = camera.project(se3.transform_points(view_from_cam, points), shown.intrinsics)
        u, v = pixels[:, 0], pixels[:, 1]
        height, width = shown.depth.shape
        depth = _at(shown.depth[..., None], jnp.round(u), jnp.round(v))[:, 0]
        mask, shown_colours = _bilinear(shown.masks[..., None], u, v)[:, 0], _bilinear(shown.colours, u, v)
        inside = (u > 0) & (u < width) & (v > 0) & (v < height) & (z > 0)
        seen = counts & inside & (z - margin < depth) & (mask <= 0.5)
        colour = jnp.sum(jnp.abs(colours - shown_colours), axis=1)
        added = Samples(jnp.ones_like(z), jnp.abs(z - depth), colour)
        return jax.tree.map(lambda total, x: total + jnp.where(seen, x, 0), sums, added), None

    nothing = jnp.zeros(len(points), jnp.float32)
    start = Samples(nothing, nothing, nothing)
    return jax.lax.scan(add, start, (views, jnp.asarray(views_from_cam), jnp.asarray(others)))[0]


def cluster_losses(
    labels: Int[np.ndarray, "P"],
    samples: Samples,
    num_views: int,
    *,
    min_seen: float = 0.05,
    colour_weight: float = 1 / 3,
) -> Losses:
    """Mean differences of clusters of points from the other frames. On the host, in float64.

    Args:
      labels: (P,) int from 0 to k - 1; P at least 1.
      samples: of these points.
      num_views: number of other frames.
      min_seen: smallest share of a cluster's samples, points × views, that must count.
      colour_weight: of the colour in the total.
    """
    size = np.bincount(labels)
    count, depth, colour = (np.bincount(labels, np.asarray(x, np.float64)) for x in samples)
    known = (count > 0) & (count >= min_seen * size * num_views)
    means = [total / np.maximum(count, 1) for total in (depth, colour, depth + colour_weight * colour)]
    return Losses(*(np.where(known, mean, np.inf) for mean in means))


def _at(image: Array, u: Array, v: Array) -> Array:
    """(H, W, C) of any type at whole pixels (P,), 0 outside: (P, C) float32."""
    height, width = image.shape[:2]
    inside = (u >= 0) & (u < width) & (v >= 0) & (v < height)
    row, column = (jnp.where(inside, x, 0).astype(jnp.int32) for x in (v, u))
    return jnp.where(inside[:, None], image[row, column].astype(jnp.float32), 0)


def _bilinear(image: Array, u: Array, v: Array) -> Array:
    """As `_at`, bilinear between whole pixels."""
    left, top = jnp.floor(u), jnp.floor(v)
    right_share, bottom_share = (u - left)[:, None], (v - top)[:, None]
    upper = _at(image, left, top) * (1 - right_share) + _at(image, left + 1, top) * right_share
    lower = _at(image, left, top + 1) * (1 - right_share) + _at(image, left + 1, top + 1) * right_share
    return upper * (1 - bottom_share) + lower * bottom_share
