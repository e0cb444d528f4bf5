"""Nearest-neighbour resampling of images to another pixel grid: values are never blended."""

from __future__ import annotations

import numpy as np

from easi3r_jax.core.arrays import Float, Shaped
from easi3r_jax.core.errors import InputError

# Ties go to the higher index, as in Pillow's NEAREST; single-precision matrices miss a tie by 1e-4. In a frame of 512
# pixels, a centre that is not a tie is at least 1 / 1024 away from one.
_HALF = 0.5 + 3e-4


def resample_nearest(
    array: Shaped[np.ndarray, "T H W *channels"],
    target_from_array: Float[np.ndarray, "3 3"],
    size: tuple[int, int],
    *,
    outside: bool | float | None = None,
) -> Shaped[np.ndarray, "T height width *channels"]:
    """Resamples images to another grid that is scaled and shifted, such as a crop's.

    `Frames.frame_from_source` maps ground-truth masks of the original size to the network's crop; its inverse maps
    predictions back to the original size.

    Args:
      array: (T, H, W, ...).
      target_from_array: (3, 3), maps homogeneous pixels (integers at pixel centres) of the array to those of the
        target; no rotation, no shear.
      size: (height, width) of the target.
      outside: value where the target lies outside the array; None: the nearest pixel's.

    Returns:
      (T, height, width, ...), with the array's dtype.

    Raises:
      InputError: the matrix rotates or shears.
    """
    array, matrix = np.asarray(array), np.asarray(target_from_array, np.float64)
    if (
        matrix.shape != (3, 3)
        or np.any(matrix[[0, 1, 2, 2], [1, 0, 0, 1]])
        or not (np.all(np.diag(matrix) > 0) and matrix[2, 2] == 1)
    ):
        raise InputError(
            "Resampling needs a matrix [[sx, 0, x], [0, sy, y], [0, 0, 1]] with sx, sy > 0, between the pixel grids."
        )
    array_from_target = np.linalg.inv(matrix)
    (rows, row_inside), (columns, column_inside) = (
        _nearest(size[0], array_from_target[1, 1], array_from_target[1, 2], array.shape[1]),
        _nearest(size[1], array_from_target[0, 0], array_from_target[0, 2], array.shape[2]),
    )
    result = array[:, rows][:, :, columns]
    if outside is not None:
        result[:, ~(row_inside[:, None] & column_inside)] = outside
    return result


def _nearest(count: int, scale: float, offset: float, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """Nearest index for each of `count` pixels along an axis, clipped to `limit`, and whether it was inside."""
    index = np.floor(np.arange(count) * scale + offset + _HALF).astype(int)
    return np.clip(index, 0, limit - 1), (index >= 0) & (index < limit)
