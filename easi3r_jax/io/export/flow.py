"""Writes optical flow as files."""

from __future__ import annotations

import os
import pathlib
import struct

import numpy as np

from easi3r_jax.core import atomic
from easi3r_jax.core.types import Progress, silent

# Lists the pairs. A folder without it is the user's own flow and is never replaced.
_MARKER = "pairs.txt"
_TAG = 202021.25
# Readers of the format treat values above 1e9 as unknown.
_UNKNOWN = 1e10


def write_flow(
    folder: str | os.PathLike,
    flow: np.ndarray,
    edges: np.ndarray,
    *,
    known: np.ndarray | None = None,
    progress: Progress = silent,
) -> pathlib.Path:
    """Writes a folder of flow that `priors.flow.load_flow` reads, atomically; an earlier one is replaced.

    It has a file `IIIII_JJJJJ.flo` in Middlebury's format for each pair, and `pairs.txt`, with a line `i j` for each.

    Args:
      folder: missing parents are created.
      flow: (E, H, W, 2) pixels (x, y), from frame i to frame j.
      edges: (E, 2) int, pairs of frame numbers (i, j).
      known: (E, H, W) bool; None: all of it. The rest is marked as unknown.
      progress: called before each file, of the stage "write".

    Returns:
      the absolute path of the folder.

    Raises:
      ValueError: flow that does not fit the pairs.
      OutputError: the folder cannot be written.
    """
    if flow.ndim != 4 or len(flow) != len(edges) or flow.shape[-1] != 2:
        raise ValueError(f"{len(edges)} pairs need flow ({len(edges)}, H, W, 2), got {flow.shape}.")
    target = pathlib.Path(folder).expanduser().resolve()
    pairs = np.asarray(edges).tolist()
    header = struct.pack("<fii", _TAG, flow.shape[2], flow.shape[1])
    with atomic.atomic_folder(target, marker=_MARKER) as new:
        for done, ((i, j), values) in enumerate(zip(pairs, np.asarray(flow, "<f4"), strict=True)):
            if known is not None:
                values = np.where(np.asarray(known[done])[..., None], values, np.float32(_UNKNOWN))
            name = f"{i:05d}_{j:05d}.flo"
            progress("write", done, len(pairs), name)
            (new / name).write_bytes(header + values.tobytes())
        (new / _MARKER).write_text("".join(f"{i} {j}\n" for i, j in pairs))
    progress("write", len(pairs), len(pairs), "")
    return target
