"""Finds sequences and their ground truth.

A *clip folder* is this project's own layout: `frames/` with one image per frame and `ground_truth.npz` with
any of `depth` (T, H, W) z, `masks` (T, H, W) bool, `world_from_cam` (T, 4, 4) and `intrinsics` (T, 3, 3), or (3, 3)
for all frames, in pixels of the original images.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import zipfile

import numpy as np

import easi3r_jax
from easi3r_jax.core.arrays import Shaped
from easi3r_jax.core.config import FrameConfig
from easi3r_jax.core.errors import InputError
from easi3r_jax.core.geometry.grids import resample_nearest
from easi3r_jax.core.types import Frames, Progress, silent
from easi3r_jax.io import remote, video
from easi3r_jax.io.video.load import Source

#: Suffix of the folder of a clip's motionless twin.
STILL = "_still"
CLIPS = pathlib.Path(easi3r_jax.__file__).parent / "assets" / "clips"


@dataclasses.dataclass(frozen=True)
class Sequence:
    """A clip to reconstruct.

    Attributes:
      name: name of the default output folder.
      frames: source for `load_frames`.
      ground_truth: an npz file, or None.
      twin: the same clip without motion (`STILL`), or None: the baseline for motion metrics.
    """

    name: str
    frames: pathlib.Path
    ground_truth: pathlib.Path | None = None
    twin: Sequence | None = None


def find_sequence(seq: str, ground_truth: str | None = None, progress: Progress = silent) -> Sequence:
    """Resolves the name of a clip: "demo", a clip folder, a folder of images, or a video file.

    Args:
      seq: as the user gives it; an address is downloaded (see `io.remote`), without the motionless twin beside it.
      ground_truth: an npz file that replaces the clip folder's own.
      progress: called with the progress of a download.

    Raises:
      InputError: the clip or the ground-truth file does not exist, or cannot be downloaded.
      OutputError: a download that cannot be stored.
    """
    seq = remote.local(seq, progress=progress)
    if seq == "demo":
        sequence = _clip_folder("demo", CLIPS / "demo")
    else:
        path = pathlib.Path(seq).expanduser()
        if not seq or not path.exists():
            raise InputError(f"There is no video, image or folder at {seq!r} (seen from {pathlib.Path.cwd()}).")
        name = (path.stem if path.is_file() else path.resolve().name) or "sequence"
        sequence = _clip_folder(name, path) if (path / "frames").is_dir() else Sequence(name, path)
    if ground_truth:
        file = pathlib.Path(remote.local(ground_truth, progress=progress)).expanduser()
        if not file.is_file():
            raise InputError(f"No ground truth at {file}: there is no such .npz file.")
        sequence = dataclasses.replace(sequence, ground_truth=file)
    return sequence


def _clip_folder(name: str, path: pathlib.Path) -> Sequence:
    truth = path / "ground_truth.npz"
    beside = path.resolve().with_name(path.resolve().name + STILL)
    twin = _clip_folder(name + STILL, beside) if (beside / "frames").is_dir() else None
    return Sequence(name, path / "frames", truth if truth.is_file() else None, twin)


def load_frames(
    source: Source,
    config: FrameConfig = FrameConfig(),
    progress: Progress = silent,
) -> Frames:
    """Reads a clip and resizes it for the network: `video.load_frames`, also for clip folders and "demo".

    Args:
      source: a video file, a folder of images, one image, a clip folder, the address of one of these (s3://...),
        "demo" (the bundled clip), or a sequence of image files.
      config: selection and size of the frames; for a network, `FrameConfig.for_model(model)`.
      progress: called for each frame, for the stage "read"; the total is 0 while it is unknown.

    Raises:
      InputError, ConfigError: as `video.load_frames`.
    """
    if isinstance(source, str | os.PathLike):
        source = remote.local(source, progress=progress)
        path = pathlib.Path(source).expanduser()
        if os.fspath(source) == "demo" or (path / "frames").is_dir():
            source = find_sequence(os.fspath(source)).frames
    return video.load_frames(source, config, progress)


def load_arrays(path: pathlib.Path, frames: Frames, names: tuple[str, ...]) -> dict[str, Shaped[np.ndarray, "T ..."]]:
    """Reads those of the named arrays that an npz file has: one entry per frame, images resampled to the frames.

    Raises:
      InputError: an unreadable file, wrong shapes, or fewer entries than the clip has frames.
    """
    try:
        with path.open("rb") as opened:
            if opened.read(2) != b"PK":
                raise ValueError("it is not an .npz file")
            opened.seek(0)
            with np.load(opened, allow_pickle=False) as file:
                arrays = {k: file[k] for k in names if k in file.files}
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise InputError(f"Cannot read the ground truth {path}: {error}.") from error

    original_size, index = frames.original_size, np.asarray(frames.source_index)
    if "intrinsics" in arrays and arrays["intrinsics"].ndim == 2:  # one camera for all frames
        arrays["intrinsics"] = np.broadcast_to(arrays["intrinsics"], (index.max() + 1, *arrays["intrinsics"].shape))
    for name, array in arrays.items():
        if array.dtype.kind not in "biuf":
            raise InputError(f"{path}: {name} is {array.dtype}, not numbers.")
        tail = {"world_from_cam": (4, 4), "intrinsics": (3, 3)}.get(name, original_size)
        if array.shape[1:] != tail or len(array) <= index.max():
            raise InputError(
                f"{path}: {name} has shape {array.shape}; the clip needs at least {index.max() + 1} entries of {tail}."
            )
        arrays[name] = array[index]

    size = int(frames.rgb.shape[1]), int(frames.rgb.shape[2])
    for name in set(arrays) - {"world_from_cam", "intrinsics"}:
        arrays[name] = resample_nearest(arrays[name], np.asarray(frames.frame_from_source), size)
    return arrays
