"""Rows of the conversion tables, and their changes of layout.

Source: a name in a released network's state dict. Target: a path in our network (see `easi3r_jax.models`). In a source,
"{}" stands for the number of a block. In our networks, blocks are stacked along a leading axis.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import cv2
import numpy as np

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Transform:
    """A change of layout.

    Attributes:
      write: writes a released array (the first argument) in our layout to the second one.
      undo: our array to the released one.
      their_shape: our shape to the released one.
    """

    write: Callable[[np.ndarray, np.ndarray], None]
    undo: Callable[[np.ndarray], np.ndarray]
    their_shape: Callable[[Shape], Shape]


def _their_patch_shape(shape: Shape) -> Shape:
    side = math.isqrt(shape[0] // 3)
    return (shape[1], 3, side, side)


def _their_patch(x: np.ndarray) -> np.ndarray:
    out, channels, *sides = _their_patch_shape(x.shape)
    return x.reshape(*sides, channels, out).transpose(3, 2, 0, 1)


def _rows_last(x: np.ndarray, out: np.ndarray) -> None:
    """(O, I) → (I, O). OpenCV transposes in blocks: eleven times as fast as NumPy for 4096x1024 on a CPU."""
    done = cv2.transpose(x, out)
    if done is not out:
        out[...] = done


def _kernel_last(x: np.ndarray, out: np.ndarray) -> None:
    """(O, I, y, x) → (y, x, I, O), whose first three axes `out` may have as one."""
    rows, columns = x.shape[0], x.shape[1]
    mixed = np.empty((x.size // rows, rows), np.float32)
    _rows_last(np.ascontiguousarray(x).reshape(rows, -1), mixed)
    out.reshape(-1, columns, rows)[...] = mixed.reshape(columns, -1, rows).swapaxes(0, 1)


def _assign(view: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray, np.ndarray], None]:
    def write(x: np.ndarray, out: np.ndarray) -> None:
        out[...] = view(x)

    return write


SAME = Transform(_assign(lambda x: x), lambda x: x, lambda s: s)
# (out, in) → (in, out)
LINEAR = Transform(_rows_last, lambda x: x.T, lambda s: (s[1], s[0]))
# OIHW → HWIO
CONV = Transform(_kernel_last, lambda x: x.transpose(3, 2, 0, 1), lambda s: (s[3], s[2], s[0], s[1]))
# A 1x1 convolution is a linear layer.
POINTWISE = Transform(
    lambda x, out: _rows_last(x[:, :, 0, 0], out), lambda x: x.T[:, :, None, None], lambda s: (s[1], s[0], 1, 1)
)
# IOHW → IHWO
TRANSPOSED = Transform(
    _assign(lambda x: x.transpose(0, 2, 3, 1)), lambda x: x.transpose(0, 3, 1, 2), lambda s: (s[0], s[3], s[1], s[2])
)
# OIHW → (y x channel, out)
PATCH = Transform(_kernel_last, _their_patch, _their_patch_shape)


@dataclasses.dataclass(frozen=True)
class Rule:
    """One row of the table.

    Attributes:
      source: name in the checkpoint, with "{}" for the number of a block.
      target: path in our network.
      transform: change of layout.
      alias: a second name under which the checkpoint may have the same tensor.
    """

    source: str
    target: str
    transform: Transform = SAME
    alias: str | None = None


def layer(source: str, target: str, transform: Transform) -> list[Rule]:
    """Weight and bias of a linear layer or a convolution."""
    return [Rule(f"{source}.weight", f"{target}.kernel", transform), Rule(f"{source}.bias", f"{target}.bias")]


def norm(source: str, target: str) -> list[Rule]:
    """Weight and bias of a LayerNorm."""
    return [Rule(f"{source}.weight", f"{target}.scale"), Rule(f"{source}.bias", f"{target}.bias")]
