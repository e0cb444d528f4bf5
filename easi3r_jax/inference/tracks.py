"""Points followed over time, in 3D: flow is chained from frame to frame, checked both ways, and lifted with the depth.

A static point stays where it is in the world, so nothing drifts: it is visible where its projection has its depth. A
point of a dynamic region follows the flow between neighbouring frames; where the flow does not hold (its way back leads
elsewhere) or no depth near its target continues the surface, it is lost, and stays where it was seen last.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from easi3r_jax.core.arrays import Bool, Float, Int
from easi3r_jax.core.errors import InputError
from easi3r_jax.core.geometry import camera
from easi3r_jax.core.types import Reconstruction, Scene4D
from easi3r_jax.inference.dense_flow import dense_flow, returns

#: Frames in which points start, evenly spaced: what appears later is followed, too.
QUERY_FRAMES = 3
# Depths that differ relatively by less than this belong to one surface; from one frame to the next, a moving one may
# come nearer.
_SAME, _CONTINUED = 0.05, 0.15
# Pixels within which flow must lead back, where its source does not say where it holds: as of `dense_flow`.
_RETURNS = 1.0


@dataclasses.dataclass(frozen=True, eq=False)
class Tracks:
    """N points over T frames.

    Attributes:
      xyz: (T, N, 3) float32, world coordinates; the last known ones where a dynamic point is lost.
      xy: (T, N, 2) float32, pixels of the frames.
      visible: (T, N) bool.
      query: (N,) int32, the frame in which each point starts.
      dynamic: (N,) bool, whether it starts outside of static regions.
    """

    xyz: Float[np.ndarray, "T N 3"]
    xy: Float[np.ndarray, "T N 2"]
    visible: Bool[np.ndarray, "T N"]
    query: Int[np.ndarray, "N"]
    dynamic: Bool[np.ndarray, "N"]


def track_points(result: Reconstruction, count: int, *, flow: Callable[..., Any] = dense_flow, seed: int = 0) -> Tracks:
    """Follows points of a reconstruction over all frames, forwards and backwards.

    Args:
      result: host arrays.
      count: number of points, at random pixels of the first, the middle and the last frame.
      flow: source of optical flow, as `reconstruct` takes it; asked for both directions of neighbouring frames. If it
        does not say where its flow holds (a network's), that is where it leads back to its start.
      seed: of the pixels.

    Raises:
      InputError: there are not that many pixels with depth.
    """
    scene = result.scene
    num_frames = len(scene.depth)
    starts = np.unique(np.linspace(0, num_frames - 1, min(QUERY_FRAMES, num_frames)).astype(int))
    query, pixels = _queries(scene, starts, count, seed)
    edges = np.array([[t, t + step] for step in (1, -1) for t in range(num_frames) if 0 <= t + step < num_frames])
    edges = edges.astype(np.int32).reshape(-1, 2)
    moves = _moves(result, edges, flow) if len(edges) else {}

    z = np.asarray(scene.depth)[query, pixels[:, 1], pixels[:, 0]].astype(np.float64)
    dynamic = ~np.asarray(scene.static_mask)[query, pixels[:, 1], pixels[:, 0]]
    xyz, xy = np.zeros((num_frames, count, 3)), np.zeros((num_frames, count, 2))
    visible = np.zeros((num_frames, count), bool)
    for start in starts:
        own = np.flatnonzero(query == start)
        first = _lifted(scene, start, pixels[own].astype(np.float64), z[own])
        still, moving = own[~dynamic[own]], own[dynamic[own]]
        for t in range(num_frames):
            xyz[t, still] = first[~dynamic[own]]
            xy[t, still], visible[t, still] = _seen(scene, t, xyz[t, still])
        xyz[start, moving], xy[start, moving], visible[start, moving] = first[dynamic[own]], pixels[moving], True
        for step in (1, -1):
            at, depth = pixels[moving].astype(np.float64), z[moving]
            alive, place = np.ones(len(moving), bool), xyz[start, moving].copy()
            for t in range(start, num_frames - 1 if step > 0 else 0, step):
                at, depth, alive = _followed(scene, t + step, at, depth, alive, *moves[t, t + step])
                place[alive] = _lifted(scene, t + step, at[alive], depth[alive])
                xyz[t + step, moving], visible[t + step, moving] = place, alive
                xy[t + step, moving] = np.where(alive[:, None], at, _projected(scene, t + step, place)[0])
    return Tracks(
        xyz=xyz.astype(np.float32),
        xy=xy.astype(np.float32),
        visible=visible,
        query=query.astype(np.int32),
        dynamic=dynamic,
    )


def _moves(
    result: Reconstruction, edges: np.ndarray, flow: Callable[..., Any]
) -> dict[tuple[int, int], tuple[np.ndarray, np.ndarray]]:
    """Pair of frames -> (H, W, 2) flow and (H, W) where it holds. The pairs have both directions."""
    values, known = flow(result.frames, edges)
    moved = {(i, j): np.asarray(value, np.float32) for (i, j), value in zip(edges.tolist(), values, strict=True)}
    if known is None:
        return {(i, j): (value, returns(value, moved[j, i], _RETURNS)) for (i, j), value in moved.items()}
    return {edge: (moved[edge], np.asarray(holds)) for edge, holds in zip(moved, known, strict=True)}


def check_count(count: int, shape: tuple[int, ...]) -> None:
    """Refuses more tracks than pixels.

    Args:
      count: number of tracks.
      shape: (T, H, W, ...) of the frames.

    Raises:
      InputError: there are more.
    """
    most = min(QUERY_FRAMES, shape[0]) * shape[1] * shape[2]
    if count > most:
        raise InputError(f"{count} tracks of frames with {most} pixels to start from: at most that many.")


def _queries(scene: Scene4D, starts: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(N,) frames and (N, 2) pixels (x, y), equally many of each frame as far as they have pixels with depth."""
    check_count(count, scene.depth.shape)
    if count < 1:
        raise InputError(f"{count} tracks: at least one is needed.")
    rng = np.random.default_rng(seed)
    found = []
    for start in starts:
        depth = np.asarray(scene.depth[start])
        places = np.argwhere(np.isfinite(depth) & (depth > 0))[:, ::-1]
        places = places[rng.permutation(len(places))]
        found.append(np.column_stack([np.arange(len(places)), np.full(len(places), start), places]))
    rows = np.concatenate(found)
    if len(rows) < count:
        raise InputError(f"{count} tracks of frames with {len(rows)} pixels with depth to start from: ask for fewer.")
    rows = rows[np.argsort(rows[:, 0], kind="stable")][:count]
    rows = rows[np.argsort(rows[:, 1], kind="stable")]
    return rows[:, 1], rows[:, 2:]


def _lifted(scene: Scene4D, t: int, xy: np.ndarray, z: np.ndarray) -> np.ndarray:
    """(P, 3) world points of (P, 2) pixels with (P,) depths."""
    pose = np.asarray(scene.world_from_cam[t], np.float64)
    rays = camera.rays(xy, np.asarray(scene.intrinsics[t], np.float64))
    return (rays * z[:, None]) @ pose[:3, :3].T + pose[:3, 3]


def _projected(scene: Scene4D, t: int, xyz: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    pose = np.asarray(scene.world_from_cam[t], np.float64)
    xy, z = camera.project((xyz - pose[:3, 3]) @ pose[:3, :3], np.asarray(scene.intrinsics[t], np.float64))
    return np.where(z[:, None] > 0, xy, -1e6), z


def _seen(scene: Scene4D, t: int, xyz: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(P, 2) pixels of static points, and whether the frame has their depth there."""
    xy, z = _projected(scene, t, xyz)
    _, found = _depth_at(np.asarray(scene.depth[t]), xy, z, _SAME)
    return xy, found


def _followed(
    scene: Scene4D, t: int, xy: np.ndarray, z: np.ndarray, alive: np.ndarray, flow: np.ndarray, known: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions, depths and whether they are seen in frame t, of points in its neighbour."""
    (rows, columns), weights, inside = _corners(xy, known.shape)
    holds = known[rows, columns]
    total = (weights * holds).sum(0)
    alive = alive & inside & (total > 0.5)
    step = ((weights * holds)[..., None] * flow[rows, columns]).sum(0) / np.maximum(total, 1e-9)[:, None]
    xy = np.where(alive[:, None], xy + step, xy)
    depth, found = _depth_at(np.asarray(scene.depth[t]), xy, z, _CONTINUED)
    alive = alive & found
    return xy, np.where(alive, depth, z), alive


def _corners(xy: np.ndarray, size: tuple[int, ...]) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray, np.ndarray]:
    """The four pixels around P places: (rows, columns) (4, P), bilinear weights (4, P), whether inside (P,)."""
    height, width = size
    inside = np.all((xy > -0.5) & (xy < [width - 0.5, height - 0.5]), axis=1)
    xy = np.clip(np.where(inside[:, None], xy, 0), 0, [width - 1, height - 1])
    low = np.floor(xy).astype(int)
    part = (xy - low).T
    columns, rows = (
        np.minimum(low[:, 0] + [[0], [1], [0], [1]], width - 1),
        np.minimum(low[:, 1] + [[0], [0], [1], [1]], height - 1),
    )
    weights = np.stack([(1 - part[0]) * (1 - part[1]), part[0] * (1 - part[1]), (1 - part[0]) * part[1], part.prod(0)])
    return (rows, columns), weights, inside


def _depth_at(depth: np.ndarray, xy: np.ndarray, z: np.ndarray, tolerance: float) -> tuple[np.ndarray, np.ndarray]:
    """(P,) depth at (P, 2) pixels of the surface whose depth is near z, and whether there is one."""
    (rows, columns), weights, inside = _corners(xy, depth.shape)
    values = depth[rows, columns].astype(np.float64)
    with np.errstate(invalid="ignore"):
        same = (values > 0) & (np.abs(values - z) <= tolerance * np.abs(z))
    weights = (weights + 1e-6) * same
    inverse = (weights / np.where(same, values, 1)).sum(0) / np.maximum(weights.sum(0), 1e-12)
    found = inside & same.any(0) & (z > 0)
    return np.divide(1, inverse, out=np.array(z), where=found), found
