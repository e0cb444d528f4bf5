"""Evaluating a sequence: what becomes of it, as a record."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from easi3r_jax.apps.compilation import Compilations
from easi3r_jax.apps.environment import code_version, peak_memory_bytes, processor, reset_peak_memory
from easi3r_jax.apps.evaluate import records
from easi3r_jax.apps.evaluate.records import Record
from easi3r_jax.apps.evaluate.rendered import RenderedSequence, rendered_frames
from easi3r_jax.apps.evaluate.schedule import Job
from easi3r_jax.apps.evaluate.sequence_metrics import Prediction, evaluate_sequence
from easi3r_jax.core.atomic import output_error
from easi3r_jax.core.config import FrameConfig, PipelineConfig
from easi3r_jax.core.errors import UserError
from easi3r_jax.core.types import Frames, Progress, Reconstruction, frames_at
from easi3r_jax.evaluation.datasets import TestSequence
from easi3r_jax.inference import pipeline
from easi3r_jax.inference.clip import FlowSource, Refiner
from easi3r_jax.io.results import save_result
from easi3r_jax.io.video import load_frames
from easi3r_jax.models import DUSt3R

_MAX_REASON_LENGTH = 500


@dataclasses.dataclass(frozen=True, eq=False)
class Method:
    """The method that every sequence is evaluated with.

    Attributes:
      model: the network.
      frames: how frames are resized for it.
      config: options of all stages; the seed is the job's.
      flow: source of optical flow, or None.
      refiner: of masks, or None.
    """

    model: DUSt3R
    frames: FrameConfig
    config: PipelineConfig
    flow: FlowSource | None = None
    refiner: Refiner | None = None

    def read(self, sequence: TestSequence, progress: Progress) -> Frames:
        """The sequence's frames.

        Raises:
          InputError: as `load_frames`.
        """
        if isinstance(sequence, RenderedSequence):
            return rendered_frames(sequence, self.frames)
        return load_frames(sequence.images, self.frames, progress=progress)

    def clip(self, frames: Frames, seed: int, progress: Progress) -> Reconstruction:
        """The whole method on a clip."""
        config = dataclasses.replace(self.config, seed=seed)
        return pipeline.reconstruct(self.model, frames, config, flow=self.flow, refiner=self.refiner, progress=progress)

    def single_frames(self, frames: Frames, seed: int, progress: Progress) -> Iterator[Reconstruction]:
        """Every frame alone, paired with itself, without a motion cue: a single frame shows no motion."""
        config = dataclasses.replace(self.config, seed=seed, cue="none", masks=())
        for t in range(len(frames.rgb)):
            progress("frames alone", t, len(frames.rgb), "")
            yield pipeline.reconstruct(self.model, frames_at(frames, slice(t, t + 1)), config)
        progress("frames alone", len(frames.rgb), len(frames.rgb), "")


@dataclasses.dataclass(frozen=True)
class ResultFolders:
    """Writes result folders of a run.

    Attributes:
      output: folder of the run.
      record: content of each `config.json`, except the seed.
    """

    output: pathlib.Path
    record: dict[str, Any]

    def folder(self, job: Job) -> str:
        """The folder of a job, within the run's."""
        dataset, sequence, seed, config = job.key
        return os.path.join("results", config, dataset, sequence.replace("/", "_"), f"seed_{seed}")

    def write(self, job: Job, result: Reconstruction, metrics: dict[str, Any]) -> str:
        """Writes the result folder of a clip, as `experiments.reconstruct` does."""
        folder = self.folder(job)
        save_result(
            self.output / folder,
            result,
            record=self.record | {"configuration": job.part.configuration, "seed": job.seed},
            metrics=metrics,
            name=job.sequence.name,
        )
        return folder


def is_done(
    job: Job, known: dict[records.Key, records.Record], output: pathlib.Path, results: ResultFolders | None
) -> bool:
    """Whether a job is complete: no error, the current number of frames, and its result saved if requested."""
    record = known.get(job.key)
    if record is None or record.error is not None or record.num_frames != job.num_frames:
        return False
    return results is None or (output / results.folder(job) / "scene.npz").is_file()


def evaluate(job: Job, method: Method, results: ResultFolders | None, progress: Progress) -> dict[str, Any]:
    """`metrics`, `seconds`, `compile_seconds`, `peak_memory` and `result` of a sequence's record, for `record_of`.

    Raises:
      UserError: input that cannot be read, does not match, or cannot be reconstructed.
    """
    reset_peak_memory()
    compilations, began = Compilations(), time.perf_counter()
    frames = method.read(job.sequence, progress)
    result = None
    if job.part.test_set.single_frames:
        scenes = (alone.scene for alone in method.single_frames(frames, job.seed, progress))
    else:
        result = method.clip(frames, job.seed, progress)
        scenes = [result.scene]
    progress("metrics", 0, 1, "")
    metrics = evaluate_sequence(job.part.test_set, job.sequence, Prediction.of(scenes, frames))
    progress("metrics", 1, 1, "")
    seconds = time.perf_counter() - began
    folder = None
    if results is not None and result is not None:
        folder = results.write(job, result, metrics)
    return {
        "metrics": metrics,
        "seconds": seconds,
        "compile_seconds": min(compilations.seconds, seconds),  # programs that are compiled at a time count one by one
        "peak_memory": peak_memory_bytes(),
        "result": folder,
    }


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a job.

    Attributes:
      record: its line.
      trace: traceback of a failure, else "".
    """

    record: Record
    trace: str = ""


def attempted(job: Job, evaluate_job: Callable[[Job], dict[str, Any]]) -> Outcome:
    """The outcome of a job. Any failure is recorded with its reason: other sequences are not affected."""
    began = time.perf_counter()
    try:
        return Outcome(record_of(job, **evaluate_job(job)))
    except Exception as failure:
        seconds = time.perf_counter() - began
        trace = "".join(traceback.format_exception(failure))
        return Outcome(record_of(job, seconds=seconds, error=reason(failure)), trace)


def record_of(
    job: Job,
    *,
    seconds: float,
    metrics: dict[str, Any] | None = None,
    error: str | None = None,
    peak_memory: dict[str, int] | None = None,
    result: str | None = None,
    compile_seconds: float | None = None,
) -> Record:
    """The line of a job that ended in this process now."""
    dataset, sequence, seed, config = job.key
    return Record(
        dataset=dataset,
        sequence=sequence,
        seed=seed,
        config=config,
        num_frames=job.num_frames,
        metrics=metrics or {},
        error=error,
        seconds=seconds,
        peak_memory_bytes=peak_memory_bytes() if peak_memory is None else peak_memory,
        hardware=processor(),
        code=code_version(),
        ended=time.time(),
        result=result,
        compile_seconds=compile_seconds,
    )


def save(output: pathlib.Path, outcome: Outcome) -> None:
    """Appends a line to `results.jsonl`, and the traceback of a failure to `errors.log`.

    Raises:
      OutputError: they cannot be written.
    """
    if outcome.trace:
        _log(output / "errors.log", outcome)
    records.append(output / records.RESULTS, outcome.record)


def reason(failure: Exception) -> str:
    """An exception as one line."""
    text = " ".join(str(failure).split())
    if isinstance(failure, MemoryError) or "RESOURCE_EXHAUSTED" in text:
        return (
            "Out of memory: use a smaller --size, --pair_batch or --frame_batch, --point_dtype=float16, or fewer pairs."
        )
    if not isinstance(failure, UserError):
        text = f"{type(failure).__name__}: {text}" if text else type(failure).__name__
    return text if len(text) <= _MAX_REASON_LENGTH else text[: _MAX_REASON_LENGTH - 3] + "..."


def _log(path: pathlib.Path, outcome: Outcome) -> None:
    dataset, sequence, seed, config = outcome.record.key
    head = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {dataset} {sequence}, seed {seed}, configuration {config}"
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(f"--- {head}\n{outcome.trace}\n")
    except OSError as error:
        raise output_error(path, error) from error
