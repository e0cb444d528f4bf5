"""Rows of the conversion tables, and their changes of layout.

Source: a name in a released network's state dict. Target: a path in our network (see `easi3r_jax.models`). In a source,
"{}" stands for the number of a block. In our networks, blocks are stacked along a leading axis.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Transform:
    """A change of layout.

    Attributes:
      apply: released array to ours (a view where possible).
      undo: our array to the released one.
      their_shape: our shape to the released one.
    """

    apply: Callable[[np.ndarray], np.ndarray]
    undo: Callable[[np.ndarray], np.ndarray]
    their_shape: Callable[[Shape], Shape]


def _their_patch_shape(shape: Shape) -> Shape:
    side = math.isqrt(shape[0] // 3)
    return (shape[1], 3, side, side)


def _their_patch(x: np.ndarray) -> np.ndarray:
    out, channels, *sides = _their_patch_shape(x.shape)
    return x.reshape(*sides, channels, out).transpose(3, 2, 0, 1)


SAME = Transform(lambda x: x, lambda x: x, lambda s: s)
# (out, in) → (in, out)
LINEAR = Transform(lambda x: x.T, lambda x: x.T, lambda s: (s[1], s[0]))
# OIHW → HWIO
CONV = Transform(
    lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1), lambda s: (s[3], s[2], s[0], s[1])
)
# A 1x1 convolution is a linear layer.
POINTWISE = Transform(lambda x: x[:, :, 0, 0].T, lambda x: x.T[:, :, None, None], lambda s: (s[1], s[0], 1, 1))
# IOHW → IHWO
TRANSPOSED = Transform(
    lambda x: x.transpose(0, 2, 3, 1), lambda x: x.transpose(0, 3, 1, 2), lambda s: (s[0], s[3], s[1], s[2])
)
# OIHW → (y x channel, out)
PATCH = Transform(lambda x: x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0]), _their_patch, _their_patch_shape)


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
