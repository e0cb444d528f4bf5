"""Optical flow without weights: OpenCV's dense inverse search (DIS; Kroeger et al., ECCV 2016) on pairs of frames.

    frames, edges ──enlarge──▶ grey images ──DIS both ways──▶ flow ──forward-backward check──▶ flow, where it holds

Runs on the host's cores, a thread per pair; a GPU is not used.
"""

from __future__ import annotations

import concurrent.futures
import os
import threading
from typing import Literal

import cv2
import numpy as np

from easi3r_jax.core.arrays import Bool, Float, Int
from easi3r_jax.core.errors import ConfigError, InputError
from easi3r_jax.core.types import Frames, Progress, silent

#: Frames are enlarged by the smallest integer that gives their shorter side this many pixels: DIS matches patches of
#: 8 pixels, too coarse for the details of small frames. Chosen by measurement: see docs/alignment.md.
SHORTER_SIDE = 256
_PRESETS = {
    "ultrafast": cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST,
    "fast": cv2.DISOPTICAL_FLOW_PRESET_FAST,
    "medium": cv2.DISOPTICAL_FLOW_PRESET_MEDIUM,
}


def dense_flow(
    frames: Frames,
    edges: Int[np.ndarray, "E 2"],
    *,
    tolerance: float = 1.0,
    enlarge: int = 0,
    preset: Literal["ultrafast", "fast", "medium"] = "medium",
    progress: Progress = silent,
) -> tuple[Float[np.ndarray, "E H W 2"], Bool[np.ndarray, "E H W"]]:
    """Flow of every directed pair, and where it holds. `reconstruct(..., flow=dense_flow)` takes it.

    Both directions of a pair are computed, even if `edges` has only one. Flow holds where the flow back from its target
    returns to within `tolerance` of the start; it does not where the target lies outside the image.

    Args:
      frames: the clip.
      edges: (E, 2) int, pairs of frame numbers (i, j).
      tolerance: pixels of the frames.
      enlarge: factor by which frames are enlarged before matching; 0: see `SHORTER_SIDE`.
      preset: OpenCV's trade-off between speed and accuracy.
      progress: called with the number of finished pairs, for the stage "flow".

    Returns:
      flow: (E, H, W, 2) float32 pixels (x, y), from frame i to frame j.
      known: (E, H, W) bool.

    Raises:
      ConfigError: an option out of range.
      InputError: pairs of frames that do not exist, or frames too small for DIS at this enlargement.
    """
    if preset not in _PRESETS or enlarge < 0 or not tolerance > 0:
        raise ConfigError(
            f"preset={preset!r}, enlarge={enlarge}, tolerance={tolerance}: the preset must be one of "
            f"{', '.join(_PRESETS)}, the enlargement at least 0, the tolerance positive."
        )
    edges = np.asarray(edges, np.int32).reshape(-1, 2)
    num_frames, height, width = frames.rgb.shape[:3]
    if edges.size and (edges.min() < 0 or edges.max() >= num_frames):
        raise InputError(
            f"Flow was requested between frames {edges.min()}..{edges.max()}; there are 0..{num_frames - 1}."
        )
    factor = enlarge or enlargement(height, width)
    grey = {int(t): _grey(np.asarray(frames.rgb[t]), factor) for t in np.unique(edges)}
    flow = np.zeros((len(edges), height, width, 2), np.float32)
    known = np.zeros((len(edges), height, width), bool)
    rows: dict[tuple[int, int], list[int]] = {}  # a repeated pair, padding, is computed once
    for e, (i, j) in enumerate(edges.tolist()):
        rows.setdefault((i, j), []).append(e)
    pairs = sorted({(min(edge), max(edge)) for edge in rows})
    of_thread = threading.local()

    def compute(pair: tuple[int, int]) -> None:
        if not hasattr(of_thread, "search"):  # an instance keeps buffers: one for each thread
            of_thread.search = cv2.DISOpticalFlow.create(_PRESETS[preset])
        both = {edge: _search(of_thread.search, grey, edge, factor) for edge in (pair, (pair[1], pair[0]))}
        for i, j in both.keys() & rows.keys():
            holds = returns(both[i, j], both[j, i], tolerance)
            for e in rows[i, j]:
                flow[e], known[e] = both[i, j], holds

    done = 0
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            progress("flow", 0, len(pairs), "")
            tasks = [pool.submit(compute, pair) for pair in pairs]
            for task in concurrent.futures.as_completed(tasks):
                task.result()
                done += 1
                progress("flow", done, len(pairs), "")
        finally:  # after an interruption, what has not begun does not begin
            pool.shutdown(cancel_futures=True)
    return flow, known


def enlargement(height: int, width: int) -> int:
    """The smallest integer factor that gives the shorter side `SHORTER_SIDE` pixels."""
    return max(1, -(-SHORTER_SIDE // min(height, width)))


def returns(
    forward: Float[np.ndarray, "H W 2"], backward: Float[np.ndarray, "H W 2"], tolerance: float
) -> Bool[np.ndarray, "H W"]:
    """Where backward flow, sampled bilinearly at the target of forward flow, leads back to the start.

    Args:
      forward, backward: (H, W, 2) pixels (x, y), from i to j and from j to i.
      tolerance: pixels, maximum distance from the start.

    Returns:
      (H, W) bool; False where the target lies beyond the centres of the outermost pixels.
    """
    height, width = forward.shape[:2]
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    aim_x, aim_y = x + forward[..., 0], y + forward[..., 1]
    inside = (aim_x >= 0) & (aim_x <= width - 1) & (aim_y >= 0) & (aim_y <= height - 1)
    back = cv2.remap(backward, aim_x, aim_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    error = forward + back
    return inside & (error[..., 0] ** 2 + error[..., 1] ** 2 < tolerance**2)


def _grey(rgb: np.ndarray, factor: int) -> np.ndarray:
    grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
    if factor == 1:
        return grey
    height, width = grey.shape
    return cv2.resize(grey, (factor * width, factor * height), interpolation=cv2.INTER_CUBIC)


def _search(search: cv2.DISOpticalFlow, grey: dict[int, np.ndarray], edge: tuple[int, int], factor: int) -> np.ndarray:
    """(H, W, 2) float32 flow in pixels of the frames."""
    first, second = grey[edge[0]], grey[edge[1]]
    try:
        # OpenCV's types allow any array here.
        found = np.asarray(search.calc(first, second, None), np.float32)  # pyright: ignore[reportCallIssue, reportArgumentType]
    except cv2.error as error:
        height, width = first.shape
        if min(height, width) >= SHORTER_SIDE:
            raise
        raise InputError(
            f"Frames of {width // factor}x{height // factor}, enlarged {factor} times, are too small for optical flow "
            "by dense inverse search: use larger frames, or --flow=none."
        ) from error
    if factor == 1:
        return found
    height, width = found.shape[:2]
    return cv2.resize(found, (width // factor, height // factor), interpolation=cv2.INTER_AREA) / np.float32(factor)
