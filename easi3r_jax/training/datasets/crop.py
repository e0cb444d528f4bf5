"""From a data set's frame to a training view: a crop around the principal point, resized.

Pixels are integers at pixel centres (docs/conventions.md); an image's outer edges lie at -0.5 and W - 0.5.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from PIL import Image

from easi3r_jax.core.errors import InputError

# Beyond this, the network would see the filter instead of the image (as in `video.frame_geometry`).
MAX_ENLARGEMENT = 16


@dataclasses.dataclass(frozen=True)
class Crop:
    """A resized box of an image. Sizes are (width, height).

    Attributes:
      source: size of the image.
      size: size of the result.
      corner: (x, y) of the box's top left corner, relative to that of the image; may be fractional.
      step: pixels of the image per pixel of the result, the same in x and y.
    """

    source: tuple[int, int]
    size: tuple[int, int]
    corner: tuple[float, float]
    step: float

    @property
    def frame_from_source(self) -> np.ndarray:
        """(3, 3) float64, homogeneous pixels of the image to pixels of the result; edges map to edges."""
        matrix = np.eye(3)
        for axis in range(2):
            matrix[axis, axis] = 1 / self.step
            matrix[axis, 2] = (0.5 - self.corner[axis]) / self.step - 0.5
        return matrix

    def image(self, image: Image.Image) -> np.ndarray:
        """(H, W, 3) uint8. Lanczos when shrinking, else bicubic, as for the frames of a reconstruction."""
        edges = [(self.corner[axis], self.corner[axis] + self.step * self.size[axis]) for axis in range(2)]
        (left, right), (top, bottom) = (np.clip(edges[axis], 0, self.source[axis]) for axis in range(2))
        resampling = Image.Resampling.LANCZOS if self.step > 1 else Image.Resampling.BICUBIC
        return np.asarray(image.resize(self.size, resampling, box=(left, top, right, bottom)))

    def depth(self, depth: np.ndarray) -> np.ndarray:
        """(H, W) -> (H, W), nearest neighbour: the mean of two depths at an edge lies on no surface."""
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
    """The crop that puts the principal point at (W / 2, H / 2), as DUSt3R's networks assume.

    Args:
      source: (width, height) of the image.
      principal_point: (x, y) in its pixels.
      size: (width, height) of the result.
      scale: side of the crop relative to the largest possible one, in (0, 1]. Below 1, the field of view is smaller.

    Raises:
      InputError: a principal point outside the image, or so close to its edge that almost nothing is left.
    """
    # Distances from the principal point to the edges, in the image and in the result: the crop must stay inside.
    before = np.asarray(principal_point, np.float64) + 0.5
    after = np.asarray(source) - before
    target_before = np.asarray(size) / 2 + 0.5
    target_after = np.asarray(size) / 2 - 0.5
    step = scale * min((before / target_before).min(), (after / target_after).min())
    if not step * MAX_ENLARGEMENT >= 1:
        x, y = np.asarray(principal_point)
        raise InputError(
            f"no crop of {size[0]}x{size[1]} around the principal point ({x:g}, {y:g}) of an image of "
            f"{source[0]}x{source[1]} pixels: correct the intrinsics, or use larger images."
        )
    corner = before - step * target_before
    return Crop(source, size, (float(corner[0]), float(corner[1])), float(step))
