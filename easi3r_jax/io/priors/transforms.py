"""`transforms.json`, as written by nerfstudio, instant-ngp and their converters from COLMAP.

Its cameras have OpenGL axes (x right, y up, z backward). Its pixel coordinates count from the image's corner: the
centre of the top left pixel is (0.5, 0.5), half a pixel more than here. This module returns this project's conventions.
Cameras are pinholes: lens distortion is ignored, with a warning.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import absl.logging
import numpy as np

from easi3r_jax.core.arrays import Float
from easi3r_jax.core.errors import InputError
from easi3r_jax.io.priors.files import read_text

_FOCALS = ("fl_x", "fl_y", "camera_angle_x", "camera_angle_y")
_INTRINSICS = (*_FOCALS, "cx", "cy")
_DISTORTIONS = ("k1", "k2", "k3", "k4", "k5", "k6", "p1", "p2")
_NON_PINHOLE_MODELS = ("FISHEYE", "EQUIRECT", "SPHERICAL", "OMNI", "ORTHO")
# Multiplied by column: a matrix product would spread a NaN.
_OPENGL_FROM_OPENCV = np.array([1.0, -1.0, -1.0, 1.0])
_MAX_NAME_LENGTH = 4096
# Text, which stays; and what JSON forbids, but people write: commas before a closing bracket, and comments.
_LENIENT = re.compile(r'("(?:[^"\\]|\\.)*")|,(?=\s*[}\]])|//[^\n]*|/\*.*?\*/', re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Transforms:
    """The content of a file.

    Attributes:
      path: the file.
      shared: values that apply to all images.
      images: values of each listed image; each has a `file_path`.
    """

    path: pathlib.Path
    shared: Mapping[str, Any]
    images: list[Mapping[str, Any]]

    @property
    def names(self) -> list[str]:
        """`file_path` of each image."""
        return [image["file_path"] for image in self.images]

    @property
    def labels(self) -> list[str]:
        """The name of each image, for messages."""
        return [f"{self.path}, image {name}" for name in self.names]


def read_transforms(path: pathlib.Path) -> Transforms:
    """Reads a `transforms.json`.

    Raises:
      InputError: the file does not exist, is not JSON, or has another structure.
    """
    text = read_text(path)
    try:
        content = json.loads(_LENIENT.sub(lambda match: match[1] or "", text))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON: {error}.") from error
    images = content.get("frames", []) if isinstance(content, dict) else None
    if not isinstance(images, list) or not all(isinstance(image, dict) for image in images):
        raise InputError(f"{path} is not a transforms.json: an object with a list 'frames' of objects is needed.")
    for number, image in enumerate(images):
        name = image.get("file_path")
        if not isinstance(name, str) or not 0 < len(name) <= _MAX_NAME_LENGTH:
            raise InputError(f"{path}: entry {number} (from 0) of 'frames' has no 'file_path', which names its image.")
    return Transforms(path, content, images)


def intrinsics_of(
    transforms: Transforms, size: tuple[int, int]
) -> tuple[Float[np.ndarray, "N 3 3"], Float[np.ndarray, "3 3"]]:
    """Intrinsics of the listed images, and of all others.

    Focal lengths are `fl_x` and `fl_y`, or else follow from `camera_angle_x` and `camera_angle_y` (radians); with only
    one of them, pixels are square. The principal point is (`cx`, `cy`), or else the image's centre. An image's own
    values override those of the file.

    Args:
      transforms: the file.
      size: (height, width) of the images.

    Returns:
      (N, 3, 3) for the listed images in the file's order, with N = 0 if no image has its own; and (3, 3) for all
      others. In pixels of the original images, NaN where unknown.

    Raises:
      InputError: the size differs, a camera is not a perspective camera, or a value is not a finite number.
    """
    shared = _matrix(transforms.shared, str(transforms.path), size)
    _warn_of_distortion(transforms)
    if not any(key in image for image in transforms.images for key in (*_INTRINSICS, "w", "h", "camera_model")):
        return np.empty((0, 3, 3)), shared
    rows = []
    for image, label in zip(transforms.images, transforms.labels, strict=True):
        own_focal = any(key in image for key in _FOCALS)
        inherited = {k: v for k, v in transforms.shared.items() if not (own_focal and k in _FOCALS)}
        rows.append(_matrix({**inherited, **image}, label, size))
    return np.stack(rows), shared


def poses_of(transforms: Transforms) -> Float[np.ndarray, "N 4 4"]:
    """(N, 4, 4) camera to world of the listed images, OpenCV axes; rotations are not checked.

    Raises:
      InputError: there are no images, or a `transform_matrix` is not 4x4 (or 3x4) numbers.
    """
    if not transforms.images:
        raise InputError(f"{transforms.path} has no poses: its list 'frames' is empty.")
    poses = np.tile(np.eye(4), (len(transforms.images), 1, 1))
    for pose, image, label in zip(poses, transforms.images, transforms.labels, strict=True):
        try:
            matrix = np.array(image.get("transform_matrix"), np.float64)
        except (TypeError, ValueError, OverflowError):
            matrix = np.empty(0)
        if matrix.shape not in ((4, 4), (3, 4)):
            raise InputError(f"{label}: 'transform_matrix' is not 4 rows of 4 numbers.")
        pose[: len(matrix)] = matrix
    return poses * _OPENGL_FROM_OPENCV


def _matrix(record: Mapping[str, Any], label: str, size: tuple[int, int]) -> np.ndarray:
    model = str(record.get("camera_model", "")).upper()
    if any(name in model for name in _NON_PINHOLE_MODELS) or record.get("is_fisheye") is True:
        raise InputError(
            f"{label}: the camera is not a perspective camera ({model or 'fisheye'}): undistort the video first."
        )
    height, width = size
    stated = _number(record, "w", label, width), _number(record, "h", label, height)
    if stated != (width, height):
        raise InputError(
            f"{label} is for images of {stated[0]:g}x{stated[1]:g} pixels, but the video has {width}x{height}: "
            "scale the intrinsics, or give the video that they belong to."
        )
    focal_x, focal_y = (_focal(record, axis, side, label) for axis, side in (("x", width), ("y", height)))
    if focal_x is None and focal_y is None:
        return np.full((3, 3), np.nan)
    centre = _number(record, "cx", label, width / 2) - 0.5, _number(record, "cy", label, height / 2) - 0.5
    return np.array([[focal_x or focal_y, 0, centre[0]], [0, focal_y or focal_x, centre[1]], [0, 0, 1]], np.float64)


def _warn_of_distortion(transforms: Transforms) -> None:
    records = [(str(transforms.path), transforms.shared), *zip(transforms.labels, transforms.images, strict=True)]
    for label, record in records:
        terms = [f"{key} = {_number(record, key, label, 0):g}" for key in _DISTORTIONS if record.get(key)]
        if terms:
            absl.logging.warning("%s: lens distortion (%s) is ignored.", label, ", ".join(terms))
            return


def _focal(record: Mapping[str, Any], axis: str, side: int, label: str) -> float | None:
    """Focal length in pixels; None if the record has none."""
    if f"fl_{axis}" in record:
        focal = _number(record, f"fl_{axis}", label, 0)
        if focal <= 0:
            raise InputError(f"{label}: 'fl_{axis}' is {focal:g}, but a focal length in pixels is positive.")
        return focal
    if f"camera_angle_{axis}" in record:
        angle = _number(record, f"camera_angle_{axis}", label, 0)
        if not 0 < angle < math.pi:
            raise InputError(f"{label}: 'camera_angle_{axis}' is {angle:g}, not an angle in radians between 0 and pi.")
        return side / 2 / math.tan(angle / 2)
    return None


def _number(record: Mapping[str, Any], key: str, label: str, default: float) -> float:
    value = record.get(key, default)
    try:
        if isinstance(value, int | float) and math.isfinite(value):
            return float(value)
    except OverflowError:  # an integer of hundreds of digits
        pass
    raise InputError(f"{label}: {key!r} is {str(value)[:40]}, not a finite number.")
