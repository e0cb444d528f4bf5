"""The original images of a result's frames, at full size, for exports with cameras in their pixels."""

from __future__ import annotations

import pathlib
import re
import shutil
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import ExifTags, Image

from easi3r_jax.core.errors import InputError
from easi3r_jax.core.lens import Lens
from easi3r_jax.core.types import Frames, Reconstruction
from easi3r_jax.io.export import Views
from easi3r_jax.io.video import original_images
from easi3r_jax.io.video.folders import list_images
from easi3r_jax.io.video.images import SUFFIXES, read_image

# Levels of 255, mean over a frame. A frame that is resized again differs by less than two.
_MAX_MEAN_DIFFERENCE = 8.0


def original_views(saved: Reconstruction, numbers: np.ndarray, path: pathlib.Path) -> Views:
    """The originals of some of a result's frames.

    Upright JPEG and PNG files of RGB pixels are copied; other images are stored as PNG, and so are those from which a
    lens's distortion is removed. Frames of a video become JPEGs.
    Each is compared with the result's frame when it is written.

    Args:
      saved: the result.
      numbers: (T,) frame numbers.
      path: the video, the folder of images or the image that was reconstructed.

    Raises:
      InputError: a result that does not record its source; a clip that is missing or different. (Differences in single
        images are found when they are written.)
    """
    source = saved.frames
    if source.frame_from_source is None:
        raise InputError(
            f"{saved.folder} is from an older version and does not record its crop of the original images: "
            "reconstruct the clip again, or export with --source=frames."
        )
    image_from_frame = np.linalg.inv(source.frame_from_source)
    index = np.asarray(source.source_index)[numbers]
    height, width = source.original_size
    rgb = saved.scene.rgb

    def check(image: Image.Image, t: int) -> Image.Image:
        number = int(numbers[t])
        if image.size != (width, height) or _difference(image, image_from_frame, rgb[number]) > _MAX_MEAN_DIFFERENCE:
            raise InputError(
                f"Image {index[t]} of {path} is not the source of frame {number} of {saved.folder}: give the clip that "
                "was reconstructed (--source), or export with --source=frames."
            )
        return image

    if path.is_dir() or path.suffix.lower() in SUFFIXES:
        files = _image_files(path, source, numbers)
        copied = [source.lens is None and _is_plain(file) for file in files]

        def write_image(t: int, target: pathlib.Path) -> None:
            image = read_image(files[t])
            if source.lens is not None:
                image = Image.fromarray(source.lens.undistort(np.asarray(image)))
            check(image, t)
            if copied[t]:
                shutil.copyfile(files[t], target)
            else:
                image.save(target, compress_level=3)

        names = [file.name if copy else f"{file.name}.png" for file, copy in zip(files, copied, strict=True)]
        return Views(without_white_space(names), (height, width), image_from_frame, write_image)

    images = _Sequential(path, index, source.lens)

    def write_frame(t: int, target: pathlib.Path) -> None:
        check(images[t], t).save(target, quality=95, subsampling=0)

    return Views([f"{number:05d}.jpg" for number in index], (height, width), image_from_frame, write_frame)


def without_white_space(names: Sequence[str]) -> list[str]:
    """The names with white space replaced by underscores, and a number before duplicates."""
    taken: set[str] = set()
    found = []
    for number, name in enumerate(names):
        short = re.sub(r"\s+", "_", name)
        while short in taken:
            short = f"{number:05d}_{short}"
        found.append(short)
        taken.add(short)
    return found


def _image_files(path: pathlib.Path, source: Frames, numbers: np.ndarray) -> list[pathlib.Path]:
    """Files of the frames: by name if the names are known, else by index."""
    files = list_images(path) if path.is_dir() else [path]
    advice = "give the clip that was reconstructed (--source), or export with --source=frames"
    if source.names is not None:
        by_name = {file.name: file for file in files}
        names = [source.names[number] for number in numbers]
        for name in names:
            if name not in by_name:
                raise InputError(f"{path} has no image {name}: {advice}.")
        return [by_name[name] for name in names]
    index = np.asarray(source.source_index)[numbers]
    if len(files) <= index.max():
        raise InputError(f"{path} has {len(files)} images, no number {index.max()} (from 0): {advice}.")
    return [files[number] for number in index]


def _is_plain(file: pathlib.Path) -> bool:
    """Whether every program reads the file as we do: no EXIF rotation, no palette, no alpha, no 16 bits."""
    suffixes = {"JPEG": (".jpg", ".jpeg"), "PNG": (".png",)}
    try:
        with Image.open(file) as image:
            upright = image.getexif().get(ExifTags.Base.Orientation, 1) == 1
            return file.suffix.lower() in suffixes.get(image.format or "", ()) and image.mode == "RGB" and upright
    except Exception:  # damaged: `read_image` will report it
        return False


def _difference(image: Image.Image, image_from_frame: np.ndarray, frame: np.ndarray) -> float:
    """Mean difference between a frame and the same crop of an image, resized to the frame's size."""
    height, width = frame.shape[:2]
    (sx, _, x), (_, sy, y), _ = image_from_frame
    # Pillow counts from corners. Rounding must not leave the image.
    corners = np.array([[-0.5, -0.5], [width - 0.5, height - 0.5]]) * [sx, sy] + [x, y] + 0.5
    left, top, right, bottom = np.clip(corners, 0, image.size).reshape(-1).tolist()
    resized = image.resize((width, height), Image.Resampling.LANCZOS, box=(left, top, right, bottom))
    return float(np.abs(np.asarray(resized, np.float32) - frame).mean())


class _Sequential:
    """A video's frames by number: read sequentially, from the start again if an earlier one is requested."""

    def __init__(self, path: pathlib.Path, index: np.ndarray, lens: Lens | None):
        self._path, self._index, self._lens = path, index, lens
        self._images: Iterator[Image.Image] = iter(())
        self._next = -1

    def __getitem__(self, t: int) -> Image.Image:
        if t != self._next:
            self._images, self._next = original_images(self._path, self._index[t:], self._lens), t
        self._next += 1
        return next(self._images)
