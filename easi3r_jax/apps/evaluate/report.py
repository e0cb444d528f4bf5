"""Human-readable results of a run: the printed tables, `report.md` and `results.csv`."""

from __future__ import annotations

import csv
import io
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from easi3r_jax.apps import progress
from easi3r_jax.apps.cluster.tasks import Usage
from easi3r_jax.apps.evaluate.records import Record
from easi3r_jax.apps.evaluate.schedule import Part
from easi3r_jax.apps.evaluate.summary import TaskSummary
from easi3r_jax.apps.evaluate.tables import TABLES, Column, Row, Table, lay_out, markdown, published_metrics, title_of
from easi3r_jax.core.atomic import atomic_file
from easi3r_jax.io.export import to_json


class Report:
    """A run's results.

    Args:
      parts: its data sets.
      records: `Part.own` of each data set: the last record of every sequence.
      seeds: of the method.
      network: name of the weights.
      allow_missing: show means of incomplete data sets, marked.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        records: Sequence[Sequence[Record]],
        seeds: Sequence[int],
        *,
        network: str,
        allow_missing: bool,
    ):
        self.parts, self.records, self.seeds = parts, records, seeds
        self.allow_missing = allow_missing
        self.ours = f"ours: with the weights {network}"
        if network == "embedded":
            self.ours += ", a small network for trials, not the one of the papers' rows"
        self.summaries = [part.summaries(seeds, found) for part, found in zip(parts, records, strict=True)]

    @property
    def missing(self) -> list[str]:
        """A phrase for each incomplete task."""
        return [
            f"{s.dataset} ({s.task}) has {s.done} of {s.expected} sequences"
            for summaries in self.summaries
            for s in summaries
            if not s.is_complete
        ]

    @property
    def failed(self) -> list[Record]:
        """Sequences that failed at their last attempt."""
        return [record for found in self.records for record in found if record.error is not None]

    def printed(self) -> str:
        """The tables as plain text."""
        blocks = [f"  {self.ours}"]
        for part, table, columns, rows in self._tables():
            header = (f"{part.test_set.name}: {table.task}", "n/N", *(c.title for c in columns))
            blocks.append(f"  {title_of(table, part.test_set)}\n{progress.table(rows, header)}")
        return "\n\n".join(blocks)

    def markdown(
        self,
        command: str,
        configurations: Sequence[dict[str, Any]],
        usage: Sequence[Usage] = (),
        seconds: float = 0.0,
    ) -> str:
        """`report.md`.

        Args:
          command: of the run.
          configurations: description of the method for each data set.
          usage, seconds: what the workers of a cluster did, and in which time.
        """
        lines = ["# Evaluation", "", f"    {command}", ""]
        lines += [
            "n/N: sequences in the mean, of those that the data set has for the task. "
            + (f"± is the standard deviation over {len(self.seeds)} seeds. " if len(self.seeds) > 1 else "")
            + f"Metrics are defined in docs/metrics.md. {self.ours[0].upper()}{self.ours[1:]}.",
            "",
        ]
        if self.missing:
            lines += ["**INCOMPLETE**: " + "; ".join(self.missing) + ".", ""]
            if self.allow_missing:
                lines += ["\\* Mean over the available sequences, **not a result of the data set**.", ""]
        titled = set()
        for part, table, columns, rows in self._tables():
            if part.digest not in titled:
                titled.add(part.digest)
                lines += [f"## {part.test_set.title}", ""]
            header = ("method", "n/N", *(c.title for c in columns))
            title = title_of(table, part.test_set)
            lines += [f"{title[0].upper()}{title[1:]}:", "", markdown(rows, header), ""]
            lines += self._sources(part, table)
        lines += self._failures() + self._effort() + _workers(usage, seconds)
        lines += ["## Configuration", ""]
        for part, described in zip(self.parts, configurations, strict=True):
            text = json.dumps(to_json(described), indent=1, ensure_ascii=False)
            lines += [f"{part.test_set.title}: `{part.digest}`", "", "```json", text, "```", ""]
        return "\n".join(lines)

    def csv(self) -> str:
        """`results.csv`: a row for every sequence and seed, a column for every metric."""
        found = [record for records in self.records for record in records]
        columns = dict.fromkeys((task, name) for r in found for task in r.metrics for name in r.metrics[task])
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        facts = ("dataset", "sequence", "seed", "config", "num_frames", "seconds", "peak_host_bytes")
        writer.writerow((*facts, "peak_device_bytes", *(f"{task}.{name}" for task, name in columns), "error"))
        for r in found:
            values = (r.metrics.get(task, {}).get(name) for task, name in columns)
            memory = (r.peak_memory_bytes.get(where) for where in ("host", "device"))
            row = (
                r.dataset,
                r.sequence,
                r.seed,
                r.config,
                r.num_frames,
                round(r.seconds, 2),
                *memory,
                *values,
                r.error,
            )
            writer.writerow(["" if value is None else value for value in row])
        return text.getvalue()

    def write(
        self,
        output: pathlib.Path,
        command: str,
        configurations: Sequence[dict[str, Any]],
        usage: Sequence[Usage] = (),
        seconds: float = 0.0,
    ) -> None:
        """Writes both files.

        Raises:
          OutputError: they cannot be written.
        """
        for name, text in (
            ("report.md", self.markdown(command, configurations, usage, seconds)),
            ("results.csv", self.csv()),
        ):
            with atomic_file(output / name) as new:
                new.write_text(text, encoding="utf-8")

    def _tables(self) -> list[tuple[Part, Table, list[Column], list[Row]]]:
        found = []
        for part, summaries in zip(self.parts, self.summaries, strict=True):
            by_task: dict[str, TaskSummary] = {summary.task: summary for summary in summaries}
            for table in TABLES:
                if table.task in by_task:
                    laid = lay_out(table, part.test_set, by_task[table.task], allow_missing=self.allow_missing)
                    found.append((part, table, *laid))
        return found

    def _sources(self, part: Part, table: Table) -> list[str]:
        """Sources of the papers' rows that are in the table."""
        methods: dict[str, list[str]] = {}
        for row in part.test_set.published:
            if row.task == table.task and published_metrics(table, row):
                methods.setdefault(row.source, []).append(row.method)
        return [*(f"- {source}: {', '.join(names)}." for source, names in methods.items()), ""] if methods else []

    def _failures(self) -> list[str]:
        if not self.failed:
            return []
        rows = [(r.sequence, r.dataset, str(r.seed), r.error or "") for r in self.failed]
        return ["## Failed", "", markdown(rows, ("sequence", "data set", "seed", "reason")), ""]

    def _effort(self) -> list[str]:
        found = [record for records in self.records for record in records]
        lines = ["## Time and memory", ""]
        for name, values in (("Hardware", {r.hardware for r in found}), ("Code", {r.code for r in found})):
            lines += [f"- {name}: {'; '.join(sorted(values)) or '-'}"]
        rows = [
            (
                r.sequence,
                r.dataset,
                str(r.seed),
                str(r.num_frames),
                f"{r.seconds:.1f}",
                *_gigabytes(r),
                str(r.attempts),
            )
            for r in found
        ]
        header = ("sequence", "data set", "seed", "frames", "seconds", "peak host GB", "peak device GB", "attempts")
        return [*lines, "", markdown(rows, header), ""]


def _workers(usage: Sequence[Usage], seconds: float) -> list[str]:
    """What the workers of the last command did, in so many seconds."""
    if not usage or not seconds:
        return []
    tasks = sum(worker.tasks for worker in usage)
    lines = ["## Workers", "", f"The last command: {tasks} sequences in {seconds:.0f} s, {60 * tasks / seconds:.1f} a"]
    lines += ["minute, the start of the workers included.", ""]
    rows = [(w.name, str(w.tasks), f"{w.busy:.0f}", f"{w.busy / seconds:.0%}") for w in usage]
    return [*lines, markdown(rows, ("worker", "sequences", "seconds busy", "of the time")), ""]


def _gigabytes(record: Record) -> tuple[str, str]:
    host, device = (record.peak_memory_bytes.get(where) for where in ("host", "device"))
    return ("-" if host is None else f"{host / 1e9:.2f}", "-" if device is None else f"{device / 1e9:.2f}")
