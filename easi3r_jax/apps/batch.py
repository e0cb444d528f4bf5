"""Many clips with one command: which, in which state, and the table `batch.csv` of them.

A clip's row is on disk as soon as the clip ends. Of several rows the last one counts; at the end one is left for each.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import glob
import hashlib
import io
import json
import os
import pathlib
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from easi3r_jax.apps.cluster.tasks import Ended, Task
from easi3r_jax.apps.progress import clock
from easi3r_jax.apps.report_page import METRICS
from easi3r_jax.core import interrupt
from easi3r_jax.core.atomic import atomic_file, output_error
from easi3r_jax.core.errors import InputError, OutputError, UserError
from easi3r_jax.io import remote
from easi3r_jax.io.sequences import find_sequence

TABLE = "batch.csv"
_FACTS = ("clip", "name", "state", "reason", "frames", "seconds", "attempts", "worker", "options")
_COLUMNS = (*_FACTS, *METRICS)

Row = dict[str, str]


@dataclasses.dataclass(frozen=True)
class Clip:
    """A clip of a batch.

    Attributes:
      seq: as `--seq` takes it.
      name: of its result folder.
    """

    seq: str
    name: str


def clips_of(seq: str, *, each: bool) -> list[Clip] | None:
    """The clips that `--seq` names if it names several: a pattern, @FILE with one per line, or the entries of a folder.

    Args:
      seq: as the user gives it.
      each: whether each entry of the folder is a clip.

    Returns:
      None if it is one clip.

    Raises:
      InputError: no clip, a file or folder that is missing, or two clips of one name.
    """
    path = pathlib.Path(seq).expanduser()
    if seq.startswith("@"):
        found = _listed(pathlib.Path(seq[1:]).expanduser())
    elif each:
        if not path.is_dir():
            raise InputError(f"--each needs a folder of clips, and {seq!r} is not one.")
        found = [str(entry) for entry in sorted(path.iterdir()) if not entry.name.startswith(".")]
    elif remote.is_address(seq):
        return None  # a query has a question mark
    elif glob.has_magic(seq) and not path.exists():
        found = sorted(glob.glob(str(path), recursive=True))
    else:
        return None
    if not found:
        raise InputError(f"--seq={seq}: there are no clips (seen from {pathlib.Path.cwd()}).")
    clips = [Clip(one, _name(one)) for one in found]
    named: dict[str, Clip] = {}
    for clip in clips:
        other = named.setdefault(clip.name, clip)
        if other is not clip:
            raise InputError(
                f"{other.seq} and {clip.seq} would both be written to {clip.name}: rename one, or reconstruct them "
                "with another --output."
            )
    return clips


def _name(seq: str) -> str:
    """Of a clip's result folder. What is at an address is not downloaded for that."""
    return pathlib.PurePath(remote.name_of(seq)).stem if remote.is_address(seq) else find_sequence(seq).name


def _listed(path: pathlib.Path) -> list[str]:
    """The lines of a file, without empty ones and comments."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"Cannot read the list of clips {path}: {error}.") from error
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


def digest(options: Iterable[str]) -> str:
    """Identifies flags: clips are reconstructed again if they change."""
    return hashlib.sha256("\n".join(sorted(options)).encode()).hexdigest()[:8]


class Batch:
    """The state of a batch in its output folder.

    Args:
      output: the folder.
      clips: of the batch.
      options: digest of the flags, see `digest`.

    Raises:
      OutputError: a result folder of another clip.
    """

    def __init__(self, output: pathlib.Path, clips: Sequence[Clip], options: str):
        self.output, self.clips, self.options = output, clips, options
        self._rows = {row["name"]: row for row in _read(output / TABLE)}
        for clip in clips:
            row = self._rows.get(clip.name)
            if (output / clip.name).exists() and (row is None or not _same(row["clip"], clip.seq)):
                whose = "not a result of a batch" if row is None else f"the result of {row['clip']}"
                raise OutputError(
                    f"{output / clip.name} is {whose}, not of {clip.seq}: delete it, or choose another --output."
                )
        for clip in self.remaining():  # a folder that is found later is known to be ours
            self._rows[clip.name] = dict.fromkeys(_FACTS, "") | {
                "clip": clip.seq, "name": clip.name, "state": "begun", "options": options
            }  # fmt: skip
        self.write()

    def remaining(self) -> list[Clip]:
        """Clips without a complete result of these options."""
        return [clip for clip in self.clips if not self._is_done(clip)]

    def _is_done(self, clip: Clip) -> bool:
        row = self._rows.get(clip.name)
        if row is None or (row["state"], row["options"]) != ("done", self.options):
            return False
        return _same(row["clip"], clip.seq) and (self.output / clip.name / "scene.npz").is_file()

    def add(self, row: Row) -> None:
        """Appends a row, and returns when it is on disk.

        Raises:
          OutputError: it cannot be written.
        """
        self._rows[row["name"]] = row
        path = self.output / TABLE
        try:
            with interrupt.uninterrupted(), path.open("a", encoding="utf-8", newline="") as file:
                file.write(_text([row], header=False))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise output_error(path, error) from error

    def write(self) -> None:
        """Writes the table anew, with one row for each clip.

        Raises:
          OutputError: it cannot be written.
        """
        self.output.mkdir(parents=True, exist_ok=True)
        with atomic_file(self.output / TABLE) as new:
            new.write_text(_text(self._rows.values(), header=True), encoding="utf-8")

    def failed(self) -> list[Row]:
        """The rows of this batch's clips without a result."""
        names = {clip.name for clip in self.clips}
        return [row for row in self._rows.values() if row["state"] != "done" and row["name"] in names]

    def row(self, clip: Clip, ended: Ended) -> Row:
        """The row of a clip that ended: its value is the reason of a failure, or "".

        Its frames and metrics are those of its result folder.
        """
        reason = ended.error or ended.value
        if not reason and not (self.output / clip.name / "scene.npz").is_file():
            reason = "Its result is not in the output folder: all machines need the same folder at the same path."
        facts = (clip.seq, clip.name, "failed" if reason else "done", reason, "", f"{ended.seconds:.1f}")
        row: Row = {}
        row.update(zip(_FACTS, (*facts, str(ended.attempts), ended.worker, self.options), strict=True))
        folder = self.output / clip.name
        if not reason:
            row["frames"] = str(len(list((folder / "depth").glob("*.png"))) or "")
            metrics = _json(folder / "metrics.json")
            own = metrics.get("full method") or metrics.get("frame by frame") or {}
            row |= {name: f"{value:.6g}" for name, value in own.items() if name in METRICS and value is not None}
        return row


def tasks_of_clips(clips: Iterable[Clip]) -> list[Task]:
    """A task for each clip; the size of its files estimates its cost."""
    return [Task(clip.name, clip, _bytes(pathlib.Path(clip.seq).expanduser())) for clip in clips]


def attempted(clip: Clip, reconstruct: Callable[[Clip], Any], log: pathlib.Path) -> str:
    """Reconstructs a clip; the reason of a failure in one line, or "". Printed lines and tracebacks go to the log."""
    try:
        with log.open("w", encoding="utf-8", buffering=1) as lines, contextlib.redirect_stdout(lines):
            try:
                reconstruct(clip)
            except Exception:
                traceback.print_exc(file=lines)
                raise
    except Exception as failure:  # any: the other clips are not affected
        text = " ".join(str(failure).split())
        if isinstance(failure, UserError):
            return text
        return f"{type(failure).__name__}: {text}" if text else type(failure).__name__
    return ""


def work(batch: Batch, clips: Sequence[Clip], ended: Iterable[Ended]) -> None:
    """Writes a row for each clip as soon as it ends, prints a line, and in the end what failed.

    Raises:
      UserError: clips failed.
    """
    began, known = time.monotonic(), {clip.name: clip for clip in clips}
    try:
        for number, end in enumerate(ended, 1):
            row = batch.row(known[end.task.payload.name], end)
            batch.add(row)
            each = (time.monotonic() - began) / number
            left = f"; {clock(each * (len(clips) - number))} left" if number < len(clips) else ""
            again = f", attempt {end.attempts}" if end.attempts > 1 else ""
            what = row["reason"] or f"{row['frames']} frames"
            where = f", {end.worker}" if end.worker else ""
            print(
                f"  {number}/{len(clips)} {row['name']}: {what} ({end.seconds:.1f} s{where}{again}{left})", flush=True
            )
    finally:
        batch.write()
    failed = batch.failed()
    print(f"  table: {batch.output / TABLE}")
    if failed:
        raise UserError(
            f"Failed: {len(failed)} of {len(batch.clips)} clips, see {batch.output / TABLE}. The same command retries "
            "them."
        )


def _read(path: pathlib.Path) -> list[Row]:
    """The table's rows; incomplete ones are skipped.

    Raises:
      InputError: a file that cannot be read, or another table.
    """
    if not path.exists():
        return []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            if reader.fieldnames is None or not set(_FACTS) <= set(reader.fieldnames):
                raise InputError(f"{path} is not the table of a batch: choose another --output.")
            return [row for row in reader if all(isinstance(row[name], str) for name in _FACTS)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"Cannot read {path}: {error}. Choose another --output.") from error


def _text(rows: Iterable[Row], *, header: bool) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, _COLUMNS, restval="", extrasaction="ignore", lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _same(seq: str, other: str) -> bool:
    """Whether both name the same clip."""
    return pathlib.Path(seq).expanduser().resolve() == pathlib.Path(other).expanduser().resolve()


def _json(path: pathlib.Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _bytes(path: pathlib.Path) -> float:
    files = [path] if path.is_file() else path.rglob("*") if path.is_dir() else []
    return float(sum(file.stat().st_size for file in files if file.is_file()))
