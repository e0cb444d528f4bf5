"""DAVIS (Perazzi et al., CVPR 2016; Pont-Tuset et al., arXiv 1704.00675; https://davischallenge.org): masks.

    ROOT/[DAVIS/]
      JPEGImages/480p/SEQUENCE/00000.jpg        (or Full-Resolution, without 480p)
      Annotations/480p/SEQUENCE/00000.png
      ImageSets/2016/val.txt                    one name per line (2016's own release: ImageSets/480p/val.txt, paths)
      ImageSets/2017/{train,val}.txt

All frames of the 20 sequences of 2016's `val`, the 30 of 2017's `val`, or the 90 of 2017's `train` and `val`.
Everything annotated is dynamic. An annotation is an image of object numbers (palette), with 255 for pixels to ignore;
or, if it is gray and holds only 0 and 255, a mask with 255 for dynamic pixels.
"""

from __future__ import annotations

import functools
import pathlib

import numpy as np
from PIL import Image

from easi3r_jax.core.errors import InputError
from easi3r_jax.evaluation.datasets import common
from easi3r_jax.evaluation.datasets.sequence import TestSequence, Truth
from easi3r_jax.io import files
from easi3r_jax.io.video.images import decode_image

_VOID = 255
# Its colour in DAVIS' palette, for images that a program has converted to RGB.
_VOID_COLOR = (224, 224, 192)

#: The benchmark's validation sequences, for copies that lack ImageSets.
VAL_2016 = (
    *("blackswan", "bmx-trees", "breakdance", "camel", "car-roundabout", "car-shadow", "cows", "dance-twirl", "dog"),
    *("drift-chicane", "drift-straight", "goat", "horsejump-high", "kite-surf", "libby", "motocross-jump"),
    *("paragliding-launch", "parkour", "scooter-black", "soapbox"),
)
VAL_2017 = tuple(
    sorted(
        {
            *VAL_2016,
            *("bike-packing", "dogs-jump", "gold-fish", "india", "judo", "lab-coat", "loading", "mbike-trick", "pigs"),
            "shooting",
        }
    )
)


def read_2016(root: pathlib.Path) -> list[TestSequence]:
    """The 20 validation sequences of 2016."""
    return _read(root, ("2016/val.txt", "480p/val.txt"), VAL_2016)


def read_2017(root: pathlib.Path) -> list[TestSequence]:
    """The 30 validation sequences of 2017."""
    return _read(root, ("2017/val.txt",), VAL_2017)


def read_all(root: pathlib.Path) -> list[TestSequence]:
    """The 90 training and validation sequences of 2017; without ImageSets, all that are found."""
    base = common.below(root, "JPEGImages")
    lists = [] if base is None else [base / "ImageSets/2017" / name for name in ("train.txt", "val.txt")]
    if not all(path.is_file() for path in lists):
        return _read(root, (), None)
    return _read(root, (), tuple(name for path in lists for name in _names(path)))


def _read(root: pathlib.Path, lists: tuple[str, ...], names: tuple[str, ...] | None) -> list[TestSequence]:
    """The sequences named by the first of `lists` that exists, else by `names`, else all."""
    base = common.below(root, "JPEGImages")
    if base is None:
        return []
    size = "480p" if (base / "JPEGImages/480p").is_dir() else "Full-Resolution"
    images, masks = base / "JPEGImages" / size, base / "Annotations" / size
    common.require_folder(images, "frames")
    common.require_folder(masks, "masks")
    found = next((path for path in (base / "ImageSets" / name for name in lists) if path.is_file()), None)
    if found is not None:
        names = _names(found)
    folders = common.subfolders(images) if names is None else common.protocol_folders(images, names)
    return [_sequence(folder, masks / folder.name) for folder in folders]


def _names(path: pathlib.Path) -> tuple[str, ...]:
    """The sequences in a list of names, or of paths of frames."""
    with files.reported(path):
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    words = [line.split()[0] for line in lines if line.strip()]
    names = dict.fromkeys(word.strip("/").split("/")[-2] if "/" in word else word for word in words)
    if not names:
        raise InputError(f"{path} does not name any sequence: restore it.")
    return tuple(names)


def _sequence(images: pathlib.Path, masks: pathlib.Path) -> TestSequence:
    frames = tuple(common.frames_in(images))
    annotations = common.named_like(frames, masks, ".png", "masks")

    def annotation(frame: int) -> tuple[np.ndarray, np.ndarray]:
        moving, void = decode_image(annotations[frame], functools.partial(_decoded, path=annotations[frame]))
        common.require_shape(moving, frames[frame], annotations[frame])
        return moving, void

    return TestSequence(
        name=images.name,
        images=frames,
        times=np.arange(len(frames), dtype=np.float64),
        truth=Truth(masks=lambda frame: annotation(frame)[0], void=lambda frame: annotation(frame)[1]),
        num_source_frames=len(frames),
    )


def _decoded(image: Image.Image, path: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    """(h, w) bool of dynamic pixels, and of void pixels."""
    values = np.asarray(image)
    if image.mode in ("RGB", "RGBA"):  # like some masks of 2016
        void = (values[..., :3] == _VOID_COLOR).all(axis=-1)
        values = values[..., :3].max(axis=-1)
        if void.any():  # the palette's colours, of which none but the last is light
            return (values != 0) & ~void, void
    elif image.mode in ("LA", "PA"):  # alpha is ignored, as everywhere
        values = values[..., 0]
    elif image.mode not in ("P", "L", "1"):
        raise InputError(f"The mask {path} has pixels of mode {image.mode}: a palette or gray image is needed.")
    values = values.astype(np.uint8)
    is_binary = image.mode not in ("P", "PA") and np.isin(values, (0, _VOID)).all()
    void = np.zeros_like(values, bool) if is_binary else values == _VOID
    return (values != 0) & ~void, void
