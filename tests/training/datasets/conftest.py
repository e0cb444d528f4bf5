"""A box-shaped room with known geometry, seen by a moving camera and written in the layout of each data set.

The world and the cameras have OpenCV axes. The room is convex: nothing hides anything.
"""

from __future__ import annotations

import dataclasses
import pathlib
import shutil
import struct
import zlib
from collections.abc import Callable

import h5py
import numpy as np
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation

HALF_SIZE = np.array([4.0, 3.0, 5.0])
NUM_FRAMES = 6


@dataclasses.dataclass(frozen=True)
class Truth:
    """The ground truth of a written data set.

    Attributes:
      root: to be opened.
      folder: of the only sequence.
      shape: (H, W) of the images.
      intrinsics: (3, 3).
      world_from_cam: (T, 4, 4).
      unit: metres of a unit of the room.
      depth_offset: where the depth of a pixel is taken, in pixels right of and below its centre.
    """

    root: pathlib.Path
    folder: pathlib.Path
    shape: tuple[int, int]
    intrinsics: np.ndarray
    world_from_cam: np.ndarray
    unit: float = 1.0
    depth_offset: float = 0.0

    def render(self, frame: int, intrinsics: np.ndarray, shape: tuple[int, int]):
        return render(intrinsics, self.world_from_cam[frame], shape, self.unit)


def camera_path(unit: float = 1.0) -> np.ndarray:
    """(T, 4, 4): all three rotations and all three translations change."""
    poses = np.tile(np.eye(4), (NUM_FRAMES, 1, 1))
    for k in range(NUM_FRAMES):
        poses[k, :3, :3] = Rotation.from_euler("yxz", [0.15 + 0.09 * k, 0.05 - 0.05 * k, 0.03 * k]).as_matrix()
        poses[k, :3, 3] = unit * np.array([0.25 * k - 0.5, 0.2 - 0.1 * k, 0.15 * k - 1])
    return poses


def render(intrinsics: np.ndarray, world_from_cam: np.ndarray, shape: tuple[int, int], unit: float = 1.0):
    """Returns (H, W, 3) uint8 smooth colours of the walls and (H, W) float64 z, both exact at pixel centres."""
    rows, columns = np.indices(shape)
    rays = np.stack([columns, rows, np.ones(shape)], -1) @ np.linalg.inv(intrinsics).T @ world_from_cam[:3, :3].T
    origin = world_from_cam[:3, 3]
    with np.errstate(divide="ignore"):
        depth = ((np.sign(rays) * HALF_SIZE * unit - origin) / rays).min(-1)
    points = (origin + depth[..., None] * rays) / unit
    waves = np.sin(points @ np.array([[1.3, 0.4, 0.9], [0.7, 1.6, -0.8], [-0.5, 0.9, 1.2]]))
    return np.rint(127.5 + 110 * waves).astype(np.uint8), depth


def save_image(path: pathlib.Path, rgb: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rgb).save(path, **({"quality": 97, "subsampling": 0} if path.suffix == ".jpg" else {}))


def intrinsics_of(fx: float, fy: float, cx: float, cy: float) -> np.ndarray:
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1.0]])


def write_pointodyssey(root: pathlib.Path) -> Truth:
    shape, folder = (54, 96), root / "train" / "robot"
    truth = Truth(root, folder, shape, intrinsics_of(70, 70, 48, 27), camera_path(20.0), unit=20.0)
    (folder / "depths").mkdir(parents=True)
    for frame in range(NUM_FRAMES):
        rgb, depth = truth.render(frame, truth.intrinsics, shape)
        save_image(folder / f"rgbs/rgb_{frame:05}.jpg", rgb)
        Image.fromarray(np.rint(depth / 1000 * 65535).astype(np.uint16)).save(folder / f"depths/depth_{frame:05}.png")
    np.savez(
        folder / "anno.npz",
        trajs_3d=np.array([None], dtype=object),  # as in some sequences of the data set; never read
        intrinsics=np.tile(truth.intrinsics, (NUM_FRAMES, 1, 1)).astype(np.float32),
        extrinsics=np.linalg.inv(truth.world_from_cam).astype(np.float32),
    )
    return truth


def write_tartanair(root: pathlib.Path) -> Truth:
    shape, folder = (480, 640), root / "office" / "office" / "Easy" / "P003"
    truth = Truth(root, folder, shape, intrinsics_of(320, 320, 320, 240), camera_path())
    (folder / "depth_left").mkdir(parents=True)
    # A point (x, y, z) with x right, y down, z forward has NED coordinates (z, x, y), of the world and of the camera.
    ned_from_cv = np.array([[0, 0, 1, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1.0]])
    lines = []
    for frame in range(NUM_FRAMES):
        rgb, depth = truth.render(frame, truth.intrinsics, shape)
        save_image(folder / f"image_left/{frame:06}_left.png", rgb)
        np.save(folder / f"depth_left/{frame:06}_left_depth.npy", depth.astype(np.float32))
        pose = ned_from_cv @ truth.world_from_cam[frame] @ ned_from_cv.T
        numbers = [*pose[:3, 3], *Rotation.from_matrix(pose[:3, :3]).as_quat()]
        lines.append(" ".join(f"{number:.9e}" for number in numbers))
    (folder / "pose_left.txt").write_text("\n".join(lines) + "\n")
    return truth


def write_spring(root: pathlib.Path) -> Truth:
    shape, folder = (54, 96), root / "train" / "0001"
    truth = Truth(root, folder, shape, intrinsics_of(80, 82, 47.5, 26.5), camera_path(), depth_offset=-0.25)
    (folder / "disp1_left").mkdir(parents=True)
    (folder / "cam_data").mkdir()
    # Twice the resolution: edges stay edges, x2 + 0.5 = 2 (x + 0.5).
    doubled = np.diag([2.0, 2, 1]) @ truth.intrinsics
    doubled[:2, 2] += 0.5
    for frame in range(NUM_FRAMES):
        save_image(
            folder / f"frame_left/frame_left_{frame + 1:04}.png", truth.render(frame, truth.intrinsics, shape)[0]
        )
        _, depth = truth.render(frame, doubled, (108, 192))
        with h5py.File(folder / f"disp1_left/disp1_left_{frame + 1:04}.dsp5", "w") as file:
            disparity = (truth.intrinsics[0, 0] * 0.065 / depth).astype(np.float32)
            file.create_dataset("disparity", data=disparity, compression="gzip")
    fx, fy, cx, cy = truth.intrinsics[[0, 1, 0, 1], [0, 1, 2, 2]]
    np.savetxt(folder / "cam_data/intrinsics.txt", np.tile([fx, fy, cx, cy], (NUM_FRAMES, 1)))
    np.savetxt(folder / "cam_data/extrinsics.txt", np.linalg.inv(truth.world_from_cam).reshape(-1, 16))
    return truth


def write_waymo(root: pathlib.Path) -> Truth:
    shape, folder = (64, 96), root / "segment-123_with_camera_labels.tfrecord"
    far_away = np.eye(4)
    far_away[:3, 3] = 40_000, -70_000, 30
    truth = Truth(root, folder, shape, intrinsics_of(75, 74, 49.2, 30.7), camera_path())
    folder.mkdir()
    rng = np.random.default_rng(0)
    for frame in range(NUM_FRAMES):
        rgb, depth = truth.render(frame, truth.intrinsics, shape)
        save_image(folder / f"{frame:05}_1.jpg", rgb)
        lidar = np.where(rng.random(shape) < 0.7, depth, 0).astype(np.float32)
        (folder / f"{frame:05}_1.exr").write_bytes(exr_file(lidar))
        cam2world = far_away @ truth.world_from_cam[frame]
        np.savez(folder / f"{frame:05}_1.npz", intrinsics=truth.intrinsics, cam2world=cam2world)
    return truth


def write_pairs(root: pathlib.Path) -> Truth:
    shape, folder = (54, 96), root / "room"
    truth = Truth(root, folder, shape, intrinsics_of(70, 72, 47, 28), camera_path())
    depth = []
    for frame in range(NUM_FRAMES):
        rgb, z = truth.render(frame, truth.intrinsics, shape)
        save_image(folder / f"frames/{frame:05}.png", rgb)
        depth.append(z.astype(np.float32))
    write_ground_truth(truth, depth=np.stack(depth))
    return truth


def write_ground_truth(truth: Truth, **changes: np.ndarray | None) -> None:
    """Writes or changes ground_truth.npz; None omits an array."""
    path = truth.folder / "ground_truth.npz"
    arrays = {"intrinsics": truth.intrinsics, "world_from_cam": truth.world_from_cam}
    if path.exists():
        with np.load(path) as file:
            arrays = dict(file)
    arrays.update(changes)
    np.savez_compressed(path, **{name: array for name, array in arrays.items() if array is not None})


WRITERS: dict[str, Callable[[pathlib.Path], Truth]] = {
    "pairs": write_pairs,
    "pointodyssey": write_pointodyssey,
    "spring": write_spring,
    "tartanair": write_tartanair,
    "waymo": write_waymo,
}


def exr_file(
    pixels: np.ndarray, *, compression: int = 3, corner: tuple[int, int] = (0, 0), channels: tuple[str, ...] = ("Y",)
) -> bytes:
    """An OpenEXR file according to the format's specification; all channels have the same pixels.

    Args:
      pixels: (H, W) uint32, float16 or float32.
      compression: 0 none, 2 a deflated block per line, 3 a deflated block per 16 lines.
      corner: of the data window.
      channels: their names, sorted.
    """
    height, width = pixels.shape
    kind = {"u": 0, "f": pixels.dtype.itemsize // 2}[pixels.dtype.kind]
    window = struct.pack("<4i", *corner, corner[0] + width - 1, corner[1] + height - 1)
    attributes = {
        ("channels", "chlist"): b"".join(n.encode() + b"\0" + struct.pack("<iIii", kind, 0, 1, 1) for n in channels)
        + b"\0",
        ("compression", "compression"): bytes([compression]),
        ("dataWindow", "box2i"): window,
        ("displayWindow", "box2i"): window,
        ("lineOrder", "lineOrder"): b"\0",
        ("pixelAspectRatio", "float"): struct.pack("<f", 1),
        ("screenWindowCenter", "v2f"): struct.pack("<2f", 0, 0),
        ("screenWindowWidth", "float"): struct.pack("<f", 1),
    }
    header = struct.pack("<iI", 20000630, 2)
    for (name, kind_name), value in attributes.items():
        header += name.encode() + b"\0" + kind_name.encode() + b"\0" + struct.pack("<i", len(value)) + value
    header += b"\0"
    lines = 16 if compression == 3 else 1
    blocks = []
    for row in range(0, height, lines):
        raw = b"".join(line.tobytes() * len(channels) for line in pixels[row : row + lines])
        block = raw
        if compression:
            split = np.frombuffer(raw[::2] + raw[1::2], np.uint8).astype(int)
            differences = np.concatenate([split[:1], (np.diff(split) + 128) % 256]).astype(np.uint8)
            block = min(zlib.compress(differences.tobytes()), raw, key=len)
        blocks.append(struct.pack("<ii", row + corner[1], len(block)) + block)
    offsets = np.cumsum([len(header) + 8 * len(blocks), *map(len, blocks)])[:-1]
    return header + offsets.astype("<u8").tobytes() + b"".join(blocks)


@pytest.fixture(scope="session")
def layouts(tmp_path_factory) -> Callable[[str], Truth]:
    """The room in a given layout, written on first use. Must not be changed."""
    written: dict[str, Truth] = {}

    def get(name: str) -> Truth:
        if name not in written:
            written[name] = WRITERS[name](tmp_path_factory.mktemp(name))
        return written[name]

    return get


@pytest.fixture
def write(tmp_path, layouts) -> Callable[[str], Truth]:
    """A copy of `layouts` that a test may damage."""

    def copy(name: str) -> Truth:
        truth = layouts(name)
        shutil.copytree(truth.root, tmp_path, dirs_exist_ok=True)
        return dataclasses.replace(truth, root=tmp_path, folder=tmp_path / truth.folder.relative_to(truth.root))

    return copy


@pytest.fixture(scope="session")
def exr() -> Callable[..., bytes]:
    """`exr_file`."""
    return exr_file


@pytest.fixture(scope="session")
def change_truth() -> Callable[..., None]:
    """`write_ground_truth`."""
    return write_ground_truth


def pytest_generate_tests(metafunc):
    """Runs a test with a `layout` argument for every layout, unless it is parametrised."""
    chosen = any("layout" in str(mark.args[0]) for mark in metafunc.definition.iter_markers("parametrize"))
    if "layout" in metafunc.fixturenames and not chosen:
        metafunc.parametrize("layout", sorted(WRITERS))
