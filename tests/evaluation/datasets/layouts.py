"""Writes small copies of data sets, in their own layouts, from a `Film`: frames with known ground truth."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import struct
from collections.abc import Callable, Mapping, Sequence

import h5py
import numpy as np
from PIL import Image
from scipy.io import savemat
from scipy.spatial.transform import Rotation

SHAPE = (6, 8)


def save_image(path: pathlib.Path, value: int = 0, shape: tuple[int, int] = SHAPE) -> pathlib.Path:
    """Saves an image of one gray value, by which it can be recognised."""
    return save_rgb(path, np.full((*shape, 3), value % 256, np.uint8))


def save_rgb(path: pathlib.Path, rgb: np.ndarray) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rgb).save(path)
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
    """(T, 4, 4) world from camera: rotates about all axes and moves along all of them."""
    poses = np.tile(np.eye(4), (length, 1, 1))
    for k in range(length):
        poses[k, :3, :3] = Rotation.from_euler("yxz", [0.2 + 0.03 * k, -0.05 * k, 0.02 * k]).as_matrix()
        poses[k, :3, 3] = 0.25 * k, 1 - 0.1 * k, 0.05 * k * k
    return poses


def tum_lines(times: Sequence[float] | np.ndarray, poses: np.ndarray) -> str:
    """A trajectory as text in TUM's format."""
    lines = ["# timestamp tx ty tz qx qy qz qw"]
    for time, pose in zip(times, poses, strict=True):
        numbers = [*pose[:3, 3], *Rotation.from_matrix(pose[:3, :3]).as_quat()]
        lines.append(f"{time:.6f} " + " ".join(f"{number:.9f}" for number in numbers))
    return "\n".join(lines) + "\n"


def depth_of(frame: int) -> np.ndarray:
    """(h, w) metres, different at each pixel, 0 in a corner; multiples of 1/8. Repeats every five frames."""
    depth = 1 + frame % 5 + np.arange(SHAPE[0] * SHAPE[1]).reshape(SHAPE) / 8
    depth[0, 0] = 0
    return depth


@dataclasses.dataclass(frozen=True, eq=False)
class Film:
    """Frames and ground truth, from which copies of data sets are written.

    Attributes:
      rgb: (T, h, w, 3) uint8.
      depth: (T, h, w) metres, 0 where unknown.
      objects: (T, h, w), the number of each moving object, 0 for static pixels, 255 for pixels to ignore.
      world_from_cam: (T, 4, 4) rigid; None if a reader should find no path.
      intrinsics: (3, 3), with integer coordinates at pixel centres.
      whole: (T,) bool. The files of other frames are written damaged, so that opening them fails.
    """

    rgb: np.ndarray
    depth: np.ndarray
    objects: np.ndarray
    world_from_cam: np.ndarray | None
    intrinsics: np.ndarray
    whole: np.ndarray

    def __len__(self) -> int:
        return len(self.rgb)

    def save_frame(self, path: pathlib.Path, frame: int) -> None:
        self._save(path, frame, lambda: save_rgb(path, self.rgb[frame]))

    def save_depth16(self, path: pathlib.Path, frame: int, units_per_metre: float) -> None:
        self._save(path, frame, lambda: save_gray16(path, np.round(self.depth[frame] * units_per_metre)))

    def save_array(self, path: pathlib.Path, frame: int, array: np.ndarray) -> None:
        self._save(path, frame, lambda: np.save(path, array))

    def save_objects(self, path: pathlib.Path, frame: int) -> None:
        self._save(path, frame, lambda: save_palette(path, self.objects[frame]))

    def _save(self, path: pathlib.Path, frame: int, save: Callable[[], object]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if self.whole[frame]:
            save()
        else:
            path.write_bytes(b"damaged")


def toy(frames: int) -> Film:
    """A film of `SHAPE` whose frames all differ: two objects, and a row of pixels to ignore."""
    objects = np.zeros((frames, *SHAPE), np.uint8)
    objects[:, 1, 1:4], objects[:, 5] = 1, 255
    for frame in range(frames):
        objects[frame, 2, frame % SHAPE[1]] = 2
    return Film(
        rgb=np.random.default_rng(0).integers(0, 256, (frames, *SHAPE, 3), np.uint8),
        depth=np.stack([depth_of(frame) for frame in range(frames)]),
        objects=objects,
        world_from_cam=camera_path(frames),
        intrinsics=np.array([[10.0, 0, 3.7], [0, 11, 2.6], [0, 0, 1]]),
        whole=np.ones(frames, bool),
    )


def among_damaged(film: Film, places: Sequence[int], frames: int) -> Film:
    """A longer film that has the frames of another at some places, so that a reader that selects others is noticed.

    The other frames have damaged files, inverted pixels, NaN as depth, and cameras far away.
    """
    taken = np.zeros(frames, int)
    taken[list(places)] = np.arange(len(film))
    whole = np.isin(np.arange(frames), places)
    away = camera_path(frames)
    away[:, :3, 3] += 100
    return Film(
        rgb=np.where(whole[:, None, None, None], film.rgb[taken], 255 - film.rgb[taken]),
        depth=np.where(whole[:, None, None], film.depth[taken], np.nan),
        objects=film.objects[taken],
        world_from_cam=np.where(whole[:, None, None], film.world_from_cam[taken], away),
        intrinsics=film.intrinsics,
        whole=whole,
    )


def write_davis(
    root: pathlib.Path, films: Mapping[str, Film] | None = None, *, val: Sequence[str] = ("dog",)
) -> pathlib.Path:
    """2017's layout. Sequences not in `val` are for training; 2016's validation set is the last one of `val`."""
    films = films or {"bear": toy(3), "dog": toy(3)}
    for name, film in films.items():
        for frame in range(len(film)):
            film.save_frame(root / f"JPEGImages/480p/{name}/{frame:05}.jpg", frame)
            film.save_objects(root / f"Annotations/480p/{name}/{frame:05}.png", frame)
    lists = {"2017/train": [name for name in films if name not in val], "2017/val": val, "2016/val": val[-1:]}
    for place, names in lists.items():
        path = root / f"ImageSets/{place}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{name}\n" for name in names))
    return root


def write_tum(folder: pathlib.Path, film: Film, start: float = 1341846313.5) -> None:
    """A recording at 30 Hz with motion capture at 90 Hz, whose poses between frames are far off."""
    poses = np.repeat(film.world_from_cam, 3, axis=0)
    poses[1::3, :3, 3] += 50
    poses[2::3, :3, 3] -= 70
    times = start + np.arange(3 * len(film)) / 90
    lines = ["# color images"]
    for frame in range(len(film)):
        stamp = f"{times[3 * frame] + 0.002:.6f}"
        film.save_frame(folder / f"rgb/{stamp}.png", frame)
        lines.append(f"{stamp} rgb/{stamp}.png")
    (folder / "rgb.txt").write_text("\n".join(lines))
    (folder / "groundtruth.txt").write_text(tum_lines(times, poses))


def write_tum_prepared(folder: pathlib.Path, film: Film) -> None:
    times = 1341846313.5 + np.arange(len(film)) / 10
    for frame in range(len(film)):
        film.save_frame(folder / f"rgb_90/{times[frame] + 0.015:.6f}.png", frame)
    (folder / "groundtruth_90.txt").write_text(tum_lines(times, film.world_from_cam))


def write_sintel(root: pathlib.Path, films: Mapping[str, Film]) -> None:
    for name, film in films.items():
        for frame in range(len(film)):
            film.save_frame(root / f"final/{name}/frame_{frame + 1:04}.png", frame)
            camera = root / f"camdata_left/{name}/frame_{frame + 1:04}.cam"
            depth = root / f"depth/{name}/frame_{frame + 1:04}.dpt"
            for path in (camera, depth):
                path.parent.mkdir(parents=True, exist_ok=True)
            numbers = [*film.intrinsics.ravel(), *np.linalg.inv(film.world_from_cam[frame])[:3].ravel()]
            camera.write_bytes(struct.pack("<f21d", 202021.25, *numbers))
            head = struct.pack("<fii", 202021.25, *film.depth.shape[:0:-1])
            depth.write_bytes(head + film.depth[frame].astype("<f4").tobytes())


def write_scannet(folder: pathlib.Path, film: Film, lost: Sequence[int] = ()) -> None:
    (folder / "pose").mkdir(parents=True)
    for frame in range(len(film)):
        film.save_frame(folder / f"color/{frame}.jpg", frame)
        pose = np.full((4, 4), -np.inf) if frame in lost else film.world_from_cam[frame]
        np.savetxt(folder / f"pose/{frame}.txt", pose, fmt="%.6f")


def write_scannet_prepared(folder: pathlib.Path, film: Film) -> None:
    for frame in range(len(film)):
        film.save_frame(folder / f"color_90/frame_{frame:04}.jpg", frame)
    np.savetxt(folder / "pose_90.txt", film.world_from_cam.reshape(-1, 16))


def write_adt(folder: pathlib.Path, film: Film) -> None:
    """As published, with the calibration beside it."""
    stamps = 87551170910300 + 33_333_333 * np.arange(len(film))
    device_from_camera = np.eye(4)
    device_from_camera[:3, :3] = Rotation.from_euler("xyz", [0.4, -0.2, 1.5]).as_matrix()
    device_from_camera[:3, 3] = -0.01, 0.02, 0.03
    names = ["tx", "ty", "tz", "qx", "qy", "qz", "qw"]
    lines = [
        "graph_uid,tracking_timestamp_us,utc_timestamp_ns," + ",".join(f"{n}_world_device" for n in names) + ",quality"
    ]
    for frame in range(len(film)):
        film.save_frame(folder / f"rgb/{stamps[frame]}.png", frame)
        pose = film.world_from_cam[frame] @ np.linalg.inv(device_from_camera)
        numbers = [*pose[:3, 3], *Rotation.from_matrix(pose[:3, :3]).as_quat()]
        lines.append(f"uid,{stamps[frame] // 1000 + 300},-1," + ",".join(f"{n:.9f}" for n in numbers) + ",1.0")
    (folder / "aria_trajectory.csv").write_text("\n".join(lines) + "\n")
    np.savetxt(folder / "device_from_camera.txt", device_from_camera)


def write_adt_prepared(folder: pathlib.Path, film: Film) -> None:
    for frame in range(len(film)):
        film.save_frame(folder / f"images/frame_{frame}.jpg", frame)
    (folder / "groundtruth.txt").write_text(tum_lines(np.arange(len(film)) / 10, film.world_from_cam))


def write_iphone(folder: pathlib.Path, film: Film) -> None:
    """Frames at half the camera's resolution, and two damaged frames of a second, static camera."""
    height, width = film.depth.shape[1:]
    names = [f"0_{frame:05}" for frame in range(len(film))]
    for name in ("1_00000", "1_00001"):
        for path in (folder / f"rgb/2x/{name}.png", folder / f"camera/{name}.json"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"damaged")
    for frame, name in enumerate(names):
        pose = film.world_from_cam[frame]
        film.save_frame(folder / f"rgb/2x/{name}.png", frame)
        camera = {
            "orientation": pose[:3, :3].T.tolist(),
            "position": pose[:3, 3].tolist(),
            "focal_length": 2 * film.intrinsics[0, 0],
            "principal_point": (2 * (film.intrinsics[:2, 2] + 0.5)).tolist(),
            "skew": 0.0,
            "pixel_aspect_ratio": film.intrinsics[1, 1] / film.intrinsics[0, 0],
            "radial_distortion": [0.0, 0.0, 0.0],
            "tangential_distortion": [0.0, 0.0],
            "image_size": [2 * width, 2 * height],
        }
        (folder / f"camera/{name}.json").write_text(json.dumps(camera))
        film.save_array(folder / f"depth/2x/{name}.npy", frame, film.depth[frame].astype(np.float32)[..., None])
    (folder / "dataset.json").write_text(
        json.dumps({"count": len(film) + 2, "train_ids": names, "val_ids": ["1_00000"]})
    )
    (folder / "extra.json").write_text(json.dumps({"factor": 2, "fps": 30.0}))


def write_bonn(folder: pathlib.Path, film: Film) -> None:
    """As published: depth is taken 10 ms after colour."""
    lists = {"rgb": ["# color"], "depth": ["# depth"]}
    for frame in range(len(film)):
        for kind, late in (("rgb", 0.0), ("depth", 0.01)):
            stamp = f"{1548266486 + frame / 30 + late:.5f}"
            lists[kind].append(f"{stamp} {kind}/{stamp}.png")
            path = folder / kind / f"{stamp}.png"
            if kind == "rgb":
                film.save_frame(path, frame)
            else:
                film.save_depth16(path, frame, 5000)
    for kind, lines in lists.items():
        (folder / f"{kind}.txt").write_text("\n".join(lines))


def write_bonn_prepared(folder: pathlib.Path, film: Film) -> None:
    for frame in range(len(film)):
        stamp = f"{1548266486 + frame / 30:.5f}"
        film.save_frame(folder / f"rgb_110/{stamp}.png", frame)
        film.save_depth16(folder / f"depth_110/{stamp}.png", frame, 5000)


def write_kitti(root: pathlib.Path, films: Mapping[str, Film]) -> None:
    """As published: the first two and last two frames have no depth."""
    for drive, film in films.items():
        for frame in range(len(film)):
            film.save_frame(root / f"raw/{drive[:10]}/{drive}/image_02/data/{frame:010}.png", frame)
            if 2 <= frame < len(film) - 2:
                path = root / f"val/{drive}/proj_depth/groundtruth/image_02/{frame:010}.png"
                film.save_depth16(path, frame, 256)


def write_kitti_prepared(root: pathlib.Path, films: Mapping[str, Film]) -> None:
    base = root / "depth_selection/val_selection_cropped"
    for drive, film in films.items():
        for frame in range(len(film)):
            name = f"{drive}_02/{frame + 5:010}.png"
            film.save_frame(base / "image_gathered" / name, frame)
            film.save_depth16(base / "groundtruth_depth_gathered" / name, frame, 256)


def write_nyu(root: pathlib.Path, film: Film, test: Sequence[int] = (2, 5)) -> None:
    """As published; test images are counted from 1."""
    root.mkdir(parents=True, exist_ok=True)
    with h5py.File(root / "nyu_depth_v2_labeled.mat", "w") as file:
        file["images"] = film.rgb.transpose(0, 3, 2, 1)
        file["depths"] = film.depth.astype(np.float32).transpose(0, 2, 1)
    savemat(root / "splits.mat", {"testNdxs": np.array(test, np.uint16)[:, None], "trainNdxs": np.array([[1]])})


def write_clip(folder: pathlib.Path, film: Film, **arrays: np.ndarray) -> None:
    for frame in range(len(film)):
        film.save_frame(folder / f"frames/{frame:05}.png", frame)
    if arrays:
        np.savez(folder / "ground_truth.npz", **arrays)
