"""Takes frames from a source and brings them to the network's size."""

from __future__ import annotations

import contextlib
import difflib
import math
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction

import numpy as np
from PIL import Image

from easi3r_jax.core.config import FrameConfig
from easi3r_jax.core.errors import InputError
from easi3r_jax.core.types import Frames
from easi3r_jax.io.video.clip import Clip, ClipFrame
from easi3r_jax.io.video.decode import open_video
from easi3r_jax.io.video.images import SUFFIXES, StoredImage, list_images, open_images
from easi3r_jax.io.video.resize import FrameGeometry, frame_geometry, resize_image

Source = str | os.PathLike | Sequence[str | os.PathLike | StoredImage]


def load_frames(
    source: Source, config: FrameConfig = FrameConfig(), progress: Callable[[int, int | None], None] | None = None
) -> Frames:
    """Reads a clip and brings it to the network's size.

    Args:
      source: a video file, a folder of images, one image, or a sequence of image files (or images within files:
        `StoredImage`). Folders go by name (see `images.list_images`), sequences in the order given. Images are taken
        to be 1/24 s apart.
      config: which frames are taken, and their size. With `fps`, the source is cut into slots of 1/fps seconds and the
        first frame of each is taken: about `fps` frames per second, never one twice, every frame where the source is
        slower. With `first`, reading stops as soon as so many are taken: what follows in the file is not looked at.
      progress: called with (frames taken, how many there will be or None); the two agree in the last call only.

    Returns:
      The clip, as NumPy arrays (times need float64, which JAX turns off by default).

    Raises:
      InputError: nothing to read, a file that is no image or video, is cut or damaged (the message names the frame),
        images of different sizes, images too small.
      ConfigError: options out of their range.
    """
    clip = _open(source)
    total = _expected(clip, config)
    rgb, index, time, names = [], [], [], []
    geometry = None
    with contextlib.closing(clip.frames) as stream:
        for frame in _taken(stream, clip.rate, config):
            image = frame.read()
            geometry = _agreed_geometry(geometry, frame, image.size, config)
            rgb.append(np.asarray(resize_image(image, geometry)))
            index.append(frame.index)
            time.append(float(frame.time))
            names.append(frame.name)
            if progress is not None and (total is None or len(rgb) < total):
                progress(len(rgb), total)
    if geometry is None:
        raise InputError(f"{clip.name} has no frames: it is cut, or not what it seems. Copy it again.")
    if progress is not None:
        progress(len(rgb), len(rgb))
    return Frames(
        rgb=np.stack(rgb),
        source_index=np.array(index, np.int32),
        time=np.array(time, np.float64),
        frame_from_source=geometry.frame_from_source,
        source_size=np.array(geometry.source[::-1], np.int32),
        names=tuple(names) if all(names) and len(set(names)) == len(names) else None,
    )


def original_images(source: Source, numbers: Sequence[int] | np.ndarray) -> Iterator[Image.Image]:
    """Yields frames of a source as they are: upright RGB at full size.

    Args:
      source: as `load_frames` takes it.
      numbers: which ones, `Frames.source_index` for instance; ascending.

    Raises:
      InputError: as `load_frames`; a source that ends before the last of them.
    """
    clip = _open(source)
    wanted = list(numbers)
    with contextlib.closing(clip.frames) as stream:
        for frame in stream:
            if wanted and frame.index == wanted[0]:
                yield frame.read()
                wanted.pop(0)
            if not wanted:
                return
    if wanted:
        raise InputError(f"{clip.name} has no frame {wanted[0]} (from 0): it is not the clip that was reconstructed.")


def _open(source: Source) -> Clip:
    if not isinstance(source, str | os.PathLike):
        images = [p if isinstance(p, StoredImage) else pathlib.Path(p).expanduser() for p in source]
        return open_images(images, "The list of images")
    path = pathlib.Path(source).expanduser()
    try:
        if path.is_dir():
            return open_images(list_images(path), str(path))
        if path.is_file():
            return open_images([path], str(path)) if path.suffix.lower() in SUFFIXES else open_video(path)
        exists = path.exists()
    except OSError as error:  # a folder on the way that may not be entered, a name too long
        raise InputError(f"Cannot read {path}: {error.strerror}.") from error
    if exists:
        raise InputError(f"{path} is neither a file nor a folder: copy the clip to a file first.")
    raise InputError(_missing(path))


def _missing(path: pathlib.Path) -> str:
    """Says what is not there, and what the user may have meant."""
    parent = path.absolute().parent
    if not parent.is_dir():
        return f"No video or folder {path}: there is no folder {parent}."
    with contextlib.suppress(OSError):
        close = difflib.get_close_matches(path.name, [p.name for p in parent.iterdir()], cutoff=0.7)
        if close:
            return f"No video or folder {path}: did you mean {' or '.join(close)}?"
    return f"No video or folder {path}: check the path."


def _taken(frames: Iterable[ClipFrame], rate: Fraction, config: FrameConfig) -> Iterator[ClipFrame]:
    """The frames that `every`, `fps` and `first` choose."""
    fps = Fraction(config.fps)
    # Half a frame early still counts: containers round times, and a frame must not slip into the slot before.
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


def _expected(clip: Clip, config: FrameConfig) -> int | None:
    """How many frames will be taken, None where only reading tells."""
    if clip.count is None or config.fps > 0:
        return None
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
            "bring all to one size, or remove those of another."
        )
    return geometry
