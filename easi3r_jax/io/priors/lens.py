"""A lens from a user's calibration: typed, or in COLMAP's cameras.txt or a transforms.json."""

from __future__ import annotations

import pathlib

from easi3r_jax.core.errors import InputError
from easi3r_jax.core.lens import MODELS, Lens, lens_of
from easi3r_jax.io.priors.files import read_text
from easi3r_jax.io.priors.transforms import read_transforms

# Models without distortion, and those that stand for ours in other programs.
_STRAIGHT = ("SIMPLE_PINHOLE", "PINHOLE")
_SAME = {"PERSPECTIVE": "OPENCV", "FISHEYE": "OPENCV_FISHEYE"}


def load_lens(text: str) -> Lens:
    """Reads a lens.

    Args:
      text: `MODEL:PARAMETERS`, separated by commas, with COLMAP's models, parameters and pixel coordinates: for
        example `SIMPLE_RADIAL:1200,960,540,-0.1`; or a file, COLMAP's cameras.txt with one camera or a
        transforms.json.

    Raises:
      InputError: neither of these, an unknown model, too few parameters, a camera without distortion, or several.
    """
    model, colon, parameters = text.partition(":")
    if colon and model.strip().upper() in (*MODELS, *_STRAIGHT):
        return _distorted([model, *parameters.split(",")], None, "--distortion")
    path = pathlib.Path(text).expanduser()
    if path.suffix.lower() == ".json":
        return _of_transforms(path)
    if path.suffix.lower() == ".txt":
        return _of_cameras(path)
    raise InputError(
        f"{text} is not a lens: give MODEL:PARAMETERS with a model of {', '.join(MODELS)}, COLMAP's cameras.txt, or a "
        "transforms.json."
    )


def _of_cameras(path: pathlib.Path) -> Lens:
    lines = [line.split("#")[0].split() for line in read_text(path).splitlines()]
    cameras = [words for words in lines if words]
    if len({tuple(words[1:]) for words in cameras}) != 1:
        raise InputError(f"{path} has {len(cameras)} cameras: keep the one that took this clip.")
    words = cameras[0]
    if len(words) < 5 or not all(word.isascii() and word.isdecimal() for word in words[2:4]):
        raise InputError(f"{path}: not a camera: CAMERA_ID MODEL WIDTH HEIGHT PARAMETERS are needed.")
    return _distorted([words[1], *words[4:]], (int(words[2]), int(words[3])), str(path))


def _of_transforms(path: pathlib.Path) -> Lens:
    """The lens of all images: values of single ones are not lenses of one clip."""
    transforms = read_transforms(path)
    values = transforms.shared
    model = str(values.get("camera_model", "OPENCV")).upper()
    model = "OPENCV_FISHEYE" if values.get("is_fisheye") is True else _SAME.get(model, model)
    if model == "OPENCV" and any(values.get(name) for name in ("k3", "k4", "k5", "k6")):
        model = "FULL_OPENCV"
    if model not in (*MODELS, *_STRAIGHT):
        raise InputError(f"{path}: the lens model {model[:40]!r} is unknown: it must be one of {', '.join(MODELS)}.")
    named = {"f": "fl_x", "fx": "fl_x", "fy": "fl_y"}
    numbers = []
    for name in MODELS.get(model, ()):
        key = named.get(name, name)
        default = values.get("fl_x") if key == "fl_y" else None if name in ("f", "fx", "cx", "cy") else 0.0
        found = values.get(key, default)
        if not isinstance(found, int | float):
            raise InputError(f"{path}: the lens {model} has no number {key!r} for all images: add it.")
        numbers.append(str(found))
    sides = [int(side) for side in (values.get("w"), values.get("h")) if isinstance(side, int | float) and side >= 1]
    return _distorted([model, *numbers], (sides[0], sides[1]) if len(sides) == 2 else None, str(path))


def _distorted(words: list[str], size: tuple[int, int] | None, where: str) -> Lens:
    if words[0].strip().upper() in _STRAIGHT:
        raise InputError(f"{where}: a {words[0].strip()} camera has no distortion: give it as --intrinsics.")
    try:
        return lens_of(words, size)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
