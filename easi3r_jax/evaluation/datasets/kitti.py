"""KITTI's annotated depth (Uhrig et al., 3DV 2017; https://www.cvlibs.net/datasets/kitti/eval_depth_all.php): depth.

    ROOT/[depth_selection/val_selection_cropped/]                   as prepared for MonST3R
      image_gathered/2011_09_26_drive_0002_sync_02/*.png
      groundtruth_depth_gathered/2011_09_26_drive_0002_sync_02/*.png
    or
    ROOT/val/2011_09_26_drive_0002_sync/proj_depth/groundtruth/image_02/0000000005.png        as published
    ROOT/[raw/]2011_09_26/2011_09_26_drive_0002_sync/image_02/data/0000000005.png
      (or below ROOT/val/2011_09_26_drive_0002_sync itself)

Depth is 16 bit, 256 units per metre, 0 unknown (most pixels: it is lidar). The 13 validation drives, left colour
camera, the first 110 frames that have depth (DepthCrafter, arXiv 2409.02095, and MonST3R, sec. 4).
"""

from __future__ import annotations

import pathlib

import numpy as np

from easi3r_jax.core.errors import InputError
from easi3r_jax.evaluation.datasets import common
from easi3r_jax.evaluation.datasets.sequence import TestSequence, Truth
from easi3r_jax.io import files

LIMIT = 110
DRIVES = tuple(
    f"{date}_drive_{number}_sync"
    for date, numbers in (
        ("2011_09_26", ("0002", "0005", "0013", "0020", "0023", "0036", "0079", "0095", "0113")),
        ("2011_09_28", ("0037",)),
        ("2011_09_29", ("0026",)),
        ("2011_09_30", ("0016",)),
        ("2011_10_03", ("0047",)),
    )
    for number in numbers
)
_UNITS_PER_METRE = 256


def read(root: pathlib.Path) -> list[TestSequence]:
    """The 13 drives, in either layout."""
    gathered = common.below(root, "image_gathered")
    if gathered is not None:
        return _gathered(gathered)
    base = common.below(root, "val", 1)
    if base is None:
        return []
    return [_published(base, folder) for folder in common.protocol_folders(base / "val", DRIVES)]


def _gathered(base: pathlib.Path) -> list[TestSequence]:
    folders = common.subfolders(base / "image_gathered")
    names = {drive: [folder.name for folder in folders if folder.name.startswith(drive)] for drive in DRIVES}
    common.protocol_folders(base / "image_gathered", [(found or [drive])[0] for drive, found in names.items()])
    sequences = []
    for found in names.values():
        images, depths = (base / kind / found[0] for kind in ("image_gathered", "groundtruth_depth_gathered"))
        frames, maps = common.frames_in(images), common.frames_in(depths, "depth maps")
        common.require_same_number(images, len(frames), depths, len(maps))
        sequences.append(_sequence(found[0], frames, maps, len(frames)))
    return sequences


def _published(base: pathlib.Path, folder: pathlib.Path) -> TestSequence:
    maps = common.frames_in(folder / "proj_depth/groundtruth/image_02", "depth maps")
    date = folder.name[: len("2011_09_26")]
    places = (base / "raw" / date / folder.name, base / date / folder.name, folder, base / "raw" / folder.name)
    data = next((place / "image_02/data" for place in places if (place / "image_02/data").is_dir()), None)
    if data is None:
        raise InputError(
            f"There are no frames for {folder}: {places[0] / 'image_02/data'} is needed, from KITTI's raw data."
        )
    frames = {path.stem: path for path in common.frames_in(data)}
    missing = [path for path in maps if path.stem not in frames]
    if missing:
        raise InputError(
            f"{data} has {len(frames)} frames, but {len(missing)} of the {len(maps)} depth maps have no frame (the "
            f"first: {missing[0].name}): download both again, or remove the sequence."
        )
    return _sequence(folder.name, [frames[path.stem] for path in maps], maps, len(frames))


def _sequence(name: str, images: list[pathlib.Path], maps: list[pathlib.Path], num_source_frames: int) -> TestSequence:
    images = images[:LIMIT]

    def depth(frame: int) -> np.ndarray:
        return common.as_depth(files.read_gray16(maps[frame]) / _UNITS_PER_METRE, images[frame], maps[frame])

    times = np.arange(len(images), dtype=np.float64)
    return TestSequence(name, tuple(images), times, Truth(depth=depth), num_source_frames)
