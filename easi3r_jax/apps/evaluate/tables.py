"""The papers' tables: which figures stand in them, and how they are written."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from easi3r_jax.apps.evaluate.summary import Mean, TaskSummary
from easi3r_jax.evaluation.datasets import Published, TestSet


@dataclasses.dataclass(frozen=True)
class Column:
    """A figure of a table.

    Attributes:
      name: of the figure.
      title: heads the column.
      digits: after the point.
    """

    name: str
    title: str
    digits: int = 3


@dataclasses.dataclass(frozen=True)
class Table:
    """What stands side by side.

    Attributes:
      task: of the data set's.
      title: says the protocol; of depth, `title_of` adds the data set's.
      columns: figures.
      prefix: of our figures' names, which published rows leave out.
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
        "camera paths, every sequence alike",
        (
            Column("ate", "ATE", 4),
            Column("rpe_translation", "RPE transl.", 4),
            Column("rpe_rotation_deg", "RPE rot. (deg)"),
            Column("focal_relative_error", "focal error"),
        ),
    ),
    Table(
        "depth",
        "depth, sequences by their judged pixels",
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
        "points, every sequence alike",
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
    fitted = f"fitted {'frame by frame' if options.per_frame else 'once a sequence'} ({options.alignment})"
    limit = "" if options.max_depth is None else f", true depth below {options.max_depth:g}"
    return f"{table.title}; {fitted}{limit}"


def lay_out(
    table: Table, test_set: TestSet, summary: TaskSummary, *, allow_missing: bool
) -> tuple[list[Column], list[Row]]:
    """The columns that anything is known of, and a row for us and for every paper.

    A row of ours has figures where all sequences are in the mean, or with `allow_missing`, and then a star.
    """
    papers = [(row, published_figures(table, row)) for row in test_set.published if row.task == table.task]
    papers = [(row, figures) for row, figures in papers if figures]
    ours = {column.name: summary.figures.get(table.prefix + column.name) for column in table.columns}
    known = [c for c in table.columns if ours[c.name] is not None or any(c.name in figures for _, figures in papers)]
    columns = known or list(table.columns)
    count = f"{summary.done}/{summary.expected}"
    shown = summary.whole or (allow_missing and summary.done > 0)
    mark = "" if summary.whole else "*"
    rows = [
        (
            "ours" if shown else "ours: INCOMPLETE",
            count,
            *(written(ours[c.name], c, mark) if shown else "-" for c in columns),
        )
    ]
    for row, figures in papers:
        cells = (f"{figures[c.name]:.{c.digits}f}" if c.name in figures else "-" for c in columns)
        rows.append((row.method, "", *cells))
    return columns, rows


def written(mean: Mean | None, column: Column, mark: str = "") -> str:
    """A mean with its deviation; a dash where there is none, which may be for want of a defined figure."""
    if mean is None:
        return "-"
    text = "-" if mean.value is None else f"{mean.value:.{column.digits}f}{mark}"
    if mean.deviation is not None:
        text += f" ± {mean.deviation:.{column.digits}f}"
    return text + (f" ({mean.undefined} undefined)" if mean.undefined else "")


def published_figures(table: Table, row: Published) -> dict[str, float]:
    """The row's figures that belong into the table, by the names of its columns.

    Of masks, papers print the pooled figures, unless their names say "davis_".
    """
    names = {column.name for column in table.columns}
    bare = {name: value for name, value in row.metrics.items() if name in names and table.prefix != "davis_"}
    own = {name.removeprefix(table.prefix): v for name, v in row.metrics.items() if name.startswith(table.prefix)}
    return bare | {name: value for name, value in own.items() if name in names}


def markdown(rows: Sequence[Row], header: Row) -> str:
    """A table in Markdown; the first column flush left, the others flush right."""
    lines = [header, ("---", *("---:" for _ in header[1:])), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
