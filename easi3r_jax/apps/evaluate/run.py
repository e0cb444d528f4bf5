"""The loop: sequence after sequence through the method, each one's line on the disk before the next one begins."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from easi3r_jax.apps.environment import code_version, peak_memory_bytes, processor, reset_peak_memory
from easi3r_jax.apps.evaluate import records
from easi3r_jax.apps.evaluate.judge import Prediction, judge
from easi3r_jax.apps.evaluate.records import Record
from easi3r_jax.apps.evaluate.rendered import RenderedSequence, rendered_frames
from easi3r_jax.apps.evaluate.schedule import Job
from easi3r_jax.apps.given import with_flow
from easi3r_jax.core.atomic import output_error
from easi3r_jax.core.batches import padded
from easi3r_jax.core.config import FrameConfig, PipelineConfig
from easi3r_jax.core.errors import UserError
from easi3r_jax.core.types import Frames, Given, MaskRefiner, Observer, frames_at
from easi3r_jax.evaluation.datasets import TestSequence
from easi3r_jax.inference import pipeline
from easi3r_jax.io import export
from easi3r_jax.io.video import load_frames
from easi3r_jax.models import DUSt3R, FlowNetwork

_LONGEST_REASON = 500


@dataclasses.dataclass(frozen=True, eq=False)
class Method:
    """What every sequence goes through.

    Attributes:
      model: the network.
      frames: how frames are brought to its size.
      config: of all stages; the seed is the job's.
      flow: network of the optical flow, or None.
      refiner: of masks, or None.
    """

    model: DUSt3R
    frames: FrameConfig
    config: PipelineConfig
    flow: FlowNetwork | None = None
    refiner: MaskRefiner | None = None

    def read(self, sequence: TestSequence, observer: Observer) -> Frames:
        """The sequence's frames.

        Raises:
          InputError: as `load_frames`.
        """
        if isinstance(sequence, RenderedSequence):
            return rendered_frames(sequence, self.frames)
        return load_frames(sequence.images, self.frames, progress=observer)

    def clip(self, frames: Frames, seed: int, observer: Observer) -> pipeline.Reconstruction:
        """The whole method on a clip."""
        config = dataclasses.replace(self.config, seed=seed)
        edges = pipeline.clip_edges(len(frames.rgb), config.graph)
        length, rows = pipeline.clip_room(len(frames.rgb), config, Given())
        longer = dataclasses.replace(frames, rgb=padded(np.asarray(frames.rgb), length))
        given = with_flow(Given(), self.flow, longer, edges, observer, rows=rows)
        return pipeline.reconstruct(self.model, frames, config, given=given, refiner=self.refiner, observer=observer)

    def single_frames(self, frames: Frames, seed: int, observer: Observer) -> Iterator[pipeline.Reconstruction]:
        """Every frame alone, paired with itself. A frame alone does not show motion: none is looked for."""
        config = dataclasses.replace(self.config, seed=seed, motion="none", masks=())
        for t in range(len(frames.rgb)):
            observer("frames alone", t, len(frames.rgb), "")
            yield pipeline.reconstruct(self.model, frames_at(frames, slice(t, t + 1)), config)
        observer("frames alone", len(frames.rgb), len(frames.rgb), "")


@dataclasses.dataclass(frozen=True)
class Keeping:
    """Where results go that are kept.

    Attributes:
      output: folder of the run.
      record: `config.json` of each, but for the seed.
    """

    output: pathlib.Path
    record: dict[str, Any]

    def folder(self, job: Job) -> str:
        """That of a job, within the run's."""
        dataset, sequence, seed, config = job.key
        return os.path.join("results", config, dataset, sequence.replace("/", "_"), f"seed_{seed}")

    def write(self, job: Job, result: pipeline.Reconstruction, frames: Frames, figures: dict[str, Any]) -> str:
        """Writes the result folder of a clip, as `experiments.reconstruct` does."""
        folder = self.folder(job)
        export.write_result(
            self.output / folder,
            result.scene,
            result.motion,
            frames=frames,
            config=self.record | {"configuration": job.part.configuration, "seed": job.seed},
            metrics=figures,
            threshold=None if result.masks is None else float(result.masks.threshold),
            losses=result.losses,
            name=job.sequence.name,
        )
        return folder


def evaluate(job: Job, method: Method, keeping: Keeping | None, observer: Observer) -> dict[str, Any]:
    """`figures`, `seconds`, `peak_memory_bytes` and `result` of a sequence's record.

    Raises:
      UserError: what cannot be read, does not fit, or cannot be reconstructed.
    """
    reset_peak_memory()
    began = time.perf_counter()
    frames = method.read(job.sequence, observer)
    result = None
    if job.part.test_set.single_frames:
        scenes = (alone.scene for alone in method.single_frames(frames, job.seed, observer))
    else:
        result = method.clip(frames, job.seed, observer)
        scenes = [result.scene]
    observer("judge", 0, 1, "")
    figures = judge(job.part.test_set, job.sequence, Prediction.of(scenes, frames))
    observer("judge", 1, 1, "")
    seconds = time.perf_counter() - began
    kept = None
    if keeping is not None and result is not None:
        kept = keeping.write(job, result, frames, figures)
    return {"figures": figures, "seconds": seconds, "peak_memory_bytes": peak_memory_bytes(), "result": kept}


def run(
    jobs: list[Job],
    attempt: Callable[[Job], dict[str, Any]],
    output: pathlib.Path,
    process_index: int,
    tell: Callable[[Job, Record, int], None],
) -> None:
    """Does the jobs in their order. What fails is recorded with its reason; the others go on.

    Args:
      jobs: of this process.
      attempt: see `evaluate`.
      output: folder of the run: `results.NNN.jsonl`, and `errors.NNN.log` with the traceback of every failure.
      process_index: NNN.
      tell: called with the job, its record and the number of jobs that have ended.

    Raises:
      OutputError: a record cannot be written.
    """
    for number, job in enumerate(jobs, 1):
        began = time.perf_counter()
        try:
            found, error = attempt(job), None
        except Exception as failure:  # whatever it was, the other sequences have nothing to do with it
            error = reason(failure)
            _log(output / f"errors.{process_index:03d}.log", job, failure)
            found = {
                "figures": {},
                "seconds": time.perf_counter() - began,
                "peak_memory_bytes": peak_memory_bytes(),
            }
        dataset, sequence, seed, config = job.key
        record = Record(
            dataset=dataset,
            sequence=sequence,
            seed=seed,
            config=config,
            num_frames=job.num_frames,
            error=error,
            hardware=processor(),
            code=code_version(),
            ended=time.time(),
            **found,
        )
        records.append(output / f"results.{process_index:03d}.jsonl", record)
        tell(job, record, number)


def reason(failure: Exception) -> str:
    """An exception in one line."""
    text = " ".join(str(failure).split())
    if isinstance(failure, MemoryError) or "RESOURCE_EXHAUSTED" in text:
        return "Out of memory: a smaller --size, --pair_batch or --frame_batch, --point_dtype=float16, or fewer pairs."
    if not isinstance(failure, UserError):
        text = f"{type(failure).__name__}: {text}" if text else type(failure).__name__
    return text if len(text) <= _LONGEST_REASON else text[: _LONGEST_REASON - 3] + "..."


def _log(path: pathlib.Path, job: Job, failure: Exception) -> None:
    dataset, sequence, seed, config = job.key
    head = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {dataset} {sequence}, seed {seed}, configuration {config}"
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(f"--- {head}\n{''.join(traceback.format_exception(failure))}\n")
    except OSError as error:
        raise output_error(path, error) from error
