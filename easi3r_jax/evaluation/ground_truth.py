"""Ground truth of a clip, resampled to the frames that the network sees."""

from __future__ import annotations

import os
import pathlib

import numpy as np

from easi3r_jax.core.errors import InputError
from easi3r_jax.core.types import Frames
from easi3r_jax.evaluation.metrics import GroundTruth
from easi3r_jax.io import remote
from easi3r_jax.io.sequences import find_sequence, load_arrays


def load_ground_truth(source: str | os.PathLike, frames: Frames) -> GroundTruth:
    """Reads ground truth and selects, resizes and crops it like the frames.

    Args:
      source: an `.npz` file (see `io.sequences`), a clip folder that holds one, the address of either, or "demo".
      frames: the clip.

    Depth and masks are sampled at the nearest original pixel, intrinsics are mapped by `frame_from_source`.

    Raises:
      InputError: an unreadable file, wrong shapes, or fewer entries than the clip has frames.
    """
    source = remote.local(source)
    path = pathlib.Path(source).expanduser()
    if path.suffix != ".npz":
        found = find_sequence(os.fspath(source)).ground_truth
        if found is None:
            raise InputError(f"There is no ground_truth.npz in {source}.")
        path = found
    known = ("depth", "masks", "world_from_cam", "intrinsics")
    arrays = load_arrays(path, frames, known)
    if not arrays:
        raise InputError(f"{path} holds none of {', '.join(known)}.")
    if "intrinsics" in arrays:
        arrays["intrinsics"] = np.asarray(frames.frame_from_source) @ arrays["intrinsics"]
    return GroundTruth(
        depth=arrays["depth"].astype(np.float32) if "depth" in arrays else None,
        masks=arrays["masks"].astype(bool) if "masks" in arrays else None,
        world_from_cam=arrays.get("world_from_cam"),
        intrinsics=arrays.get("intrinsics"),
    )
