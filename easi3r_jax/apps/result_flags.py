"""Flags on what is made of a result: the points of its clouds, what is kept, exports."""

from __future__ import annotations

import pathlib

import numpy as np

from easi3r_jax.apps import cli
from easi3r_jax.core.errors import ConfigError, InputError
from easi3r_jax.core.types import Frames, Reconstruction, Scene4D
from easi3r_jax.io import export, remote
from easi3r_jax.io.export.selection import KINDS, kept_pixels
from easi3r_jax.io.priors.masks import load_masks


class KeepFlag:
    """`--keep`, added to a group of a program's flags."""

    def __init__(self, group: cli.Group):
        self._flag = group.string(
            "keep",
            "all",
            "Points that are exported and shown: all, static (without dynamic regions), dynamic (these only), or a "
            "folder of masks that mark what is kept.",
        )

    @property
    def value(self) -> str:
        """As typed."""
        return self._flag.value

    def check(self) -> None:
        """Refuses a folder that does not exist, before the work.

        Raises:
          ConfigError: neither one of the words nor a folder.
        """
        known = self.value in KINDS or remote.is_address(self.value)
        if not known and not pathlib.Path(self.value).expanduser().is_dir():
            raise ConfigError(f"--keep={self.value}: it must be {', '.join(KINDS)}, or a folder of masks.")

    def masks(self, frames: Frames) -> np.ndarray | None:
        """(T, H, W) bool, the masks of the folder that the flag names; None if it names none.

        Raises:
          InputError: masks that do not fit the clip, or mark nothing.
        """
        if self.value in KINDS:
            return None
        place = pathlib.Path(remote.local(self.value)).expanduser()
        # A result does not say whether reading stopped early: its source may be longer.
        masks = load_masks(place, frames, stopped_early=True, marked="to be kept")
        if not masks.any():
            raise InputError(f"{place}: the masks mark no pixel, so nothing would be kept: give other ones.")
        return masks

    def pixels(self, result: Reconstruction) -> np.ndarray | None:
        """(T, H, W) bool, the pixels of a result that are kept; None for all.

        Raises:
          InputError: nothing would be kept, or masks that do not fit the clip.
        """
        masks = self.masks(result.frames)
        return kept_pixels(result.scene, self.value if masks is None else masks)

    def new_pixels(self, scene: Scene4D, masks: np.ndarray | None) -> tuple[np.ndarray | None, list[str]]:
        """As `pixels`, of a new scene, which is not lost if nothing is kept: its clouds are empty, and a line says so.

        Args:
          scene: the reconstruction.
          masks: from `masks`, read before the work.
        """
        try:
            return kept_pixels(scene, self.value if masks is None else masks), []
        except InputError as error:
            return np.zeros(scene.depth.shape, bool), [f"  the point clouds are empty: {error}"]


class CloudFlags:
    """Flags on the points of `scene.glb` and `scene.ply`, and `--export`."""

    def __init__(self, group: cli.Group):
        self._foreground = group.string(
            "foreground", "all", "Dynamic points in scene.glb and scene.ply: all, none, or a frame number."
        )
        self._confidence = group.number(
            "cloud_confidence", export.MIN_CONFIDENCE, "Minimum confidence of static points in scene.glb and scene.ply."
        )
        self._points = group.integer(
            "cloud_points", 2_000_000, "Maximum number of points in each of them.", at_least=1, at_most=10**9
        )
        self.keep = KeepFlag(group)
        self._export = group.string(
            "export",
            "",
            f"Also write formats of other tools, into the result's folder exports/: {', '.join(export.FORMATS)} "
            "(separated by commas; `python -m experiments.export` has more options).",
        )

    def formats(self) -> tuple[str, ...]:
        """The formats of `--export`.

        Raises:
          ConfigError: an unknown one, or one whose library is missing.
        """
        return export.parse_formats(self._export.value)

    def options(self) -> export.CloudOptions:
        """Selection of points for scene.glb and scene.ply."""
        return export.CloudOptions(self._foreground.value, self._confidence.value, self._points.value)

    def of_one_clip(self) -> list[str]:
        """Names of the flags in use whose files belong to one clip."""
        return [] if self.keep.value in KINDS else ["keep"]

    def check(self) -> None:
        """Refuses, before the work, what is wrong for every clip.

        Raises:
          ConfigError: an unknown format, foreground or selection.
        """
        self.formats()
        self.keep.check()
        self.options().check(2**31)
