"""NYU Depth v2 (Silberman et al., ECCV 2012): depth of single frames.

    https://cs.nyu.edu/~fergus/datasets/nyu_depth_v2.html

    ROOT/nyu_depth_v2_labeled.mat, splits.mat       as published; the 654 images that `testNdxs` names. Needs h5py
    or
    ROOT/nyu_images/*.png, nyu_depths/*.npy         extracted (also images/, rgb/ and depths/, depth/), metres,
                                                    or 16-bit images, 1000 units per metre
    or
    ROOT/[official_splits/]test/SCENE/rgb_00045.jpg, sync_depth_00045.png       16 bit, 1000 units per metre

Depth is the labelled data set's `depths`, with holes filled. Images are not cropped.
"""

from __future__ import annotations

import pathlib

import numpy as np
from PIL import Image

from easi3r_jax.core.errors import InputError
from easi3r_jax.evaluation.datasets import common
from easi3r_jax.evaluation.datasets.sequence import TestSequence, Truth
from easi3r_jax.io import files
from easi3r_jax.io.files.names import natural_order
from easi3r_jax.io.video import StoredImage

_LABELLED, _SPLITS = "nyu_depth_v2_labeled.mat", "splits.mat"
_UNITS_PER_METRE = 1000
# Names of folders, and how many levels below the root they may be: other data sets use the generic names too.
_FOLDERS = (("nyu_images", "nyu_depths", 2), ("images", "depths", 0), ("rgb", "depth", 0))


def read(root: pathlib.Path) -> list[TestSequence]:
    """One sequence of all test images."""
    if (root / _LABELLED).is_file():
        return [_labelled(root / _LABELLED, root / _SPLITS)]
    for images, depths, levels in _FOLDERS:
        base = common.below(root, images, levels)
        if base is not None:
            frames, maps = common.frames_in(base / images), _maps(base / depths)
            common.require_same_number(base / images, len(frames), base / depths, len(maps))
            return [_extracted(frames, maps)]
    base = common.below(root, "test")
    scenes = [] if base is None else common.subfolders(base / "test")
    frames = [path for scene in scenes for path in natural_order(scene.glob("rgb_*.jpg"))]
    maps = [path.with_name(path.stem.replace("rgb", "sync_depth") + ".png") for path in frames]
    missing = [path for path in maps if not path.is_file()]
    if missing:
        raise InputError(
            f"{len(missing)} of {len(maps)} depth maps are missing (the first: {missing[0]}): restore them."
        )
    return [_extracted(frames, maps)] if frames else []


def _labelled(path: pathlib.Path, splits: pathlib.Path) -> TestSequence:
    # MATLAB's (H, W, 3, N) is HDF5's (N, 3, W, H), and (H, W, N) is (N, W, H).
    with files.open_hdf5(path, "images") as images, files.open_hdf5(path, "depths") as depths:
        shapes, types = (images.shape, depths.shape), (images.dtype.kind, depths.dtype.kind)
    number, width, height = shapes[1] if len(shapes[1]) == 3 else (0, 0, 0)
    if shapes[0] != (number, 3, width, height) or types != ("u", "f"):
        raise InputError(f"{path} has images of shape {shapes[0]} and depths of shape {shapes[1]}: download it again.")
    chosen = _test_indices(splits, number)

    def image(index: int) -> Image.Image:
        with files.open_hdf5(path, "images") as data:
            return Image.fromarray(np.ascontiguousarray(data[index].transpose(2, 1, 0)).astype(np.uint8))

    def stored(index: int) -> StoredImage:
        return StoredImage(f"{path}, image {index + 1}", (height, width), lambda: image(index))

    def depth(frame: int) -> np.ndarray:
        with files.open_hdf5(path, "depths") as data:
            values = np.asarray(data[chosen[frame]]).T
        return common.as_depth(values, frames[frame], f"{path}, depth {chosen[frame] + 1}")

    frames = tuple(stored(index) for index in chosen)
    return TestSequence("test", frames, np.arange(len(frames), dtype=np.float64), Truth(depth=depth), number)


def _test_indices(path: pathlib.Path, number: int) -> list[int]:
    """The test images of splits.mat (a MATLAB 5 file), counted from 0."""
    from scipy.io import loadmat

    if not path.is_file():
        raise InputError(f"{path}, which lists the test images, is missing: download it from the data set's page.")
    try:
        found = np.asarray(loadmat(path, variable_names=["testNdxs"])["testNdxs"]).ravel()
    except Exception as error:  # on damaged bytes SciPy's reader raises almost anything
        raise InputError(f"Cannot read the list testNdxs in {path}: download it again.") from error
    if not len(found) or found.dtype.kind not in "iuf" or found.min() < 1 or found.max() > number:
        raise InputError(f"testNdxs in {path} is not a list of images 1 to {number}: download both files again.")
    return [int(index) - 1 for index in found]


def _maps(folder: pathlib.Path) -> list[pathlib.Path]:
    """Depth maps as arrays, or as images, ordered by name."""
    arrays = natural_order(common.require_folder(folder, "depth maps").glob("*.npy"))
    return arrays or common.frames_in(folder, "depth maps")


def _extracted(frames: list[pathlib.Path], maps: list[pathlib.Path]) -> TestSequence:
    def depth(frame: int) -> np.ndarray:
        path, shape = maps[frame], common.shape_of(frames[frame])
        is_array = path.suffix == ".npy"
        values = files.read_npy(path, shape) if is_array else files.read_gray16(path) / _UNITS_PER_METRE
        return common.as_depth(values, frames[frame], path)

    times = np.arange(len(frames), dtype=np.float64)
    return TestSequence("test", tuple(frames), times, Truth(depth=depth), len(frames))
