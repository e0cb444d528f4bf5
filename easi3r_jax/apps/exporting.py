"""Exports of a result, shared by `--export` of reconstruct and the program `export`."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from easi3r_jax.apps.originals import original_views
from easi3r_jax.core.errors import ConfigError, InputError, UserError
from easi3r_jax.core.types import Progress, Reconstruction
from easi3r_jax.io import export
from easi3r_jax.io.export.pointcloud import static_pixels
from easi3r_jax.io.export.selection import only
from easi3r_jax.io.export.tapvid import read_tapvid
from easi3r_jax.io.remote import is_address
from easi3r_jax.io.results import load_result
from easi3r_jax.io.sequences import find_sequence

#: Second part of the help on `--source`.
SOURCE_HELP = (
    "auto (those of the result's clip, if it is still where config.json says, else the network's frames), frames (the "
    "network's frames), or the clip's path if it has moved."
)


def needs_own_output(scene: str, output: str) -> None:
    """Refuses to write into a downloaded result, whose copy may be deleted at any time.

    Raises:
      ConfigError: the result is at an address, and no output is named.
    """
    if is_address(scene) and not output:
        raise ConfigError("--scene is an address: say where to write with --output, a folder or another address.")


def uploaded_line(output: str) -> list[str]:
    """A line that says where the files are now, if they were uploaded."""
    return [f"  uploaded to {output}"] if is_address(output) else []


def write_exports(
    saved: Reconstruction,
    formats: Sequence[str],
    output: pathlib.Path,
    *,
    source: str = "auto",
    every: int = 1,
    min_confidence: float,
    max_points: int,
    keep: np.ndarray | None = None,
    tracks_scale: float = 1.0,
    progress: Progress,
) -> list[str]:
    """Writes each format into a folder of its name.

    Args:
      saved: the result.
      formats: names of `export.FORMATS`.
      output: parent of these folders.
      source: source of the images, as typed: see SOURCE_HELP.
      every: take every n-th frame.
      min_confidence, max_points: of the point clouds.
      keep: (T, H, W) bool, the pixels that are kept; None: all.
      tracks_scale: units of the result per unit of the tracks in its folder, if it was scaled after it was read.
      progress: called with progress.

    Returns:
      a line for each: folder, size, the images of the cameras; and one if there are no static points.

    Raises:
      InputError: requested originals that are not available.
      OutputError: a folder cannot be written.
    """
    exported = export.frames_of(
        only(saved.scene, keep),
        saved.frames.time,
        every,
        min_confidence=min_confidence,
        max_points=max_points,
        unit=saved.unit,
    )
    clip, kind = None, ""
    if set(formats) & set(export.WITH_IMAGES):
        clip, kind = _clip_of(saved, source)
    if clip is None and "full" in formats:
        raise InputError(f"Full resolution needs the original images, and these would be {kind}: name them (--source).")
    if clip is not None:
        exported = dataclasses.replace(exported, views=original_views(saved, exported.numbers, clip))
    if keep is not None:
        exported = dataclasses.replace(exported, views=dataclasses.replace(exported.views, used=keep[::every]))
    tracked = pathlib.Path(saved.saved_folder()) / "tracks.npz"
    if "rerun" in formats and tracked.is_file():
        xyz, visible, start = read_tapvid(tracked)
        x, y, t = start.T
        if keep is not None:  # as its pixels, a track is kept or not by where it starts
            xyz, visible = xyz[:, keep[t, y, x]], visible[:, keep[t, y, x]]
        exported = dataclasses.replace(exported, tracks=(xyz[::every] * tracks_scale, visible[::every]))
    lines = []
    for done, name in enumerate(formats):
        progress("export", done, len(formats), name)
        views = exported.views
        record = {
            "scene": saved.folder,
            "min_confidence": min_confidence,
            "max_points": max_points,
            "restricted": keep is not None,
            "undistorted": None if saved.frames.lens is None else str(saved.frames.lens),
            "image_size": views.size,
            "image_from_frame": views.image_from_frame,
        }
        folder, size = export.write_export(output / name, name, exported, record)
        images = ""
        if name in export.WITH_IMAGES:
            images = f", cameras of images of {views.size[1]}x{views.size[0]} pixels: {kind}"
        lines.append(f"  {name}: {folder}, {size / 1e6:.2f} MB{images}")
    progress("export", len(formats), len(formats), "")
    scene = exported.scene
    if set(formats) & set(export.WITH_POINTS) and not any(
        static_pixels(scene, t, min_confidence).any() for t in range(len(scene.depth))
    ):
        lines.append(
            "  without static points: none are kept (--keep)"
            if keep is not None and not (saved.scene.static_mask & keep).any()
            else f"  without static points: no static pixel has a confidence of at least {min_confidence:g} "
            "(--cloud_confidence)"
        )
    return lines


def exports_of_new(folder: pathlib.Path, formats: Sequence[str], **options: Any) -> list[str]:
    """`write_exports` of a new result, into its folder: a failure is a line, and the result stays."""
    if not formats:
        return []
    try:
        return write_exports(load_result(folder), formats, folder / "exports", **options)
    except UserError as error:
        return [f"  not exported: {error}"]


def recorded_path(saved: Reconstruction, path: str) -> str:
    """A path from a result's options, from every folder: a relative one is within the folder of the reconstruction.

    If it is not there (the result has moved to another machine), one that is within the working directory is taken.
    """
    folder = saved.record.get("folder")
    if not path or path == "demo" or not isinstance(folder, str):  # an older result does not say where it was made
        return path
    path = os.path.expanduser(path)
    recorded = os.path.join(folder, path)
    return path if not os.path.exists(recorded) and os.path.exists(path) else recorded


def _clip_of(saved: Reconstruction, source: str) -> tuple[pathlib.Path | None, str]:
    """The path of the originals, or None for the network's frames; and a description for the output."""
    frames = "the network's frames"
    if source == "frames":
        return None, frames
    if source == "auto":
        options = saved.record.get("options")
        seq = options.get("seq") if isinstance(options, dict) else None
        if saved.frames.frame_from_source is None:
            return None, f"{frames} (a result of an older version does not record their crop of the originals)"
        if not isinstance(seq, str):
            return None, f"{frames} (config.json names no clip: give it as --source)"
        if is_address(seq):  # what a file says, perhaps somebody else's: not followed without being asked
            return None, f"{frames} (the clip is at {seq}: give it as --source)"
        seq = recorded_path(saved, seq)
        try:
            clip = find_sequence(seq).frames
        except InputError:
            return None, f"{frames} (the clip is no longer at {seq}: give it as --source)"
    else:
        clip = find_sequence(source).frames
    return clip, f"originals from {clip}"
