"""The papers' tables: their metrics and their formatting."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from easi3r_jax.apps.evaluate.records import Record
from easi3r_jax.apps.evaluate.summary import Mean, TaskSummary
from easi3r_jax.evaluation.datasets import Published, TestSet


@dataclasses.dataclass(frozen=True)
class Column:
    """A metric of a table.

    Attributes:
      name: of the metric.
      title: heading of the column.
      digits: after the decimal point.
    """

    name: str
    title: str
    digits: int = 3


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of one task and protocol.

    Attributes:
      task: one of the data set's tasks.
      title: states the protocol; for depth, `title_of` adds the data set's.
      columns: metrics.
      prefix: of our metrics' names, which published rows omit.
    """

    task: str
    title: str
    columns: tuple[Column, ...]
    prefix: str = ""


_MASKS = tuple(Column(f"{c}_{name}", f"{c.upper()} {name}") for c in "jf" for name in ("mean", "recall", "decay"))
TABLES = (
    Table(
        "masks",
        "masks, all frames pooled at the network's crop (the Easi3R paper's protocol)",
        tuple(column for column in _MASKS if not column.name.endswith("decay")),
        prefix="pooled_",
    ),
    Table(
        "masks",
        "masks, mean over sequences without first and last frame at full resolution (the DAVIS benchmark's protocol)",
        (Column("jf_mean", "J&F"), *_MASKS),
        prefix="davis_",
    ),
    Table(
        "poses",
        "camera paths, sequences weighted equally",
        (
            Column("ate", "ATE", 4),
            Column("rpe_translation", "RPE transl.", 4),
            Column("rpe_rotation_deg", "RPE rot. (deg)"),
            Column("focal_relative_error", "focal error"),
        ),
    ),
    Table(
        "depth",
        "depth, sequences weighted by evaluated pixels",
        (
            Column("abs_rel", "AbsRel"),
            Column("sq_rel", "SqRel"),
            Column("depth_rmse", "RMSE"),
            Column("log_rmse", "log RMSE"),
            Column("delta_1_25", "d<1.25"),
            Column("delta_1_25_2", "d<1.25^2"),
            Column("delta_1_25_3", "d<1.25^3"),
        ),
    ),
    Table(
        "points",
        "points, sequences weighted equally",
        tuple(
            Column(name + end, name + text)
            for name in ("accuracy", "completeness", "distance")
            for end, text in (("", ""), ("_median", ", median"))
        ),
    ),
)
HEADLINES = ("pooled_j_mean", "davis_j_mean", "ate", "abs_rel", "distance")

Row = tuple[str, ...]


def title_of(table: Table, test_set: TestSet) -> str:
    """The table's title with the data set's own protocol."""
    if table.task != "depth" or test_set.depth is None:
        return table.title
    options = test_set.depth
    fitted = f"fitted {'frame by frame' if options.per_frame else 'once per sequence'} ({options.alignment})"
    limit = "" if options.max_depth is None else f", true depth below {options.max_depth:g}"
    return f"{table.title}; {fitted}{limit}"


def lay_out(
    table: Table, test_set: TestSet, summary: TaskSummary, *, allow_missing: bool
) -> tuple[list[Column], list[Row]]:
    """The columns that have any value, and the rows: ours and one per paper.

    Our row has values if all sequences are in the mean, or with `allow_missing`, and then a star.
    """
    papers = [(row, published_metrics(table, row)) for row in test_set.published if row.task == table.task]
    papers = [(row, values) for row, values in papers if values]
    ours = {column.name: summary.metrics.get(table.prefix + column.name) for column in table.columns}
    known = [c for c in table.columns if ours[c.name] is not None or any(c.name in values for _, values in papers)]
    columns = known or list(table.columns)
    count = f"{summary.done}/{summary.expected}"
    shown = summary.is_complete or (allow_missing and summary.done > 0)
    mark = "" if summary.is_complete else "*"
    rows = [
        (
            "ours" if shown else "ours: INCOMPLETE",
            count,
            *(written(ours[c.name], c, mark) if shown else "-" for c in columns),
        )
    ]
    for row, values in papers:
        cells = (f"{values[c.name]:.{c.digits}f}" if c.name in values else "-" for c in columns)
        rows.append((row.method, "", *cells))
    return columns, rows


def written(mean: Mean | None, column: Column, mark: str = "") -> str:
    """A mean with its deviation; a dash if there is none, possibly because the metric is undefined."""
    if mean is None:
        return "-"
    text = "-" if mean.value is None else f"{mean.value:.{column.digits}f}{mark}"
    if mean.deviation is not None:
        text += f" ± {mean.deviation:.{column.digits}f}"
    return text + (f" ({mean.undefined} undefined)" if mean.undefined else "")


def published_metrics(table: Table, row: Published) -> dict[str, float]:
    """The row's values that belong in the table, by the names of its columns.

    For masks, papers print the pooled metrics, unless their names begin with "davis_".
    """
    names = {column.name for column in table.columns}
    bare = {name: value for name, value in row.metrics.items() if name in names and table.prefix != "davis_"}
    own = {name.removeprefix(table.prefix): v for name, v in row.metrics.items() if name.startswith(table.prefix)}
    return bare | {name: value for name, value in own.items() if name in names}


def markdown(rows: Sequence[Row], header: Row) -> str:
    """A Markdown table; the first column is left-aligned, the others right-aligned."""
    lines = [header, ("---", *("---:" for _ in header[1:])), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def outcome(record: Record) -> str:
    """A sequence's main metrics, or the reason why there are none."""
    if record.error is not None:
        return f"FAILED: {record.error}"
    found = {name: value for values in record.metrics.values() for name, value in values.items()}
    shown = [f"{name} {value:.3f}" for name in HEADLINES if (value := found.get(name)) is not None]
    return ", ".join(shown) or "no ground truth"
