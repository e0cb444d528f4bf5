"""Truth and prediction on one grid of pixels: the nearest entry, never a mixture of two."""

from __future__ import annotations

import numpy as np

from easi3r_jax.core.errors import InputError

# A pixel halfway between two takes the higher, as Pillow's NEAREST; single-precision matrices miss the half by 1e-4. A
# centre that is no tie is at least 1 / 1024 from one in a frame of 512 pixels.
_HALF = 0.5 + 3e-4


def resample_nearest(
    array: np.ndarray,
    target_from_array: np.ndarray,
    size: tuple[int, int],
    *,
    outside: bool | float | None = None,
) -> np.ndarray:
    """Takes images to another grid that is scaled and moved, such as a crop's.

    With `Frames.frame_from_source`, true masks of the original size come to the network's crop; with its inverse,
    predictions come back to the original size.

    Args:
      array: (T, H, W, ...).
      target_from_array: (3, 3), homogeneous pixels (integers at pixel centres) of the array to those of the target; no
        rotation, no shear.
      size: (height, width) of the target.
      outside: what stands where the array has no pixel; None: its nearest one.

    Returns:
      (T, height, width, ...), of the array's type.

    Raises:
      InputError: a matrix that turns or shears.
    """
    array, matrix = np.asarray(array), np.asarray(target_from_array, np.float64)
    if (
        matrix.shape != (3, 3)
        or np.any(matrix[[0, 1, 2, 2], [1, 0, 0, 1]])
        or not (np.all(np.diag(matrix) > 0) and matrix[2, 2] == 1)
    ):
        raise InputError(
            "Pixels are taken from grid to grid by a matrix [[sx, 0, x], [0, sy, y], [0, 0, 1]], sx, sy > 0."
        )
    array_from_target = np.linalg.inv(matrix)
    (rows, row_there), (columns, column_there) = (
        _nearest(size[0], array_from_target[1, 1], array_from_target[1, 2], array.shape[1]),
        _nearest(size[1], array_from_target[0, 0], array_from_target[0, 2], array.shape[2]),
    )
    result = array[:, rows][:, :, columns]
    if outside is not None:
        result[:, ~(row_there[:, None] & column_there)] = outside
    return result


def _nearest(count: int, scale: float, offset: float, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """Nearest index for each of `count` pixels along an axis, and whether it is one of the `limit` there are."""
    index = np.floor(np.arange(count) * scale + offset + _HALF).astype(int)
    return np.clip(index, 0, limit - 1), (index >= 0) & (index < limit)
