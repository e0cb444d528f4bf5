"""How a data set's frame becomes a training view: a crop around the principal point, resized.

Pixels are integers at pixel centres (docs/conventions.md); an image's outer edges lie at -0.5 and W - 0.5.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from PIL import Image

from easi3r_jax.core.errors import InputError

# Beyond this the network would see the filter and not the image (as for `video.frame_geometry`).
MAX_ENLARGEMENT = 16


@dataclasses.dataclass(frozen=True)
class Crop:
    """A box of an image, resized. Sizes are (width, height).

    Attributes:
      source: size of the image.
      size: size of the result.
      corner: (x, y) of the box's top left corner, measured from that of the image; need not be whole pixels.
      step: pixels of the image per pixel of the result, the same in x and y.
    """

    source: tuple[int, int]
    size: tuple[int, int]
    corner: tuple[float, float]
    step: float

    @property
    def frame_from_source(self) -> np.ndarray:
        """(3, 3) float64, homogeneous pixels of the image to pixels of the result: edges go to edges."""
        matrix = np.eye(3)
        for axis in range(2):
            matrix[axis, axis] = 1 / self.step
            matrix[axis, 2] = (0.5 - self.corner[axis]) / self.step - 0.5
        return matrix

    def image(self, image: Image.Image) -> np.ndarray:
        """(H, W, 3) uint8. Lanczos when that shrinks, else bicubic, as the frames of a reconstruction are made."""
        edges = [(self.corner[axis], self.corner[axis] + self.step * self.size[axis]) for axis in range(2)]
        (left, right), (top, bottom) = (np.clip(edges[axis], 0, self.source[axis]) for axis in range(2))
        resampling = Image.Resampling.LANCZOS if self.step > 1 else Image.Resampling.BICUBIC
        return np.asarray(image.resize(self.size, resampling, box=(left, top, right, bottom)))

    def depth(self, depth: np.ndarray) -> np.ndarray:
        """(H, W) -> (H, W): that of the nearest pixel, since a mean over an edge lies where nothing is."""
        columns, rows = (
            np.clip(
                np.floor((np.arange(self.size[axis]) + 0.5) * self.step + self.corner[axis]).astype(int),
                0,
                self.source[axis] - 1,
            )
            for axis in range(2)
        )
        return depth[rows][:, columns]


def centred_crop(
    source: tuple[int, int], principal_point: np.ndarray, size: tuple[int, int], scale: float = 1.0
) -> Crop:
    """The crop of a shape that puts the principal point where DUSt3R's networks have theirs: at (W / 2, H / 2).

    Args:
      source: (width, height) of the image.
      principal_point: (x, y) in its pixels.
      size: (width, height) of the result.
      scale: side of the crop over that of the largest one there is, in (0, 1]: below 1 the field of view narrows.

    Raises:
      InputError: a principal point outside the image or so near to its edge that next to nothing is left.
    """
    # Distances from the principal point to the edges, in the image and in the result: none may reach further out.
    before = np.asarray(principal_point, np.float64) + 0.5
    after = np.asarray(source) - before
    target_before = np.asarray(size) / 2 + 0.5
    target_after = np.asarray(size) / 2 - 0.5
    step = scale * min((before / target_before).min(), (after / target_after).min())
    if not step * MAX_ENLARGEMENT >= 1:
        x, y = np.asarray(principal_point)
        raise InputError(
            f"no crop of {size[0]}x{size[1]} around the principal point ({x:g}, {y:g}) of an image of "
            f"{source[0]}x{source[1]} pixels: correct the intrinsics, or take larger images."
        )
    corner = before - step * target_before
    return Crop(source, size, (float(corner[0]), float(corner[1])), float(step))
