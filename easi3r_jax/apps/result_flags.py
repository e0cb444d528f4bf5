"""Flags on what is made of a result: the points of its clouds, what is kept, exports."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from easi3r_jax.apps import cli
from easi3r_jax.apps.flag_values import number_of
from easi3r_jax.core.errors import ConfigError, InputError, UserError
from easi3r_jax.core.metres import MAX_SPREAD, in_metres, scale_from_depth, scale_from_length
from easi3r_jax.core.types import Frames, Reconstruction, Scene4D
from easi3r_jax.inference.dense_flow import dense_flow
from easi3r_jax.inference.tracks import check_count, track_points
from easi3r_jax.io import export, remote, results
from easi3r_jax.io.export.selection import KINDS, kept_pixels, only
from easi3r_jax.io.priors.depth import load_depth
from easi3r_jax.io.priors.flow import FlowFolder
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

    def shown(self, result: Reconstruction) -> Reconstruction:
        """A new result with what is kept of it, which may be nothing."""
        kept, _ = self.new_pixels(result.scene, self.masks(result.frames))
        return dataclasses.replace(result, scene=only(result.scene, kept))


def full_resolution_flag(group: cli.Group):
    """`--full_resolution`."""
    return group.boolean(
        "full_resolution",
        False,
        "Also write depth, confidence and masks at the size of the original images, enlarged with their edges: the "
        "format full.",
    )


def with_full(formats: tuple[str, ...], wanted: bool) -> tuple[str, ...]:
    """The formats, and `full` if it is wanted."""
    return (*formats, "full") if wanted and "full" not in formats else formats


class ScaleFlag:
    """`--scale_from`, added to a group of a program's flags."""

    def __init__(self, group: cli.Group):
        self._flag = group.string(
            "scale_from",
            "",
            "Put the result in metres: a folder with the depth of some frames (PNGs in millimetres), or "
            "the distance in metres between the first and the last camera, 1.5, or two named ones, 1.5:0:20.",
        )

    @property
    def value(self) -> str:
        """As typed."""
        return self._flag.value

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder of depth, or its address."""
        return remote.is_address(self.value) or pathlib.Path(self.value).expanduser().is_dir()

    def _length(self) -> tuple[float, list[str]]:
        """The length, and the names of the two cameras if they are given.

        Raises:
          ConfigError: neither a folder nor a length.
        """
        word, *cameras = self.value.split(":")
        length = number_of(word.removesuffix("m"))
        if length is None or length <= 0 or len(cameras) not in (0, 2):
            raise ConfigError(
                f"--scale_from={self.value}: it must be a folder of depth maps, or a length in metres such as 1.5, or "
                "1.5:FRAME:FRAME."
            )
        return length, cameras

    def check(self) -> None:
        """Refuses, before the work, what is neither a folder nor a length.

        Raises:
          ConfigError: it is neither.
        """
        if self.value and not self.is_folder:
            self._length()

    def depth(self, frames: Frames) -> np.ndarray | None:
        """(T, H, W) metres, the depth of the folder that the flag names; None if it names none.

        Raises:
          InputError: depth that cannot be read, or of other frames.
        """
        if not self.value or not self.is_folder:
            return None
        return load_depth(remote.local(self.value), frames)

    def applied(self, result: Reconstruction, depth: np.ndarray | None) -> tuple[Reconstruction, list[str], float]:
        """The result in metres, lines that say so, and metres per former unit; as it was, and 1, without the flag.

        Args:
          result: host arrays.
          depth: from `depth`.

        Raises:
          InputError: the depth or the length gives no scale.
        """
        if not self.value:
            return result, [], 1.0
        if depth is not None:
            found = scale_from_depth(result, depth)
            lines = [f"  in metres: 1 unit was {found.factor:.4g} m, by the depth of {found.num_frames} frames"]
            if found.num_frames > 1:
                lines[0] += f", whose largest scale is {found.spread:.3g} times the smallest"
            if not found.agrees:
                lines.append(
                    f"  the known depth disagrees: the frames' scales differ by a factor of {found.spread:.3g} (more "
                    f"than {MAX_SPREAD:g}), so depth or reconstruction are wrong in some of them"
                )
            return in_metres(result, found.factor), lines, found.factor
        length, cameras = self._length()
        first, last = (_frame(name, result.frames) for name in cameras or ("0", str(len(result.frames.rgb) - 1)))
        factor = scale_from_length(result, length, first, last)
        line = f"  in metres: 1 unit was {factor:.4g} m, as frames {first} and {last} are {length:g} m apart"
        return in_metres(result, factor), [line], factor

    def of_new(self, result: Reconstruction, depth: np.ndarray | None) -> tuple[Reconstruction, list[str]]:
        """Like `applied`, of a new result: without a scale it is not lost, but stays as it was, and a line says so."""
        try:
            scaled, lines, _ = self.applied(result, depth)
            return scaled, lines
        except InputError as error:
            return result, [f"  not in metres: {error}"]


def _frame(name: str, frames: Frames) -> int:
    """The number of a frame, from its number or its image's name."""
    if frames.names is not None and name in frames.names:
        return frames.names.index(name)
    if name.isascii() and name.isdecimal() and int(name) < len(frames.rgb):
        return int(name)
    raise InputError(f"There is no frame {name!r}: give a number from 0 to {len(frames.rgb) - 1}, or an image's name.")


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
        self.scale = ScaleFlag(group)
        self._export = group.string(
            "export",
            "",
            f"Also write formats of other tools, into the result's folder exports/: {', '.join(export.FORMATS)} "
            "(separated by commas; `python -m experiments.export` has more options).",
        )
        self._full_resolution = full_resolution_flag(group)
        self._tracks = group.integer(
            "tracks",
            0,
            "Follow this many points over time, in 3D, and write them to tracks.npz (0: none). With several hosts, and "
            "with a folder of --flow, by the flow of dense inverse search.",
            at_least=0,
        )

    def formats(self) -> tuple[str, ...]:
        """The formats of `--export` and `--full_resolution`.

        Raises:
          ConfigError: an unknown one, or one whose library is missing.
        """
        return with_full(export.parse_formats(self._export.value), self._full_resolution.value)

    def options(self) -> export.CloudOptions:
        """Selection of points for scene.glb and scene.ply."""
        return export.CloudOptions(self._foreground.value, self._confidence.value, self._points.value)

    def check_tracks(self, frames: Frames) -> None:
        """Refuses more tracks than pixels.

        Raises:
          InputError: there are more.
        """
        check_count(self._tracks.value, frames.rgb.shape)

    def add_tracks(self, folder: pathlib.Path, result: Reconstruction, flow: Callable[..., Any] | None) -> list[str]:
        """Writes the tracks of `--tracks` into the folder of the result, which is already saved.

        Args:
          folder: of the result.
          result: host arrays.
          flow: source of optical flow; None, and a folder, which may lack pairs: dense inverse search.

        Returns:
          lines for the user; a failure is one, and the result stays as it is.
        """
        if not self._tracks.value:
            return []
        lines = []
        if isinstance(flow, FlowFolder):
            lines.append("  tracks: their flow is of dense inverse search, as the folder of --flow may lack pairs")
        if not np.any(~np.asarray(result.scene.static_mask)):
            lines.append("  tracks: no motion was detected, so that every point is followed as a static one")
        source = dense_flow if flow is None or isinstance(flow, FlowFolder) else flow
        try:
            results.save_tracks(folder, result, track_points(result, self._tracks.value, flow=source))
        except UserError as error:
            return [f"  no tracks: {error}"]
        return lines

    def of_one_clip(self) -> list[str]:
        """Names of the flags in use whose files belong to one clip."""
        used = {"keep": self.keep.value not in KINDS, "scale_from": bool(self.scale.value)}
        return [name for name, value in used.items() if value]

    def check(self) -> None:
        """Refuses, before the work, what is wrong for every clip.

        Raises:
          ConfigError: an unknown format, foreground or selection.
        """
        self.formats()
        self.keep.check()
        self.scale.check()
        self.options().check(2**31)
