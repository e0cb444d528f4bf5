"""Tiny copies of data sets, written as they lie on disk, and what was written."""

from __future__ import annotations

import json
import pathlib
import struct
from collections.abc import Sequence

import h5py
import numpy as np
from PIL import Image
from scipy.io import savemat
from scipy.spatial.transform import Rotation

SHAPE = (6, 8)


def save_image(path: pathlib.Path, value: int = 0, shape: tuple[int, int] = SHAPE) -> pathlib.Path:
    """A picture of one colour that tells which it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*shape, 3), value % 256, np.uint8)).save(path)
    return path


def save_gray16(path: pathlib.Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values.astype(np.uint16)).save(path)


def save_palette(path: pathlib.Path, indices: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.frombytes("P", indices.shape[::-1], indices.astype(np.uint8).tobytes())
    image.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0] + [255] * 3 * 253)
    image.save(path)


def camera_path(length: int) -> np.ndarray:
    """(T, 4, 4) world from camera: turns about all axes and moves along all."""
    poses = np.tile(np.eye(4), (length, 1, 1))
    for k in range(length):
        poses[k, :3, :3] = Rotation.from_euler("yxz", [0.2 + 0.03 * k, -0.05 * k, 0.02 * k]).as_matrix()
        poses[k, :3, 3] = 0.25 * k, 1 - 0.1 * k, 0.05 * k * k
    return poses


def tum_lines(times: Sequence[float] | np.ndarray, poses: np.ndarray) -> str:
    """A trajectory as text."""
    lines = ["# timestamp tx ty tz qx qy qz qw"]
    for time, pose in zip(times, poses, strict=True):
        numbers = [*pose[:3, 3], *Rotation.from_matrix(pose[:3, :3]).as_quat()]
        lines.append(f"{time:.6f} " + " ".join(f"{number:.9f}" for number in numbers))
    return "\n".join(lines) + "\n"


def depth_of(frame: int) -> np.ndarray:
    """(h, w) metres, each pixel another, 0 in a corner; whole multiples of 1/8."""
    depth = 1 + frame + np.arange(SHAPE[0] * SHAPE[1]).reshape(SHAPE) / 8
    depth[0, 0] = 0
    return depth


def write_davis(root: pathlib.Path, names: Sequence[str] = ("bear", "dog"), frames: int = 3) -> pathlib.Path:
    """2017's layout; object 1 and 2 and void in the masks of the first sequence."""
    for name in names:
        for frame in range(frames):
            save_image(root / f"JPEGImages/480p/{name}/{frame:05}.jpg", frame)
            indices = np.zeros(SHAPE, int)
            indices[1, 1:4], indices[2, frame], indices[5] = 1, 2, 255
            save_palette(root / f"Annotations/480p/{name}/{frame:05}.png", indices)
    lists = root / "ImageSets/2017"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text(f"{names[0]}\n")
    (lists / "val.txt").write_text("".join(f"{name}\n" for name in names[1:]))
    (root / "ImageSets/2016").mkdir()
    (root / "ImageSets/2016/val.txt").write_text(f"{names[-1]}\n")
    return root


def write_tum(folder: pathlib.Path, frames: int = 12, start: float = 1341846313.5) -> np.ndarray:
    """A recording at 30 Hz with motion capture at 90 Hz; -> the true (T, 4, 4) at the frames."""
    poses = camera_path(3 * frames)
    times = start + np.arange(3 * frames) / 90
    lines = ["# color images"]
    for frame in range(frames):
        stamp = times[3 * frame] + 0.002
        save_image(folder / f"rgb/{stamp:.6f}.png", frame)
        lines.append(f"{stamp:.6f} rgb/{stamp:.6f}.png")
    (folder / "rgb.txt").write_text("\n".join(lines))
    (folder / "groundtruth.txt").write_text(tum_lines(times, poses))
    return poses[::3]


def write_tum_prepared(folder: pathlib.Path, frames: int = 5) -> np.ndarray:
    poses, times = camera_path(frames), 1341846313.5 + np.arange(frames) / 10
    for frame in range(frames):
        save_image(folder / f"rgb_90/{times[frame] + 0.015:.6f}.png", frame)
    (folder / "groundtruth_90.txt").write_text(tum_lines(times, poses))
    return poses


def write_sintel(root: pathlib.Path, names: Sequence[str], frames: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """-> intrinsics (3, 3) and (T, 4, 4) world from camera of every sequence."""
    intrinsics, poses = np.array([[1120.0, 0, 511.5], [0, 1121, 217.5], [0, 0, 1]]), camera_path(frames)
    for name in names:
        for frame in range(frames):
            save_image(root / f"final/{name}/frame_{frame + 1:04}.png", frame)
            camera = root / f"camdata_left/{name}/frame_{frame + 1:04}.cam"
            depth = root / f"depth/{name}/frame_{frame + 1:04}.dpt"
            for path in (camera, depth):
                path.parent.mkdir(parents=True, exist_ok=True)
            numbers = [*intrinsics.ravel(), *np.linalg.inv(poses[frame])[:3].ravel()]
            camera.write_bytes(struct.pack("<f21d", 202021.25, *numbers))
            head = struct.pack("<fii", 202021.25, SHAPE[1], SHAPE[0])
            depth.write_bytes(head + depth_of(frame).astype("<f4").tobytes())
    return intrinsics, poses


def write_scannet(folder: pathlib.Path, frames: int = 12, lost: Sequence[int] = ()) -> np.ndarray:
    poses = camera_path(frames)
    (folder / "pose").mkdir(parents=True)
    for frame in range(frames):
        save_image(folder / f"color/{frame}.jpg", frame)
        pose = np.full((4, 4), -np.inf) if frame in lost else poses[frame]
        np.savetxt(folder / f"pose/{frame}.txt", pose, fmt="%.6f")
    return poses


def write_scannet_prepared(folder: pathlib.Path, frames: int = 5) -> np.ndarray:
    poses = camera_path(frames)
    for frame in range(frames):
        save_image(folder / f"color_90/frame_{frame:04}.jpg", frame)
    np.savetxt(folder / "pose_90.txt", poses.reshape(frames, 16))
    return poses


def write_adt(folder: pathlib.Path, frames: int = 5) -> np.ndarray:
    """As published, with the calibration beside; -> the camera's (T, 4, 4)."""
    poses, stamps = camera_path(frames), 87551170910300 + 33_333_333 * np.arange(frames)
    device_from_camera = np.eye(4)
    device_from_camera[:3, :3] = Rotation.from_euler("xyz", [0.4, -0.2, 1.5]).as_matrix()
    device_from_camera[:3, 3] = -0.01, 0.02, 0.03
    names = ["tx", "ty", "tz", "qx", "qy", "qz", "qw"]
    lines = [
        "graph_uid,tracking_timestamp_us,utc_timestamp_ns," + ",".join(f"{n}_world_device" for n in names) + ",quality"
    ]
    for frame in range(frames):
        save_image(folder / f"rgb/{stamps[frame]}.png", frame)
        pose = poses[frame] @ np.linalg.inv(device_from_camera)
        numbers = [*pose[:3, 3], *Rotation.from_matrix(pose[:3, :3]).as_quat()]
        lines.append(f"uid,{stamps[frame] // 1000 + 300},-1," + ",".join(f"{n:.9f}" for n in numbers) + ",1.0")
    (folder / "aria_trajectory.csv").write_text("\n".join(lines) + "\n")
    np.savetxt(folder / "device_from_camera.txt", device_from_camera)
    return poses


def write_adt_prepared(folder: pathlib.Path, frames: int = 5) -> np.ndarray:
    poses = camera_path(frames)
    for frame in range(frames):
        save_image(folder / f"images/frame_{frame}.jpg", frame)
    (folder / "groundtruth.txt").write_text(tum_lines(np.arange(frames) / 10, poses))
    return poses


def write_iphone(folder: pathlib.Path, frames: int = 4) -> np.ndarray:
    """Camera of 16 x 12 pixels, frames of half the size; two frames of a second, still camera."""
    poses = camera_path(frames)
    names = [f"0_{frame:05}" for frame in range(frames)]
    for place in ("camera", "depth/2x"):
        (folder / place).mkdir(parents=True)
    for k, name in enumerate([*names, "1_00000", "1_00001"]):
        pose = poses[min(k, frames - 1)]
        save_image(folder / f"rgb/2x/{name}.png", k)
        camera = {
            "orientation": pose[:3, :3].T.tolist(),
            "position": pose[:3, 3].tolist(),
            "focal_length": 20.0,
            "principal_point": [8.4, 6.2],
            "skew": 0.0,
            "pixel_aspect_ratio": 1.1,
            "radial_distortion": [0.0, 0.0, 0.0],
            "tangential_distortion": [0.0, 0.0],
            "image_size": [16, 12],
        }
        (folder / f"camera/{name}.json").write_text(json.dumps(camera))
        if name.startswith("0_"):
            np.save(folder / f"depth/2x/{name}.npy", depth_of(k).astype(np.float32)[..., None])
    (folder / "dataset.json").write_text(json.dumps({"count": frames + 2, "train_ids": names, "val_ids": ["1_00000"]}))
    (folder / "extra.json").write_text(json.dumps({"factor": 2, "fps": 30.0}))
    return poses


def write_bonn(folder: pathlib.Path, frames: int = 36) -> None:
    """As published: depth is taken 10 ms after colour. Depth of frame n is `depth_of(n % 5)`."""
    lists = {"rgb": ["# color"], "depth": ["# depth"]}
    for frame in range(frames):
        for kind, late in (("rgb", 0.0), ("depth", 0.01)):
            stamp = f"{1548266486 + frame / 30 + late:.5f}"
            lists[kind].append(f"{stamp} {kind}/{stamp}.png")
            path = folder / kind / f"{stamp}.png"
            if kind == "rgb":
                save_image(path, frame)
            else:
                save_gray16(path, depth_of(frame % 5) * 5000)
    for kind, lines in lists.items():
        (folder / f"{kind}.txt").write_text("\n".join(lines))


def write_bonn_prepared(folder: pathlib.Path, frames: int = 4) -> None:
    for frame in range(frames):
        stamp = f"{1548266486 + frame / 30:.5f}"
        save_image(folder / f"rgb_110/{stamp}.png", frame)
        save_gray16(folder / f"depth_110/{stamp}.png", depth_of(frame) * 5000)


def write_kitti(root: pathlib.Path, drives: Sequence[str], frames: int = 9) -> None:
    """As published: the first two and last two frames have no depth. Depth of frame n is `depth_of(n)`."""
    for drive in drives:
        for frame in range(frames):
            save_image(root / f"raw/{drive[:10]}/{drive}/image_02/data/{frame:010}.png", frame)
            if 2 <= frame < frames - 2:
                path = root / f"val/{drive}/proj_depth/groundtruth/image_02/{frame:010}.png"
                save_gray16(path, depth_of(frame) * 256)


def write_kitti_prepared(root: pathlib.Path, drives: Sequence[str], frames: int = 3) -> None:
    base = root / "depth_selection/val_selection_cropped"
    for drive in drives:
        for frame in range(frames):
            save_image(base / f"image_gathered/{drive}_02/{frame + 5:010}.png", frame)
            save_gray16(base / f"groundtruth_depth_gathered/{drive}_02/{frame + 5:010}.png", depth_of(frame) * 256)


def write_nyu(root: pathlib.Path, number: int = 5, test: Sequence[int] = (2, 5)) -> np.ndarray:
    """As published; -> (N, h, w, 3) images. Depth of image n (from 1) is `depth_of(n)`."""
    images = np.random.default_rng(0).integers(0, 256, (number, *SHAPE, 3), np.uint8)
    depths = np.stack([depth_of(n + 1) for n in range(number)]).astype(np.float32)
    root.mkdir(parents=True, exist_ok=True)
    with h5py.File(root / "nyu_depth_v2_labeled.mat", "w") as file:
        file["images"], file["depths"] = images.transpose(0, 3, 2, 1), depths.transpose(0, 2, 1)
    savemat(root / "splits.mat", {"testNdxs": np.array(test, np.uint16)[:, None], "trainNdxs": np.array([[1]])})
    return images


def write_clip(folder: pathlib.Path, frames: int = 4, **arrays: np.ndarray) -> None:
    for frame in range(frames):
        save_image(folder / f"frames/{frame:05}.png", frame)
    if arrays:
        np.savez(folder / "ground_truth.npz", **arrays)
