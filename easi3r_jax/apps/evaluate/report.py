"""What a run leaves for people: the tables on the screen, `report.md` and `results.csv`."""

from __future__ import annotations

import csv
import io
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from easi3r_jax.apps import progress
from easi3r_jax.apps.evaluate.records import Record
from easi3r_jax.apps.evaluate.schedule import Part
from easi3r_jax.apps.evaluate.summary import TaskSummary
from easi3r_jax.apps.evaluate.tables import TABLES, Column, Row, Table, lay_out, markdown, published_figures, title_of
from easi3r_jax.core.atomic import atomic_file
from easi3r_jax.io.export import to_json


class Report:
    """A run's results.

    Args:
      parts: its data sets.
      records: of each data set, `Part.own`: the last of every sequence.
      seeds: of the method.
      network: whose weights these are.
      allow_missing: means of incomplete data sets are shown, marked.
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
            self.ours += ", a small network for trials: not what the papers' rows are of"
        self.summaries = [part.summaries(seeds, found) for part, found in zip(parts, records, strict=True)]

    @property
    def missing(self) -> list[str]:
        """What is incomplete, in words."""
        return [
            f"{s.dataset} ({s.task}) has {s.done} of {s.expected} sequences"
            for summaries in self.summaries
            for s in summaries
            if not s.whole
        ]

    @property
    def failed(self) -> list[Record]:
        """Sequences that failed when they were last tried."""
        return [record for found in self.records for record in found if record.error is not None]

    def printed(self) -> str:
        """The tables, for the screen."""
        blocks = [f"  {self.ours}"]
        for part, table, columns, rows in self._tables():
            header = (f"{part.test_set.name}: {table.task}", "n/N", *(c.title for c in columns))
            blocks.append(f"  {title_of(table, part.test_set)}\n{progress.table(rows, header)}")
        return "\n\n".join(blocks)

    def markdown(self, command: str, configurations: Sequence[dict[str, Any]]) -> str:
        """`report.md`.

        Args:
          command: that made the run.
          configurations: what is to be said of each data set's method.
        """
        lines = ["# Evaluation", "", f"    {command}", ""]
        lines += [
            "n/N: sequences in the mean, of those that the data set has for the task. "
            + (f"± is the standard deviation over {len(self.seeds)} seeds. " if len(self.seeds) > 1 else "")
            + f"Figures are defined in docs/metrics.md. {self.ours[0].upper()}{self.ours[1:]}.",
            "",
        ]
        if self.missing:
            lines += ["**INCOMPLETE**: " + "; ".join(self.missing) + ".", ""]
            if self.allow_missing:
                lines += ["\\* Mean of the sequences that there are, **not a result of the data set**.", ""]
        titled = set()
        for part, table, columns, rows in self._tables():
            if part.digest not in titled:
                titled.add(part.digest)
                lines += [f"## {part.test_set.title}", ""]
            header = ("method", "n/N", *(c.title for c in columns))
            title = title_of(table, part.test_set)
            lines += [f"{title[0].upper()}{title[1:]}:", "", markdown(rows, header), ""]
            lines += self._sources(part, table)
        lines += self._failures() + self._effort()
        lines += ["## Configuration", ""]
        for part, described in zip(self.parts, configurations, strict=True):
            text = json.dumps(to_json(described), indent=1, ensure_ascii=False)
            lines += [f"{part.test_set.title}: `{part.digest}`", "", "```json", text, "```", ""]
        return "\n".join(lines)

    def csv(self) -> str:
        """`results.csv`: a row for every sequence and seed, a column for every figure."""
        found = [record for records in self.records for record in records]
        figures = dict.fromkeys((task, name) for r in found for task in r.figures for name in r.figures[task])
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        facts = ("dataset", "sequence", "seed", "config", "num_frames", "seconds", "peak_host_bytes")
        writer.writerow((*facts, "peak_device_bytes", *(f"{task}.{name}" for task, name in figures), "error"))
        for r in found:
            values = (r.figures.get(task, {}).get(name) for task, name in figures)
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

    def write(self, output: pathlib.Path, command: str, configurations: Sequence[dict[str, Any]]) -> None:
        """Writes both files.

        Raises:
          OutputError: they cannot be written.
        """
        for name, text in (("report.md", self.markdown(command, configurations)), ("results.csv", self.csv())):
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
        """Where the papers' rows are from; of rows that are in the table."""
        methods: dict[str, list[str]] = {}
        for row in part.test_set.published:
            if row.task == table.task and published_figures(table, row):
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
            (r.sequence, r.dataset, str(r.seed), str(r.num_frames), f"{r.seconds:.1f}", *_gigabytes(r)) for r in found
        ]
        header = ("sequence", "data set", "seed", "frames", "seconds", "peak host GB", "peak device GB")
        return [*lines, "", markdown(rows, header), ""]


def _gigabytes(record: Record) -> tuple[str, str]:
    host, device = (record.peak_memory_bytes.get(where) for where in ("host", "device"))
    return ("-" if host is None else f"{host / 1e9:.2f}", "-" if device is None else f"{device / 1e9:.2f}")
