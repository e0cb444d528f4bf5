"""The interface of data sets to the sampler: sequences of frames with depth and cameras."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable

import numpy as np
from PIL import Image

from easi3r_jax.core.errors import InputError
from easi3r_jax.io.video.images import read_image

#: Depth in metres from which on metric data sets show sky: TartanAir's sphere (10 000 m), PointOdyssey's maximum.
SKY_DEPTH = 1000.0


@dataclasses.dataclass(frozen=True)
class View:
    """One frame of a data set.

    Attributes:
      image: upright RGB, 8 bit.
      depth: (H, W) float32 z in the camera; 0 where unknown.
      intrinsics: (3, 3) float64, in pixels of `image`, integers at pixel centres.
      world_from_cam: (4, 4) float64, OpenCV axes, as stored: it may be neither finite nor rigid.
    """

    image: Image.Image
    depth: np.ndarray
    intrinsics: np.ndarray
    world_from_cam: np.ndarray


@dataclasses.dataclass(frozen=True)
class Sequence:
    """Frames of one camera in temporal order, or photographs of one scene. Frames are read by `read`.

    Attributes:
      name: of the sequence in messages: its folder.
      num_frames: T, at least 2.
      image_path: path of the image of frame 0..T-1.
      read_depth: frame and (H, W) of its image -> (H, W) depth of any real dtype. Values that are not finite or not
        positive are unknown.
      read_camera: frame -> (3, 3) intrinsics and (4, 4) world_from_cam, see `View`.
      pairs: (P, 2) int, numbers of frames that form pairs; None: frames that are close in time do.
      together: the same name for sequences that show the same scene, as the cameras of one car do. They are held out
        together. Empty: no other sequence shows this scene.
    """

    name: str
    num_frames: int
    image_path: Callable[[int], pathlib.Path]
    read_depth: Callable[[int, tuple[int, int]], np.ndarray]
    read_camera: Callable[[int], tuple[np.ndarray, np.ndarray]]
    pairs: np.ndarray | None = None
    together: str = ""

    def __post_init__(self):
        if self.num_frames < 2:
            raise InputError(f"{self.name} has {self.num_frames} frames; a pair needs two. Remove it.")

    @property
    def scene(self) -> str:
        """Sequences of one scene are all trained on or all held out."""
        return self.together or self.name

    @property
    def num_pairs(self) -> int:
        """Weight of the sequence in sampling: the length of its list, or the number of neighbouring frames."""
        return self.num_frames - 1 if self.pairs is None else len(self.pairs)

    def read(self, frame: int) -> View:
        """Reads one frame.

        Raises:
          InputError: a file that is missing, damaged or of another shape than the image.
        """
        path = self.image_path(frame)
        image = read_image(path)
        shape = (image.height, image.width)
        with np.errstate(over="ignore", invalid="ignore"):  # values beyond float32 are unknown, like infinity
            depth = np.array(self.read_depth(frame, shape), np.float32)
        if depth.shape != shape:
            raise InputError(f"The depth of {path} has shape {depth.shape}, the image {shape}: resize one of them.")
        depth[~(np.isfinite(depth) & (depth > 0))] = 0
        intrinsics, world_from_cam = self.read_camera(frame)
        return View(image, depth, _checked(intrinsics, path), world_from_cam)


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A data set on disk.

    Attributes:
      name: of its layout, see `READERS`.
      root: its folder.
      sequences: at least one.
    """

    name: str
    root: pathlib.Path
    sequences: tuple[Sequence, ...]


def is_rigid(matrix: np.ndarray, tolerance: float = 1e-3) -> bool:
    """Whether a (4, 4) matrix is a finite rigid motion. The tolerance allows for poses written with few digits."""
    if not np.isfinite(matrix).all():
        return False
    rotation = matrix[:3, :3]
    return bool(
        abs(rotation @ rotation.T - np.eye(3)).max() < tolerance
        and np.linalg.det(rotation) > 0
        and abs(matrix[3] - (0, 0, 0, 1)).max() < tolerance
    )


def rigid_inverse(b_from_a: np.ndarray) -> np.ndarray:
    """(..., 4, 4) rigid motions -> their inverses. Matrices that are not rigid give matrices that are not rigid."""
    rotation = np.swapaxes(b_from_a[..., :3, :3], -1, -2)
    a_from_b = b_from_a.copy()
    a_from_b[..., :3, :3] = rotation
    a_from_b[..., :3, 3] = -np.einsum("...ij,...j->...i", rotation, b_from_a[..., :3, 3])
    return a_from_b


def without_sky(depth: np.ndarray) -> np.ndarray:
    """Metric depth with what lies at `SKY_DEPTH` or beyond set to unknown."""
    return np.where(depth < SKY_DEPTH, depth, 0)


def _checked(intrinsics: np.ndarray, path: pathlib.Path) -> np.ndarray:
    focal = np.diagonal(intrinsics)[:2]
    plain = np.diag([*focal, 1.0])
    plain[:2, 2] = intrinsics[:2, 2]
    if not (np.isfinite(intrinsics).all() and (focal > 0).all() and np.allclose(intrinsics, plain, atol=1e-6)):
        raise InputError(
            f"The intrinsics of {path} are {intrinsics.tolist()}, not [[fx, 0, cx], [0, fy, cy], [0, 0, 1]] in pixels: "
            "correct them."
        )
    return plain
