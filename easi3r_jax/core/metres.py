"""Metres: the factor between a result's world and known lengths, and the result in metres."""

from __future__ import annotations

import dataclasses

import numpy as np

from easi3r_jax.core.arrays import Float
from easi3r_jax.core.errors import InputError
from easi3r_jax.core.types import Reconstruction

#: Static pixels below this confidence are not compared: the network's starts at 1, floating points have 0.
_MIN_CONFIDENCE = 1.1
#: Ratio of the largest and the smallest frame's scale above which the known depth disagrees with the scene.
MAX_SPREAD = 2.0


@dataclasses.dataclass(frozen=True, eq=False)
class MetricScale:
    """How long a unit of a result's world is.

    Attributes:
      factor: metres per world unit.
      per_frame: (T,) float64, the same from each frame alone; NaN where nothing is known.
      spread: largest by smallest of these; above `MAX_SPREAD` they disagree.
    """

    factor: float
    per_frame: Float[np.ndarray, "T"]
    spread: float

    @property
    def num_frames(self) -> int:
        """Number of frames with known depth."""
        return int(np.isfinite(self.per_frame).sum())

    @property
    def agrees(self) -> bool:
        """Whether the frames agree within a factor of two."""
        return self.spread <= MAX_SPREAD


def scale_from_depth(result: Reconstruction, depth: Float[np.ndarray, "T H W"]) -> MetricScale:
    """Metres per world unit from the known depth of some pixels of some frames.

    Of each frame it is the median ratio over its confident static pixels, and of the clip the median over frames, so
    that neither wrong pixels nor a wrong frame matter.

    Args:
      result: host arrays.
      depth: (T, H, W) z in metres; NaN, infinite or not positive where it is unknown.

    Raises:
      InputError: another shape, or no confident static pixel has a known depth.
    """
    scene = result.scene
    own, known = np.asarray(scene.depth), np.asarray(depth)
    if known.shape != own.shape:
        raise InputError(f"The known depth has shape {known.shape}, the scene {own.shape}: give a map per frame.")
    found = np.full(len(own), np.nan)
    for t in range(len(own)):
        used = np.asarray(scene.static_mask[t]) & (np.asarray(scene.confidence[t]) >= _MIN_CONFIDENCE)
        for values in (own[t], known[t]):
            used = used & np.isfinite(values) & (values > 0)
        if used.any():
            found[t] = np.median(known[t][used].astype(np.float64) / own[t][used])
    if not np.isfinite(found).any():
        raise InputError(
            "The known depth has no value at any confident static pixel, so it gives no scale: give depth of what does "
            "not move, in frames of this clip."
        )
    return MetricScale(float(np.nanmedian(found)), found, float(np.nanmax(found) / np.nanmin(found)))


def scale_from_length(result: Reconstruction, length: float, first: int = 0, last: int = -1) -> float:
    """Metres per world unit from the known distance between two cameras.

    Args:
      result: host arrays.
      length: in metres, > 0.
      first, last: the two frames' numbers, by default the first and the last one.

    Raises:
      InputError: the length is not positive, a frame does not exist, or the cameras are in one place.
    """
    centres = np.asarray(result.scene.world_from_cam, np.float64)[:, :3, 3]
    count = len(centres)
    if not (np.isfinite(length) and length > 0):
        raise InputError(f"A length of {length:g} metres gives no scale: it must be positive.")
    for frame in (first, last):
        if not -count <= frame < count:
            raise InputError(f"There is no frame {frame}: they are numbered from 0 to {count - 1}.")
    distance = float(np.linalg.norm(centres[last] - centres[first]))
    path = float(np.linalg.norm(np.diff(centres, axis=0), axis=1).sum())
    if distance <= 1e-3 * max(path, 1e-12):
        raise InputError(
            f"The cameras of frames {first % count} and {last % count} are in one place, so the distance between them "
            "gives no scale: name two that lie apart."
        )
    return length / distance


def in_metres(result: Reconstruction, factor: float) -> Reconstruction:
    """The same result in metres: cameras and depth are scaled, and `unit` is "metres".

        result = in_metres(result, scale_from_length(result, 1.5))

    Args:
      result: host arrays.
      factor: metres per unit of the result's world, > 0.

    Raises:
      InputError: a factor that is not positive.
    """
    if not (np.isfinite(factor) and factor > 0):
        raise InputError(f"{factor:g} metres per unit is not a scale: it must be positive.")
    scene, scale = result.scene, np.float32(factor)
    world_from_cam = np.array(scene.world_from_cam)
    world_from_cam[:, :3, 3] *= scale
    return dataclasses.replace(
        result,
        scene=dataclasses.replace(scene, world_from_cam=world_from_cam, depth=np.asarray(scene.depth) * scale),
        record={**result.record, "unit": "metres"},
    )
