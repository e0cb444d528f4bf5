"""Optical flow from a folder with one file per directed pair.

    00003_00005.flo     from frame 3 to frame 5 of the clip (numbered as reconstructed, from 0)
    00003_00005.npz     the same as array `flow`, (H, W, 2); if both exist, the .flo file is used

`.flo` is Middlebury's format (https://vision.middlebury.edu/flow/code/flow-code/README.txt), little endian: float32
202021.25, int32 width, int32 height, then float32 (x, y) of every pixel, row by row. In both formats, a component whose
absolute value exceeds 1e9 marks a pixel with unknown flow.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import struct
import zipfile

import numpy as np

from easi3r_jax.core.arrays import Bool, Float, Int
from easi3r_jax.core.errors import InputError
from easi3r_jax.core.types import Frames, Progress, silent

_TAG = 202021.25
_UNKNOWN = 1e9
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}

# (height, width)
_Size = tuple[int, int]


@dataclasses.dataclass(frozen=True, eq=False)
class FlowFolder:
    """A folder of optical flow as `reconstruct(..., flow=FlowFolder(folder, frames))` takes it.

    Attributes:
      folder: see the module.
      clip: all frames of the clip, which the file names number; a window of them may then be reconstructed.
    """

    folder: str | os.PathLike
    clip: Frames

    def __call__(
        self, frames: Frames, edges: Int[np.ndarray, "E 2"], *, progress: Progress = silent
    ) -> tuple[Float[np.ndarray, "E H W 2"], Bool[np.ndarray, "E H W"]]:
        """The flow of pairs of some of the clip's frames, and where it is known; see `load_flow`."""
        numbers = np.searchsorted(np.asarray(self.clip.source_index), np.asarray(frames.source_index))
        return load_flow(self.folder, frames, numbers[np.asarray(edges)], progress=progress)


def load_flow(
    folder: str | os.PathLike, frames: Frames, edges: Int[np.ndarray, "E 2"], *, progress: Progress = silent
) -> tuple[Float[np.ndarray, "E H W 2"], Bool[np.ndarray, "E H W"]]:
    """Reads the flow of every pair, in pixels of the frames.

    Flow of the frames' size is used unchanged. Flow of the original images' size is sampled bilinearly at the frames'
    pixels, and scaled like the images.

    Args:
      folder: see the module; other files in it are ignored.
      frames: the clip.
      edges: (E, 2) int, pairs of frame numbers (i, j).
      progress: called before each file and at the end, for the stage "flow".

    Returns:
      flow: (E, H, W, 2) float32 pixels (x, y) of the frames, from frame i to frame j; 0 where it is unknown.
      known: (E, H, W) bool; a sampled pixel is known if all pixels it is sampled from are.

    Raises:
      InputError: the folder does not exist, a pair has no file, or a file is damaged, of another size or not finite.
    """
    folder = pathlib.Path(folder).expanduser()
    paths = _paths(folder, np.asarray(edges))
    size, original = _sizes(frames)
    flow = np.zeros((len(paths), *size, 2), np.float32)
    known = np.zeros((len(paths), *size), bool)
    for e, path in enumerate(paths):
        progress("flow", e, len(paths), "")
        given = _read(path, size, original, distorted=frames.lens is not None)
        given = given.astype(np.float64)  # float16 does not reach 1e9, integers have no NaN
        if not np.isfinite(given).all():
            raise InputError(f"{path} holds NaN or infinite flow: mark unknown pixels with a value above 1e9.")
        is_known = np.abs(given).max(axis=-1) <= _UNKNOWN
        given = np.where(is_known[..., None], given, 0).astype(np.float32)
        if given.shape[:2] != size:
            given, is_known = _sampled(given, is_known, np.asarray(frames.frame_from_source), size)
        flow[e], known[e] = given, is_known
    progress("flow", len(paths), len(paths), "")
    return flow, known


def check_flow(folder: str | os.PathLike, frames: Frames, edges: Int[np.ndarray, "E 2"]) -> None:
    """Checks a folder for `load_flow` by the names and headers of its files, without reading them.

    Raises:
      InputError: the folder does not exist, a pair has no file, or a file is damaged or of another size.
    """
    sizes = _sizes(frames)
    for path in _paths(pathlib.Path(folder).expanduser(), np.unique(edges, axis=0)):
        _read(path, *sizes, distorted=frames.lens is not None, header_only=True)


def _paths(folder: pathlib.Path, edges: np.ndarray) -> list[pathlib.Path]:
    """The file of each pair."""
    try:
        names = {path.name for path in folder.iterdir() if path.is_file()}
    except OSError as error:
        raise InputError(f"Cannot read the folder of optical flow {folder}: {error.strerror}.") from error
    stems = [f"{i:05d}_{j:05d}" for i, j in edges.tolist()]
    missing = [stem for stem in stems if not {f"{stem}.flo", f"{stem}.npz"} & names]
    if missing:
        raise InputError(
            f"{folder} lacks the flow of {len(missing)} of {len(stems)} pairs (the first: {missing[0]}.flo or .npz): "
            "add them, or choose another pair graph."
        )
    return [folder / (stem + (".flo" if f"{stem}.flo" in names else ".npz")) for stem in stems]


def _sizes(frames: Frames) -> tuple[_Size, _Size]:
    """The sizes of the frames and of the original images."""
    height, width = frames.rgb.shape[1:3]
    return (int(height), int(width)), frames.original_size


def _read(
    path: pathlib.Path, size: _Size, original: _Size, *, distorted: bool, header_only: bool = False
) -> np.ndarray:
    """(h, w, 2) real numbers, of one of the two sizes; an empty array with `header_only`."""

    def check(found: tuple[int, ...]) -> None:  # before memory is allocated
        if distorted and found == (*original, 2) and original != size:
            raise InputError(f"{path} is flow of distorted images: give that of the frames, {size[1]}x{size[0]}.")
        if found not in ((*size, 2), (*original, 2)):
            raise InputError(
                f"{path} has shape {found}: the size of the frames {(*size, 2)} or of the original images "
                f"{(*original, 2)} is needed."
            )

    try:
        return (_read_flo if path.suffix == ".flo" else _read_npz)(path, check, header_only)
    except (InputError, MemoryError):
        raise
    except Exception as error:  # on damaged bytes NumPy's and zipfile's readers raise almost anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"Cannot read the optical flow {path}: {reason}. Compute it again.") from error


def _read_flo(path: pathlib.Path, check, header_only: bool) -> np.ndarray:
    with path.open("rb") as file:
        header = file.read(12)
        if len(header) < 12 or struct.unpack_from("<f", header)[0] != _TAG:
            raise ValueError("it does not start with a .flo file's tag, 202021.25")
        width, height = struct.unpack_from("<ii", header, 4)
        check((height, width, 2))
        length, expected = os.fstat(file.fileno()).st_size, 12 + 8 * width * height
        if length != expected:
            raise ValueError(f"it has {length} bytes, but {expected} are needed for {width} x {height} pixels")
        return np.empty(0) if header_only else np.frombuffer(file.read(), "<f4").reshape(height, width, 2)


def _read_npz(path: pathlib.Path, check, header_only: bool) -> np.ndarray:
    with zipfile.ZipFile(path) as archive:
        if "flow.npy" not in archive.namelist():
            raise ValueError("it has no array 'flow'")
        with archive.open("flow.npy") as file:
            version = np.lib.format.read_magic(file)
            if version not in _HEADERS:
                raise ValueError(f"version {version} of the .npy format is unknown")
            shape, _, dtype = _HEADERS[version](file)
            if dtype.kind not in "fiu":
                raise ValueError(f"its array 'flow' holds {dtype}, not real numbers")
            check(shape)
            if header_only:
                return np.empty(0)
            file.seek(0)
            return np.lib.format.read_array(file, allow_pickle=False)


def _sampled(
    flow: np.ndarray, known: np.ndarray, frame_from_source: np.ndarray, size: _Size
) -> tuple[np.ndarray, np.ndarray]:
    """Flow of the original images (h, w, 2), sampled at the frames' pixels in their unit, and where it is known."""
    from scipy import ndimage

    y, x = np.indices(size, np.float64)
    columns, rows, _ = np.linalg.inv(frame_from_source) @ np.stack([x.ravel(), y.ravel(), np.ones(x.size)])
    # A frame's outermost pixels may lie up to half a pixel outside the original's: there the nearest pixel is used.
    u, v, known_weight = (
        ndimage.map_coordinates(image, (rows, columns), order=1, mode="nearest").reshape(size)
        for image in (flow[..., 0], flow[..., 1], known.astype(np.float32))
    )
    sampled = np.stack([u, v], axis=-1) @ frame_from_source[:2, :2].T.astype(np.float32)
    all_known = known_weight > 1 - 1e-6
    return np.where(all_known[..., None], sampled, 0), all_known
