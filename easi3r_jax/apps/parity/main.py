"""Compares every stage with reference arrays of the published method; exits with status 1 if any differs.

    python -m experiments.parity --golden=tests/golden
    python -m experiments.parity --golden=my_golden/aggregation --json=parity.json

DIR is a folder of golden arrays or a folder of such folders; docs/parity.md describes the format. Everything runs in
float32 with exact matrix products.
"""

from __future__ import annotations

import pathlib
import zipfile

import jax

from easi3r_jax.apps import cli
from easi3r_jax.apps.environment import versions
from easi3r_jax.apps.parity.conversion import check_test_vectors
from easi3r_jax.apps.parity.folders import find_checks, missing_files
from easi3r_jax.apps.parity.report import Row
from easi3r_jax.apps.progress import table
from easi3r_jax.core.errors import InputError, UserError
from easi3r_jax.io.export import write_json

FLAGS = cli.Flags(__doc__, cached=True)
_WHAT = FLAGS.group("What is compared")
GOLDEN = _WHAT.string("golden", "tests/golden", "Folder of golden arrays, or of such folders.")
JSON = _WHAT.output_file("json", "Also write all rows to this file.")
_HOW = FLAGS.group("How it is shown")
ALL = _HOW.boolean("all", True, "Print every row; --noall prints only those that exceed their tolerance.")


def main() -> None:
    jax.config.update("jax_default_matmul_precision", "highest")
    root = pathlib.Path(GOLDEN.value).expanduser()
    checks = find_checks(root)
    if not checks:
        raise InputError(f"No golden folder at {root}: see docs/parity.md for the format.")
    rows = []
    for row in check_test_vectors():
        show(row)
        rows.append(row)
    for folder, check in checks:
        before = len(rows)
        try:
            for row in check(folder):
                show(row)
                rows.append(row)
        except (KeyError, ValueError, OSError, zipfile.BadZipFile) as error:
            raise InputError(
                f"{folder} is damaged or not of the documented format: {error} (--debug shows where)."
            ) from error
        if len(rows) == before:
            raise InputError(f"{folder} is a golden folder, but the arrays that it lists are missing.")
    if JSON.value:
        record = {"versions": versions(), "rows": [{**vars(r), "passed": r.passed} for r in rows]}
        write_json(JSON.value, record)
    print(summary(rows))
    missing = [name for folder, _ in checks for name in missing_files(folder)]
    if missing:
        print(f"  listed but missing, so not compared: {', '.join(missing)}")
    failed = sum(not r.passed for r in rows)
    if failed:
        raise UserError(f"{failed} of {len(rows)} comparisons exceed their tolerance.")


def show(row: Row) -> None:
    """Prints a comparison as soon as it is done."""
    if ALL.value or not row.passed:
        print(
            f"{'ok  ' if row.passed else 'FAIL'} {row.stage:<40} {row.name:<48} "
            f"abs {row.max_abs:9.2e}  error {row.error:9.2e}  tolerance {row.tolerance:.0e}",
            flush=True,
        )


def summary(rows: list[Row]) -> str:
    """A line per stage: the number of comparisons, and the one closest to its tolerance."""
    lines = []
    for stage in dict.fromkeys(r.stage for r in rows):
        mine = [r for r in rows if r.stage == stage]
        worst = max(mine, key=_tolerance_used)
        lines.append(
            (
                stage,
                str(len(mine)),
                worst.name,
                f"{worst.max_abs:.2e}",
                f"{worst.error:.2e}",
                f"{worst.tolerance:.0e}",
                "ok" if all(r.passed for r in mine) else "FAIL",
            )
        )
    return table(lines, ("stage", "arrays", "closest to its tolerance", "max abs", "error", "tolerance", ""))


def _tolerance_used(row: Row) -> float:
    if row.error != row.error or (row.tolerance == 0 and row.error > 0):
        return float("inf")
    return row.error / row.tolerance if row.tolerance else 0.0
