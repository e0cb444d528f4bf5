"""A long clip of small frames, reconstructed window by window: time and memory after each window."""

from __future__ import annotations

import dataclasses
import pathlib
import re
import tempfile
import time
from typing import Any

import jax
import numpy as np

from easi3r_jax.apps.environment import peak_memory_bytes
from easi3r_jax.core import interrupt
from easi3r_jax.core.config import AlignConfig, PipelineConfig
from easi3r_jax.core.types import Frames, Progress, Scene4D
from easi3r_jax.inference.windows import reconstruct_windows
from easi3r_jax.io.window_store import WindowStore
from easi3r_jax.models import DUSt3R


@dataclasses.dataclass(frozen=True)
class WindowRecord:
    """The state of the process after a window.

    Attributes:
      frames: of the clip that are done.
      seconds: since the start.
      array_bytes: of all arrays that JAX holds on the device.
      process_bytes: memory of the process that no file backs; its peak so far where the system does not tell.
    """

    frames: int
    seconds: float
    array_bytes: int
    process_bytes: int


class _Recorder:
    """A store that records the state of the process whenever a window is done."""

    def __init__(self, store: WindowStore):
        self.records: list[WindowRecord] = []
        self._store, self._began, self._last = store, time.perf_counter(), -1

    def recall(self, number: int) -> Scene4D | None:
        return self._store.recall(number)

    def keep(self, number: int, scene: Scene4D) -> None:
        self._store.keep(number, scene)
        self.records.append(
            WindowRecord(
                frames=0,
                seconds=time.perf_counter() - self._began,
                array_bytes=sum(x.nbytes for x in jax.live_arrays()),
                process_bytes=_process_bytes(),
            )
        )


def run_windows(
    model: DUSt3R,
    num_frames: int,
    *,
    window: int,
    overlap: int,
    iterations: int,
    progress: Progress,
) -> tuple[list[WindowRecord], float]:
    """Reconstructs noise of half the network's size, and returns a record for each window and the total seconds.

    Args:
      model: the network.
      num_frames: of the clip.
      window, overlap: frames of a window, and those that it shares with the one before.
      iterations: of the alignment.
      progress: called during each stage of each window.
    """
    height, width = (side // 2 for side in model.config.image_size)
    rgb = np.random.default_rng(0).integers(0, 256, (num_frames, height, width, 3), np.uint8)
    frames = Frames(
        rgb=rgb,
        source_index=np.arange(num_frames, dtype=np.int32),
        time=np.arange(num_frames) / 24.0,
        frame_from_source=np.eye(3),
        source_size=np.array([height, width], np.int32),
    )
    config = PipelineConfig(alignment=AlignConfig(iterations=iterations))
    sides: dict[str, Any] = {"window": window, "overlap": overlap, "progress": progress}
    with (
        tempfile.TemporaryDirectory(prefix="easi3r_jax_long_clips_") as folder,
        interrupt.removed_on_exit(pathlib.Path(folder)),
    ):
        recorder = _Recorder(WindowStore(pathlib.Path(folder) / "clip", {}, rgb))
        began = time.perf_counter()
        reconstruct_windows(model, frames, config, store=recorder, **sides)
        seconds = time.perf_counter() - began
    ends = [min(window + k * (window - overlap), num_frames) for k in range(len(recorder.records))]
    return [dataclasses.replace(r, frames=end) for r, end in zip(recorder.records, ends, strict=True)], seconds


def _process_bytes() -> int:
    try:
        status = pathlib.Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:  # not Linux
        status = ""
    found = re.search(r"^RssAnon:\s+(\d+) kB", status, flags=re.MULTILINE)
    return 1024 * int(found[1]) if found else peak_memory_bytes()["host"]
