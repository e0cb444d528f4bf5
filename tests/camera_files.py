"""Writers of files with known cameras, in the formats that users have."""

import json

import numpy as np
from scipy.spatial.transform import Rotation

#: Intrinsics of images of 100x70 pixels.
K = np.array([[80.0, 0, 47], [0, 81, 33], [0, 0, 1]])


def path_of_cameras(length, seed=0):
    """(length, 4, 4) random poses."""
    poses = np.tile(np.eye(4), (length, 1, 1))
    random = np.random.default_rng(seed)
    poses[:, :3, :3] = Rotation.random(length, rng=random).as_matrix()
    poses[:, :3, 3] = random.normal(size=(length, 3))
    return poses


def save(path, text):
    """Writes a text file and returns its path."""
    path.write_text(text)
    return path


def rows(matrices):
    """One line per matrix."""
    return "\n".join(" ".join(f"{value:.17g}" for value in np.ravel(matrix)) for matrix in matrices)


def tum(stamps, poses):
    """A trajectory in TUM format."""
    lines = zip(stamps, poses[:, :3, 3], Rotation.from_matrix(poses[:, :3, :3]).as_quat(), strict=True)
    return rows([[stamp, *centre, *quaternion] for stamp, centre, quaternion in lines])


def nerf(path, names=(), poses=None, **shared):
    """A transforms.json; poses (OpenCV) are written with OpenGL axes."""
    poses = path_of_cameras(len(names)) if poses is None else poses
    images = [
        {"file_path": name, "transform_matrix": np.column_stack([*pose[:, :1].T, -pose[:, 1], -pose[:, 2], pose[:, 3]])}
        for name, pose in zip(names, poses, strict=True)
    ]
    return save(path, json.dumps({**shared, "frames": images}, default=np.ndarray.tolist))
