"""Initial 3D Gaussians: `gaussians.ply`, in the format of 3D Gaussian splatting (Kerbl et al., SIGGRAPH 2023).

Viewers show it, and trainings start from it: a Gaussian per point, round, as large as the distance to its neighbours,
of the point's colour, and the more opaque the more confident it is. Properties and their order are the released
format's: positions, normals (0), the first spherical harmonic of each colour, the logit of the opacity, logarithms of
three scales, and a quaternion, scalar first. There are no higher harmonics: readers take their number from the file.

    gaussians.ply       static points
    dynamic/NNNNN.ply   dynamic points of each frame

Written here rather than with a library: it is a header and one packed array (see `ply.py`).
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import numpy as np

from easi3r_jax.core.arrays import Float, Int
from easi3r_jax.core.errors import InputError
from easi3r_jax.core.types import Scene4D
from easi3r_jax.io.export.pointcloud import (
    Points,
    moving_pixels,
    one_per_voxel,
    pixel_points,
    static_pixels,
    voxel_keys,
)

PROPERTIES = (
    *("x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2", "opacity"),
    *("scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"),
)
# The spherical harmonic of degree 0, 1 / (2 sqrt(pi)); colour = 0.5 + this * f_dc.
_SH0 = 0.28209479177387814
# Scale of a Gaussian: the root mean square distance of this many neighbours.
_NEIGHBOURS = 3
# Isolated points are no larger than this many times the median: they would hide everything.
_LARGEST = 10.0
# Opacity of the least and of the most confident points.
_OPACITY = (0.1, 0.95)


@dataclasses.dataclass(frozen=True, eq=False)
class Gaussians:
    """P Gaussians.

    Attributes:
      xyz: (P, 3) float32, world units.
      rgb: (P, 3) float32 in [0, 1].
      scale: (P,) float32, standard deviation in world units.
      opacity: (P,) float32 in (0, 1).
    """

    xyz: Float[np.ndarray, "P 3"]
    rgb: Float[np.ndarray, "P 3"]
    scale: Float[np.ndarray, "P"]
    opacity: Float[np.ndarray, "P"]


def initial_gaussians(
    scene: Scene4D, *, frame: int | None = None, min_confidence: float = 1.1, max_points: int = 200_000, seed: int = 0
) -> Gaussians:
    """A Gaussian for each static point of a scene, or for each dynamic one of a frame.

    Args:
      scene: host arrays.
      frame: number of the frame whose dynamic points are wanted; None: the static points of all frames, one per voxel.
      min_confidence: of static points.
      max_points: maximum number; above it a seeded random sample is kept.
      seed: for sampling.

    Raises:
      InputError: there are no such points.
    """
    parts, keys, trust = [], [], []
    for t in range(len(scene.depth)) if frame is None else [frame]:
        chosen = static_pixels(scene, t, min_confidence) if frame is None else moving_pixels(scene, t)
        parts.append(pixel_points(scene, t, chosen))
        keys.append(voxel_keys(scene, t, chosen, parts[-1].xyz))
        trust.append(np.asarray(scene.confidence[t])[chosen])
    points = Points(np.concatenate([p.xyz for p in parts]), np.concatenate([p.rgb for p in parts]))
    if not len(points):
        which = "static pixel" if frame is None else f"dynamic pixel of frame {frame}"
        raise InputError(
            f"No Gaussians: no {which} has a confidence of at least {min_confidence:g} (--cloud_confidence)."
            if frame is None
            else f"No Gaussians: there is no {which}."
        )
    confidence = np.concatenate(trust)
    if frame is None:
        points, confidence = one_per_voxel(points, np.concatenate(keys), confidence)
    if len(points) > max_points:
        kept = np.sort(np.random.default_rng(seed).choice(len(points), max_points, replace=False))
        points, confidence = points[kept], confidence[kept]
    return Gaussians(points.xyz, points.rgb.astype(np.float32) / 255, _scales(points.xyz), _opacities(confidence))


def write_gaussians(path: pathlib.Path, gaussians: Gaussians) -> None:
    """Writes a binary PLY with `PROPERTIES`, all float32."""
    rows = np.zeros((len(gaussians.xyz), len(PROPERTIES)), "<f4")
    rows[:, 0:3] = gaussians.xyz
    rows[:, 6:9] = (gaussians.rgb - 0.5) / _SH0
    rows[:, 9] = np.log(gaussians.opacity / (1 - gaussians.opacity))
    rows[:, 10:13] = np.log(gaussians.scale)[:, None]
    rows[:, 13] = 1
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(rows)}"]
    header += [f"property float {name}" for name in PROPERTIES]
    path.write_bytes("\n".join([*header, "end_header\n"]).encode("ascii") + rows.tobytes())


def write_gaussian_export(folder: pathlib.Path, scene: Scene4D, numbers: Int[np.ndarray, "T"], **options: Any) -> None:
    """Writes the export: static Gaussians if there are any, and the dynamic ones of each frame that has some.

    Args:
      folder: an existing, empty folder.
      scene: host arrays.
      numbers: (T,) of the frames, for file names.
      options: `min_confidence` and `max_points`.

    Raises:
      InputError: the scene has no points at all.
    """
    dynamic = [t for t in range(len(numbers)) if moving_pixels(scene, t).any()]
    try:
        write_gaussians(folder / "gaussians.ply", initial_gaussians(scene, **options))
    except InputError:
        if not dynamic:
            raise
    for t in dynamic:
        (folder / "dynamic").mkdir(exist_ok=True)
        write_gaussians(folder / "dynamic" / f"{numbers[t]:05d}.ply", initial_gaussians(scene, frame=t, **options))


def _scales(xyz: np.ndarray) -> np.ndarray:
    """(P,) root mean square distance of the nearest neighbours, without extremes."""
    from scipy.spatial import KDTree

    if len(xyz) == 1:
        return np.full(1, 0.01, np.float32)
    count = min(_NEIGHBOURS, len(xyz) - 1)
    distance = KDTree(xyz).query(xyz, k=count + 1)[0][:, 1:]
    size = np.sqrt(np.square(distance).mean(1))
    usual = float(np.median(size)) or 0.01
    return np.clip(size, usual / 100, usual * _LARGEST).astype(np.float32)


def _opacities(confidence: np.ndarray) -> np.ndarray:
    """(P,) by rank: confidence has no unit, and another range in each network."""
    low, high = _OPACITY
    values, index = np.unique(confidence, return_inverse=True)
    rank = index / max(len(values) - 1, 1) if len(values) > 1 else np.ones(len(confidence))
    return (low + (high - low) * rank).astype(np.float32)
