"""Results of a run: one line per sequence, written as soon as it ends, in a file that survives however the run ends.

A line is written at once and synced to disk. If it is truncated nevertheless (power loss, full disk), it is ignored and
its sequence is not complete.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import pathlib
from collections.abc import Iterable
from typing import Any

from easi3r_jax.core import interrupt
from easi3r_jax.core.atomic import output_error
from easi3r_jax.core.errors import InputError
from easi3r_jax.io.export import to_json

Key = tuple[str, str, int, str]
#: The file of a run.
RESULTS = "results.jsonl"
#: Earlier versions wrote a file per process.
_FILES = "results*.jsonl"


@dataclasses.dataclass(frozen=True)
class Record:
    """The record of an evaluated sequence.

    Attributes:
      dataset, sequence: their names.
      seed: of the method.
      config: digest of everything else that determines the results, see `configuration`.
      num_frames: T.
      metrics: task -> name -> value, None if undefined; empty if the sequence failed.
      error: the reason of a failure, in one line; None if there was none.
      seconds: from reading the frames to the metrics.
      peak_memory_bytes: "host", and "device" if it is known (that of the process so far).
      hardware: what it ran on.
      code: version and commit.
      ended: seconds since 1970.
      result: folder of the result within the run's folder; None if none was saved.
      attempts: how often it was begun: more than once if a worker of a cluster died.
      worker: name of the last worker of a cluster; "" without one.
      compile_seconds: of `seconds`, those that XLA compiled; None if the sequence failed, and in older lines.
    """

    dataset: str
    sequence: str
    seed: int
    config: str
    num_frames: int
    metrics: dict[str, dict[str, float | None]]
    error: str | None
    seconds: float
    peak_memory_bytes: dict[str, int]
    hardware: str
    code: str
    ended: float
    result: str | None = None
    attempts: int = 1
    worker: str = ""
    compile_seconds: float | None = None

    @property
    def key(self) -> Key:
        """Identifies the sequence and its conditions."""
        return self.dataset, self.sequence, self.seed, self.config


def configuration_digest(configuration: dict[str, Any]) -> str:
    """Identifies a configuration: the first 12 digits of the SHA-256 of its JSON."""
    text = json.dumps(to_json(configuration), sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def line(record: Record) -> str:
    """A record as it is stored, without the line break."""
    return json.dumps(to_json(record), allow_nan=False)


def parse(text: str | bytes) -> Record | None:
    """The record of a line; None if the line is not a valid record."""
    try:
        record = Record(**json.loads(text, parse_constant=_refuse))
    except (ValueError, TypeError):
        return None
    return record if _is_valid(record) else None


def append(path: pathlib.Path, *added: Record) -> None:
    """Appends a line for each record, and returns when they are on disk.

    Raises:
      OutputError: they cannot be written.
    """
    lines = "".join(line(record) + "\n" for record in added)
    try:
        with interrupt.uninterrupted(), path.open("ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":  # a line was truncated: do not append to it
                    lines = "\n" + lines
            file.write(lines.encode())
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise output_error(path, error) from error


def read(folder: pathlib.Path) -> list[Record]:
    """The records in the order in which they ended. Invalid lines are skipped.

    Raises:
      InputError: a file that cannot be read.
    """
    found = []
    for path in sorted(folder.glob(_FILES)):
        try:
            lines = path.read_bytes().splitlines()
        except OSError as error:
            raise InputError(
                f"Cannot read {path}: {error.strerror}. Make it readable, or use another folder."
            ) from error
        found += [record for text in lines if (record := parse(text)) is not None]
    return sorted(found, key=lambda record: record.ended)


def invalid_lines(folder: pathlib.Path) -> list[str]:
    """Where lines are not valid records: "results.jsonl, line 3"."""
    return [
        f"{path.name}, line {number}"
        for path in sorted(folder.glob(_FILES))
        for number, text in enumerate(path.read_bytes().splitlines(), 1)
        if text.strip() and parse(text) is None
    ]


def latest(records: Iterable[Record]) -> dict[Key, Record]:
    """The last record of each key. A failure does not replace a success: the clocks of hosts may differ."""
    found: dict[Key, Record] = {}
    for record in records:
        older = found.get(record.key)
        if record.error is None or older is None or older.error is not None or older.num_frames != record.num_frames:
            found[record.key] = record
    return found


def _is_valid(record: Record) -> bool:
    """Whether every field has its type: the files are plain text, which people may edit."""
    metrics, number = record.metrics, int | float
    return (
        all(isinstance(getattr(record, name), str) for name in ("dataset", "sequence", "config", "hardware", "code"))
        and isinstance(record.worker, str)
        and all(isinstance(getattr(record, name), int) for name in ("seed", "num_frames", "attempts"))
        and all(isinstance(getattr(record, name), number) for name in ("seconds", "ended"))
        and all(isinstance(getattr(record, name), str | None) for name in ("error", "result"))
        and isinstance(record.compile_seconds, number | None)
        and isinstance(record.peak_memory_bytes, dict)
        and all(isinstance(value, number) for value in record.peak_memory_bytes.values())
        and isinstance(metrics, dict)
        and all(isinstance(task, dict) for task in metrics.values())
        and all(
            value is None or (isinstance(value, number) and math.isfinite(value))
            for task in metrics.values()
            for value in task.values()
        )
    )


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")
