"""DyCheck's iPhone captures (Gao et al., NeurIPS 2022; https://github.com/KAIR-BAIR/dycheck): poses, depth, points.

    ROOT/[iphone/]apple/
      rgb/2x/0_00000.png, depth/2x/0_00000.npy      at half the resolution, metres, 0 unknown
      camera/0_00000.json                           in pixels of rgb/1x
      dataset.json, extra.json                      the frames of the moving camera (train_ids); the resolution used
                                                    (factor)

All frames of the moving camera of all captures found. Points are the depth, unprojected and transformed by the poses.
Cameras are in the format of Nerfies (https://github.com/google/nerfies#datasets): `orientation` world to camera,
`position` of the camera in the world, OpenCV axes, pixel centres at halves.
"""

from __future__ import annotations

import json
import pathlib

import numpy as np

from easi3r_jax.core.errors import InputError
from easi3r_jax.evaluation.datasets import common
from easi3r_jax.evaluation.datasets.sequence import TestSequence, Truth
from easi3r_jax.io import files
from easi3r_jax.io.files.names import natural_order
from easi3r_jax.io.priors.files import read_text
from easi3r_jax.io.video.images import image_shape

_DEFAULT_FACTOR = 2
_MOVING_CAMERA_PREFIX = "0_"


def read(root: pathlib.Path) -> list[TestSequence]:
    """All captures in a folder, or the folder itself as the only one."""
    return [_sequence(folder) for folder in files.folders_with(root, "camera", 2) if (folder / "rgb").is_dir()]


def _sequence(folder: pathlib.Path) -> TestSequence:
    scale = f"{_factor(folder)}x"
    names = _names(folder, folder / "rgb" / scale)
    places = {"rgb": (folder / "rgb" / scale, ".png"), "depth": (folder / "depth" / scale, ".npy")}
    places["camera"] = (folder / "camera", ".json")
    paths: dict[str, list[pathlib.Path]] = {}
    for kind, (place, suffix) in places.items():
        existing = set(files.names_in(common.require_folder(place, f"{kind} of the frames")))
        paths[kind] = [place / (name + suffix) for name in names]
        missing = [path for path in paths[kind] if path.name not in existing]
        if missing:
            raise InputError(
                f"{place} lacks {len(missing)} of {len(names)} frames (the first: {missing[0].name}): "
                "download the capture again, or remove it."
            )
    images, shape = tuple(paths["rgb"]), image_shape(paths["rgb"][0])
    cameras = [_camera(path, shape) for path in paths["camera"]]
    times = np.arange(len(names), dtype=np.float64)
    labels = [str(path) for path in paths["camera"]]

    def depth(frame: int) -> np.ndarray:
        path, shape = paths["depth"][frame], image_shape(images[frame])
        return common.as_depth(files.read_npy(path, shape, (*shape, 1)).reshape(shape), images[frame], path)

    return TestSequence(
        name=folder.name,
        images=images,
        times=times,
        truth=Truth(
            depth=depth,
            intrinsics=common.make_intrinsics(np.stack([intrinsics for intrinsics, _ in cameras]), labels),
            trajectory=common.make_trajectory(times, np.stack([pose for _, pose in cameras]), labels),
        ),
        num_source_frames=len(names),
    )


def _factor(folder: pathlib.Path) -> int:
    """The factor by which the frames in use are smaller than the camera's images."""
    path = folder / "extra.json"
    if not path.is_file():
        return _DEFAULT_FACTOR
    factor = _read_json(path).get("factor", _DEFAULT_FACTOR)
    if not isinstance(factor, int) or factor < 1:
        raise InputError(f"{path}: factor {factor!r} is not a positive integer. Restore the file.")
    return factor


def _names(folder: pathlib.Path, images: pathlib.Path) -> list[str]:
    """The names of the moving camera's frames, in order."""
    path = folder / "dataset.json"
    if path.is_file():
        names = _read_json(path).get("train_ids")
        if not (isinstance(names, list) and names and all(isinstance(name, str) for name in names)):
            raise InputError(f"{path} has no list of frames train_ids: restore it.")
        if len(set(names)) < len(names):
            raise InputError(f"{path} names a frame twice in train_ids: restore it.")
        return [path.name for path in natural_order(map(pathlib.PurePosixPath, names))]
    names = [image.stem for image in common.frames_in(images) if image.stem.startswith(_MOVING_CAMERA_PREFIX)]
    if not names:
        raise InputError(
            f"{images} has no frames {_MOVING_CAMERA_PREFIX}00000.png ... of the moving camera: "
            "download the capture again."
        )
    return names


def _camera(path: pathlib.Path, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """(3, 3) intrinsics in pixels of an image of the given shape, and (4, 4) world from camera."""
    camera = _read_json(path)
    try:
        world_from_cam = np.eye(4)
        world_from_cam[:3, :3] = np.array(camera["orientation"], np.float64).reshape(3, 3).T
        world_from_cam[:3, 3] = np.array(camera["position"], np.float64).reshape(3)
        width, height = (float(side) for side in camera["image_size"])
        focal, aspect = float(camera["focal_length"]), float(camera.get("pixel_aspect_ratio", 1))
        centre = np.array(camera["principal_point"], np.float64).reshape(2)
        distortion = [
            camera.get(key) or 0 for key in ("skew", "radial_distortion", "tangential_distortion", "tangential")
        ]
        is_distorted = any(np.any(np.array(value, np.float64) != 0) for value in distortion)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is not a DyCheck camera ({type(error).__name__}: {error}): restore it.") from error
    # The aspects of the camera's image and of the frame, compared as products, since a file may say 0.
    same_aspect = min(width, height) > 0 and abs(shape[1] * height - shape[0] * width) <= 0.01 * shape[0] * width
    if is_distorted or not (focal > 0 and aspect > 0 and same_aspect):
        raise InputError(
            f"{path}: a camera without distortion, with a positive focal length and images of the aspect of shape "
            f"{shape} is needed. Restore the file."
        )
    scales = shape[1] / width, shape[0] / height
    intrinsics = np.diag([focal * scales[0], focal * aspect * scales[1], 1.0])
    intrinsics[:2, 2] = centre * scales - 0.5
    return intrinsics, world_from_cam


def _read_json(path: pathlib.Path) -> dict:
    try:
        found = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON: {error}. Restore it.") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} does not hold a JSON object: restore it.")
    return found
