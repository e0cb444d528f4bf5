"""Selection of a scene's pixels: what is static, what is dynamic, or what masks mark.

A pixel that is not kept has depth and confidence 0, "none" in every file of a result: it becomes no point anywhere.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from easi3r_jax.core.arrays import Bool
from easi3r_jax.core.errors import InputError
from easi3r_jax.core.types import Reconstruction, Scene4D

#: Words for what is kept; masks are the other possibility.
KINDS = ("all", "static", "dynamic")


def kept_pixels(scene: Scene4D, keep: str | Bool[np.ndarray, "T H W"]) -> Bool[np.ndarray, "T H W"] | None:
    """The pixels that are kept.

    Args:
      scene: host arrays.
      keep: "all", "static" (all but dynamic regions), "dynamic" (these only), or masks, True where a pixel is kept.

    Returns:
      (T, H, W) bool; None for "all".

    Raises:
      InputError: nothing would be kept, or masks of another shape.
    """
    dynamic = np.asarray(scene.dynamic_mask)
    if isinstance(keep, str):
        if keep not in KINDS:
            raise InputError(f"What is kept is {', '.join(KINDS)}, or masks; not {keep!r}.")
        if keep == "all":
            return None
        kept = dynamic if keep == "dynamic" else ~dynamic
    else:
        kept = np.asarray(keep, bool)
        if kept.shape != dynamic.shape:
            raise InputError(f"Masks of shape {kept.shape} for a scene of {dynamic.shape}: give one per frame.")
    if not kept.any():
        why = f"the scene has no {keep} pixel" if isinstance(keep, str) else "the masks mark no pixel"
        raise InputError(f"Nothing would be kept: {why}; keep all of it, or give other masks.")
    return kept


def only(scene: Scene4D, kept: Bool[np.ndarray, "T H W"] | None) -> Scene4D:
    """A scene without the pixels that are not kept: their depth and confidence are 0. None keeps all."""
    if kept is None:
        return scene
    return dataclasses.replace(
        scene,
        depth=np.where(kept, scene.depth, np.float32(0)),
        confidence=np.where(kept, scene.confidence, np.float32(0)),
    )


def keep_points(result: Reconstruction, keep: str | Bool[np.ndarray, "T H W"]) -> Reconstruction:
    """A result restricted to some of its pixels, to be shown or exported; cameras, images and masks stay.

        only_what_moves = keep_points(result, "dynamic")

    Args:
      result: host arrays.
      keep: "all", "static" (all but dynamic regions), "dynamic" (these only), or masks, True where a pixel is kept.

    Returns:
      the result; depth and confidence are 0, "none", where a pixel is not kept.

    Raises:
      InputError: nothing would be kept, or masks of another shape.
    """
    return dataclasses.replace(result, scene=only(result.scene, kept_pixels(result.scene, keep)))
