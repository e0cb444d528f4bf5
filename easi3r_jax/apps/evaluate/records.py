"""What a run has found, a line for each sequence the moment it ends, in files that survive whatever ends the run.

Every process writes its own `results.NNN.jsonl`; whoever reads takes all of them together. A line is written in one
go and forced to the disk; one that was cut all the same (power, a full disk) is not a line and its sequence not done.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable
from typing import Any

from easi3r_jax.core import interrupt
from easi3r_jax.core.atomic import output_error
from easi3r_jax.core.errors import InputError
from easi3r_jax.io.export import to_json

Key = tuple[str, str, int, str]
_FILES = "results.*.jsonl"


@dataclasses.dataclass(frozen=True)
class Record:
    """A sequence that has ended.

    Attributes:
      dataset, sequence: their names.
      seed: of the method.
      config: digest of all else that decides the numbers: see `configuration`.
      num_frames: T.
      figures: task -> name -> value, None where it is not defined; empty where the sequence failed.
      error: why it failed, in one line; None where it did not.
      seconds: from reading the frames to the figures.
      peak_memory_bytes: "host", and "device" where it is known (there of the whole process so far).
      hardware: what it ran on.
      code: version and commit.
      ended: seconds since 1970.
      result: folder of the result within the run's; None where none was kept.
    """

    dataset: str
    sequence: str
    seed: int
    config: str
    num_frames: int
    figures: dict[str, dict[str, float | None]]
    error: str | None
    seconds: float
    peak_memory_bytes: dict[str, int]
    hardware: str
    code: str
    ended: float
    result: str | None = None

    @property
    def key(self) -> Key:
        """What makes it another sequence, or the same one under other conditions."""
        return self.dataset, self.sequence, self.seed, self.config


def configuration_digest(configuration: dict[str, Any]) -> str:
    """Names a configuration: the first 12 digits of the SHA-256 of its JSON."""
    text = json.dumps(to_json(configuration), sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def line(record: Record) -> str:
    """A record in the form in which it is kept, without the end of the line."""
    return json.dumps(to_json(record), allow_nan=False)


def parse(text: str | bytes) -> Record | None:
    """The record of a line; None where it is no whole one."""
    try:
        record = Record(**json.loads(text, parse_constant=_refuse))
    except (ValueError, TypeError):
        return None
    return record if _is_whole(record) else None


def append(path: pathlib.Path, *added: Record) -> None:
    """Adds a line for each, and returns when they are on the disk.

    Raises:
      OutputError: they cannot be written.
    """
    lines = "".join(line(record) + "\n" for record in added)
    try:
        with interrupt.uninterrupted(), path.open("ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":  # a line was cut: the new ones shall not be part of it
                    lines = "\n" + lines
            file.write(lines.encode())
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise output_error(path, error) from error


def read(folder: pathlib.Path) -> list[Record]:
    """The records of all processes in the order in which they ended. What is no whole record is passed over.

    Raises:
      InputError: a file that cannot be read.
    """
    found = []
    for path in sorted(folder.glob(_FILES)):
        try:
            lines = path.read_bytes().splitlines()
        except OSError as error:
            raise InputError(
                f"Cannot read {path}: {error.strerror}. Make it readable, or name another folder."
            ) from error
        found += [record for text in lines if (record := parse(text)) is not None]
    return sorted(found, key=lambda record: record.ended)


def latest(records: Iterable[Record]) -> dict[Key, Record]:
    """The last record of each key. One that failed takes no success's place: the clocks of hosts may differ."""
    found: dict[Key, Record] = {}
    for record in records:
        older = found.get(record.key)
        if record.error is None or older is None or older.error is not None or older.num_frames != record.num_frames:
            found[record.key] = record
    return found


def _is_whole(record: Record) -> bool:
    """Whether everything is of its kind: lines are plain text, which people mend."""
    figures, number = record.figures, (int, float)
    return (
        all(isinstance(getattr(record, name), str) for name in ("dataset", "sequence", "config", "hardware", "code"))
        and all(isinstance(getattr(record, name), int) for name in ("seed", "num_frames"))
        and all(isinstance(getattr(record, name), number) for name in ("seconds", "ended"))
        and all(isinstance(getattr(record, name), str | None) for name in ("error", "result"))
        and isinstance(record.peak_memory_bytes, dict)
        and all(isinstance(value, number) for value in record.peak_memory_bytes.values())
        and isinstance(figures, dict)
        and all(isinstance(task, dict) for task in figures.values())
        and all(value is None or isinstance(value, number) for task in figures.values() for value in task.values())
    )


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")
