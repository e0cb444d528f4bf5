"""Selects frames of a source and resizes them for the network."""

from __future__ import annotations

import contextlib
import difflib
import math
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction

import absl.logging
import numpy as np
from PIL import Image

from easi3r_jax.core.config import FrameConfig
from easi3r_jax.core.errors import InputError
from easi3r_jax.core.lens import Lens
from easi3r_jax.core.types import Frames, Progress, silent
from easi3r_jax.io.files.names import require_utf8
from easi3r_jax.io.video.clip import ClipFrame, ClipReader
from easi3r_jax.io.video.decode import open_video
from easi3r_jax.io.video.folders import list_images, require_one_kind
from easi3r_jax.io.video.heif import is_sequence
from easi3r_jax.io.video.images import SUFFIXES, StoredImage, is_image, open_images, reported
from easi3r_jax.io.video.resize import FrameGeometry, frame_geometry, resize_image

# Brightest value of a clip, of 255, that suggests a range which is not used: 14 bits in 16 are 63.
_DARK = 63

Source = str | os.PathLike | Sequence[str | os.PathLike | StoredImage]


def load_frames(source: Source, config: FrameConfig = FrameConfig(), progress: Progress = silent) -> Frames:
    """Reads a clip and resizes its frames for the network.

    Args:
      source: a video file, a folder of images, one image, or a sequence of image files (or of images within files,
        `StoredImage`). The images of a folder are in natural order (see `folders.list_images`); sequences keep their
        order. Images are assumed to be 1/24 s apart.
      config: selection and size of the frames. With `fps`, the source is divided into slots of 1/fps seconds and the
        first frame of each slot is selected: about `fps` frames per second, without repeats, and every frame if the
        source is slower. With `first`, reading stops after that many frames, and the rest of the file is not examined.
      progress: called with the stage "read" and the number of frames so far. The total is 0 as long as it is unknown:
        with `fps`, or if the source does not declare its length.

    Returns:
      The clip, as NumPy arrays (times need float64, which JAX disables by default).

    Raises:
      InputError: there is nothing to read; a file is not an image or video, or is truncated or damaged (the message
        names the frame); images differ in size or are too small.
      ConfigError: options out of range.
    """
    clip = _open(source, name_others=True)
    total = _expected(clip, config)
    progress("read", 0, total, "")
    rgb, index, time, names = [], [], [], []
    geometry = None
    with contextlib.closing(clip.frames) as stream:
        for frame in _selected(stream, clip.rate, config):
            image = _straight(frame.read(), config.lens)
            geometry = _agreed_geometry(geometry, frame, image.size, config)
            rgb.append(np.asarray(resize_image(image, geometry)))
            index.append(frame.index)
            time.append(float(frame.time))
            names.append(frame.name)
            if not total or len(rgb) < total:  # done = total is reported once, after the last frame
                progress("read", len(rgb), total, "")
    if geometry is None:
        raise InputError(f"{clip.name} has no frames: it is truncated, or not a video. Copy it again.")
    progress("read", len(rgb), len(rgb), "")
    brightest = max(int(picture.max()) for picture in rgb)
    if 0 < brightest <= _DARK:
        absl.logging.warning(
            "%s: no pixel is brighter than %d of 255. If files of 16 bits hold 10 to 14, scale them to the full range.",
            *(clip.name, brightest),
        )
    return Frames(
        rgb=np.stack(rgb),
        source_index=np.array(index, np.int32),
        time=np.array(time, np.float64),
        frame_from_source=geometry.frame_from_source,
        source_size=np.array(geometry.source[::-1], np.int32),
        names=tuple(names) if all(names) and len(set(names)) == len(names) else None,
        lens=config.lens,
    )


def _straight(image: Image.Image, lens: Lens | None) -> Image.Image:
    """The image without the lens's distortion."""
    return image if lens is None else Image.fromarray(lens.undistort(np.asarray(image)))


def original_images(
    source: Source, numbers: Sequence[int] | np.ndarray, lens: Lens | None = None
) -> Iterator[Image.Image]:
    """Yields frames of a source as upright RGB images at full size.

    Args:
      source: as for `load_frames`.
      numbers: their numbers in the source, for example `Frames.source_index`; ascending.
      lens: whose distortion is removed: `Frames.lens`.

    Raises:
      InputError: as `load_frames`, or the source ends before the last of them.
    """
    clip = _open(source)
    wanted = list(numbers)
    with contextlib.closing(clip.frames) as stream:
        for frame in stream:
            if wanted and frame.index == wanted[0]:
                yield _straight(frame.read(), lens)
                wanted.pop(0)
            if not wanted:
                return
    if wanted:
        raise InputError(f"{clip.name} has no frame {wanted[0]} (from 0): it is not the clip that was reconstructed.")


def _open(source: Source, *, name_others: bool = False) -> ClipReader:
    if not isinstance(source, str | os.PathLike):
        images = [p if isinstance(p, StoredImage) else pathlib.Path(p).expanduser() for p in source]
        return open_images(images, "The list of images")
    path = pathlib.Path(source).expanduser()
    require_utf8(path)
    try:
        if path.is_dir():
            paths = list_images(path, name_others=name_others)
            require_one_kind(paths, path)
            return open_images(paths, str(path))
        if path.is_file():
            with reported(path):
                is_picture = not is_sequence(path) and (path.suffix.lower() in SUFFIXES or is_image(path))
            return open_images([path], str(path)) if is_picture else open_video(path)
        exists = path.exists()
    except OSError as error:  # a parent folder without permission, a name too long
        raise InputError(f"Cannot read {path}: {error.strerror}.") from error
    if exists:
        raise InputError(f"{path} is neither a file nor a folder: copy the clip to a file first.")
    raise InputError(_not_found(path))


def _not_found(path: pathlib.Path) -> str:
    """The message for a path that does not exist, with a suggestion."""
    parent = path.absolute().parent
    if not parent.is_dir():
        return f"No video or folder {path}: there is no folder {parent}."
    with contextlib.suppress(OSError):
        close = difflib.get_close_matches(path.name, [p.name for p in parent.iterdir()], cutoff=0.7)
        if close:
            return f"No video or folder {path}: did you mean {' or '.join(close)}?"
    return f"No video or folder {path}: check the path."


def _selected(frames: Iterable[ClipFrame], rate: Fraction, config: FrameConfig) -> Iterator[ClipFrame]:
    """The frames that `every`, `fps` and `first` select."""
    fps = Fraction(config.fps)
    # Containers round times: a frame may be half a frame early, and must not fall into the previous slot.
    early = 1 / (2 * rate)
    last_slot, count = -1, 0
    for frame in frames:
        if fps:
            slot = math.floor((frame.time + early) * fps)
            if slot <= last_slot:
                continue
            last_slot = slot
        elif frame.index % config.every:
            continue
        yield frame
        count += 1
        if count == config.first:
            return


def _expected(clip: ClipReader, config: FrameConfig) -> int:
    """The number of frames that will be selected; 0 if it is unknown before the source has been read."""
    if clip.count is None or config.fps > 0:
        return 0
    count = -(-clip.count // config.every)
    return min(count, config.first) if config.first else count


def _agreed_geometry(
    geometry: FrameGeometry | None, frame: ClipFrame, size: tuple[int, int], config: FrameConfig
) -> FrameGeometry:
    if geometry is None:
        try:
            return frame_geometry(*size, config)
        except InputError as error:
            raise InputError(f"{frame.label}: {error}") from error
    if size != geometry.source:  # `frame_from_source` is one for the clip
        raise InputError(
            f"{frame.label} is {size[0]}x{size[1]} pixels, the frames before it {'x'.join(map(str, geometry.source))}: "
            "resize all to one size, or remove the others."
        )
    return geometry
