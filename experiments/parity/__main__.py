"""Compares every stage with reference arrays of the published method; exits with status 1 where one is off.

    python -m experiments.parity --golden=tests/golden
    python -m experiments.parity --golden=my_golden/aggregation --json=parity.json

DIR is a folder of golden arrays or a folder of such folders; docs/parity.md describes the format. Everything runs in
float32 with exact matrix products.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable, Iterator

import jax

from easi3r_jax.errors import InputError, UserError
from easi3r_jax.export import write_json
from experiments import cli
from experiments.environment import versions
from experiments.parity import alignment, conversion, inputs, motion, network
from experiments.parity.report import Row
from experiments.progress import table

FLAGS = cli.Flags(__doc__)
_WHAT = FLAGS.group("What is compared")
GOLDEN = _WHAT.string("golden", "tests/golden", "Folder of golden arrays, or of such folders.")
JSON = _WHAT.string("json", "", "Also write every row here.")
_HOW = FLAGS.group("How it is shown")
ALL = _HOW.boolean("all", True, "Print every row; --noall prints only those that exceed their tolerance.")

Check = Callable[[pathlib.Path], Iterator[Row]]


def main() -> None:
    jax.config.update("jax_default_matmul_precision", "highest")
    root = pathlib.Path(GOLDEN.value)
    checks = list(find_checks(root))
    if not checks:
        raise InputError(f"No golden folder at {root}: see docs/parity.md for what one looks like.")
    rows: list[Row] = []
    for source in (conversion.check_test_vectors(), *(check(folder) for folder, check in checks)):
        for row in source:
            rows.append(row)
            if ALL.value or not row.passed:
                print(
                    f"{'ok  ' if row.passed else 'FAIL'} {row.stage:<40} {row.name:<48} "
                    f"abs {row.max_abs:9.2e}  error {row.error:9.2e}  tolerance {row.tolerance:.0e}",
                    flush=True,
                )
    if JSON.value:
        record = {"versions": versions(), "rows": [{**vars(r), "passed": r.passed} for r in rows]}
        write_json(JSON.value, record)
    print(summary(rows))
    failed = sum(not r.passed for r in rows)
    if failed:
        raise UserError(f"{failed} of {len(rows)} comparisons exceed their tolerance.")


def find_checks(root: pathlib.Path) -> Iterator[tuple[pathlib.Path, Check]]:
    """Every golden folder at or below `root`, with what checks it."""
    for folder in [root, *sorted(p for p in root.glob("*") if p.is_dir())]:
        check = _check_for(folder)
        if check is not None:
            yield folder, check


def _check_for(folder: pathlib.Path) -> Check | None:
    has = {
        name: (folder / name).is_file()
        for name in ("config.json", "index.json", "pairs.json", "predictions.npz", "input_frames.npz")
    }
    settings = json.loads((folder / "config.json").read_text()) if has["config.json"] else {}
    index = json.loads((folder / "index.json").read_text()) if has["index.json"] else {}
    if has["predictions.npz"] and "cases" in settings:
        return alignment.check_folder
    if has["input_frames.npz"] and "graphs" in settings:
        return motion.check_folder
    if "files" in settings and "model" in settings:
        return network.check_folder
    if "model_string" in index:
        return conversion.check_checkpoints
    if index and (folder / "inputs").is_dir():
        return inputs.check_frames
    if has["pairs.json"]:
        return inputs.check_pairs
    if any(conversion.is_manifest(p) for p in folder.glob("*.json")):
        return conversion.check_manifests
    return None


def summary(rows: list[Row]) -> str:
    """A line per stage: how many comparisons, the one closest to its tolerance."""
    lines = []
    for stage in dict.fromkeys(r.stage for r in rows):
        mine = [r for r in rows if r.stage == stage]
        worst = max(mine, key=_strain)
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


def _strain(row: Row) -> float:
    if row.error != row.error or (row.tolerance == 0 and row.error > 0):
        return float("inf")
    return row.error / row.tolerance if row.tolerance else 0.0


if __name__ == "__main__":
    FLAGS.run(main)
