"""The images of an export's cameras: the network's frames, or the originals."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from easi3r_jax.core.geometry.grids import resample_nearest
from easi3r_jax.core.types import Scene4D


@dataclasses.dataclass(frozen=True, eq=False)
class Views:
    """Images of one size, one for each frame of a scene.

    Attributes:
      names: (T,) unique file names without white space, which separates the fields of COLMAP's text files.
      size: (height, width).
      image_from_frame: (3, 3), pixels of the frames to those of the images, integers at pixel centres in both;
        no rotation, no shear.
      write: writes image t to a path whose name is `names[t]`.
      used: (T, H, W) bool, pixels of the frames that the masks leave; None: those outside of dynamic regions.
    """

    names: Sequence[str]
    size: tuple[int, int]
    image_from_frame: np.ndarray
    write: Callable[[int, pathlib.Path], None]
    used: np.ndarray | None = None

    def intrinsics(self, scene: Scene4D) -> np.ndarray:
        """(T, 3, 3) float64, in pixels of the images."""
        return self.image_from_frame @ np.asarray(scene.intrinsics, np.float64)

    def write_images(self, folder: pathlib.Path) -> None:
        """Writes all of them into a new folder."""
        folder.mkdir()
        for t, name in enumerate(self.names):
            self.write(t, folder / name)

    def write_static_masks(self, folder: pathlib.Path, scene: Scene4D, name: Callable[[str], str]) -> None:
        """Writes masks as 8-bit images: 255 where static (or `used`), 0 elsewhere and outside the frames.

        Args:
          folder: created.
          scene: of these frames.
          name: maps an image's file name to its mask's.
        """
        folder.mkdir()
        used = np.logical_not(scene.dynamic_mask) if self.used is None else self.used
        for mask, image in zip(used, self.names, strict=True):
            still = resample_nearest(mask[None], self.image_from_frame, self.size, outside=False)[0]
            Image.fromarray(np.where(still, 255, 0).astype(np.uint8)).save(folder / name(image))


def frame_views(scene: Scene4D, numbers: Sequence[int] | np.ndarray) -> Views:
    """The network's frames, as `NNNNN.png`.

    Args:
      scene: its frames.
      numbers: (T,) their numbers in the result.
    """

    def write(t: int, path: pathlib.Path) -> None:
        Image.fromarray(np.asarray(scene.rgb[t])).save(path, compress_level=3)

    height, width = scene.depth.shape[1:]
    return Views([f"{number:05d}.png" for number in numbers], (height, width), np.eye(3), write)
