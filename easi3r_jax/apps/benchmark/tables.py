"""The rows as a table: plain text for the terminal, Markdown for the page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from easi3r_jax.apps.benchmark.timing import Row
from easi3r_jax.apps.progress import table

HEADER = (
    *("stage", "items", "programs", "compile s", "s", "ms/item", "GFLOP", "of product", "GB", "of copy", "peak GB"),
    *("product", "copy"),
)


def cells(name: str, row: Row) -> tuple[str, ...]:
    """The row's cells, in the order of `HEADER`; "" for what is not counted."""
    shares = [
        (f"{counted / 1e9:.1f}", f"{100 * counted / row.seconds / limit:.0f} %") if counted else ("", "")
        for counted, limit in ((row.flops, row.limits.product), (row.bytes, row.limits.copy))
    ]
    return (
        name,
        str(row.items),
        f"{row.programs - row.cached}",
        f"{row.compile_seconds:.1f}",
        _short(row.seconds),
        _short(1000 * row.seconds / row.items) if row.items > 1 else "",
        *shares[0],
        *shares[1],
        f"{max(row.peak_memory_bytes.values()) / 1e9:.2f}",
        f"{row.limits.product / 1e9:.0f}",
        f"{row.limits.copy / 1e9:.1f}",
    )


def _short(number: float) -> str:
    """Three digits."""
    return f"{number:.3g}" if number < 100 else f"{number:.0f}"


def as_text(rows: Mapping[str, Row]) -> str:
    """For the terminal."""
    return table([tuple(cell or "-" for cell in cells(*item)) for item in rows.items()], HEADER)


def as_markdown(rows: Mapping[str, Row]) -> str:
    """For a page; columns that no row fills are omitted."""
    lines = [cells(*item) for item in rows.items()]
    kept = [c for c in range(len(HEADER)) if any(line[c] for line in lines)]
    wanted = [HEADER, tuple("---" for _ in HEADER), *lines]
    return "\n".join("| " + " | ".join(line[c] for c in kept).replace("|  ", "| ") + " |" for line in wanted)


def remarks(found: Mapping[str, Any]) -> list[str]:
    """What was measured beside the rows, a sentence each."""
    lines = []
    if "statistics_cost" in found:
        cost = found["statistics_cost"]
        for name, kind in (("attention", "attention statistics"), ("gram", "attention and Gram statistics")):
            low, median, high = cost[name]["time_ratio_quartiles"]
            counted = 100 * cost[name]["counted_flops_share"]
            lines.append(
                f"decoder with {kind} / without: median {median:.3f}, quartiles {low:.3f} to {high:.3f} of "
                f"{cost['runs']} alternating runs (counted operations: +{counted:.3f} %)"
            )
    if "reconstruction" in found:
        full = found["reconstruction"]
        lines += [
            f"encodings per frame in a full reconstruction: {full['encodings_per_frame']:g}",
            f"compilations between pair batches: {full['compilations_between_pair_batches']}",
        ]
    return lines
