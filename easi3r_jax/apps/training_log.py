"""Logs of a training run: log.csv, TensorBoard, a progress bar, pictures."""

from __future__ import annotations

import csv
import pathlib
import sys
from collections.abc import Mapping

import jax
import numpy as np
from PIL import Image
from tensorboardX import SummaryWriter
from tqdm import tqdm

from easi3r_jax.core.atomic import atomic_file
from easi3r_jax.core.errors import UserError
from easi3r_jax.core.types import PairPredictions
from easi3r_jax.models import DUSt3R
from easi3r_jax.training.batch import Targets, ViewPairs, targets_of
from easi3r_jax.training.objective import point_errors, predict


class NotFiniteError(UserError):
    """Training has diverged."""


class TrainingLog:
    """Writes `log.csv`, `validation.csv` and `tensorboard/` in a run's folder, and draws the progress bar.

    A resumed run continues the tables: lines of steps after its state are dropped.
    """

    def __init__(self, output: pathlib.Path, first_step: int, total: int, samples_per_step: int):
        self._output, self._samples = output, samples_per_step
        self._pending: list[Mapping[str, jax.Array]] = []
        for name in ("log.csv", "validation.csv"):
            _drop_after(output / name, first_step)
        self._board = SummaryWriter(str(output / "tensorboard"), purge_step=first_step + 1)
        self._bar = tqdm(
            total=total,
            initial=first_step,
            desc="training",
            file=sys.stderr,
            disable=None,
            bar_format="{desc} {bar:16} {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]",
        )

    def add(self, terms: Mapping[str, jax.Array]) -> None:
        """Keeps the terms of a step for the next line."""
        self._pending.append(terms)

    def write_line(self, step: int) -> None:
        """Adds a line to log.csv and the curves: the means over the steps since the last one, if there are any.

        Raises:
          NotFiniteError: a mean is not finite.
        """
        if not self._pending:
            return
        steps = jax.device_get(self._pending)
        means = {name: float(np.mean([terms[name] for terms in steps])) for name in steps[0]}
        self._pending.clear()
        if wrong := sorted(name for name, value in means.items() if not np.isfinite(value)):
            raise NotFiniteError(f"Not finite at step {step}: {', '.join(wrong)}.")
        row = {"step": step, "samples": step * self._samples, **dict(sorted(means.items()))}
        _append(self._output / "log.csv", row)
        for name, value in means.items():
            self._board.add_scalar(f"train/{name}", value, step)
        self._bar.set_postfix_str(f"loss {means['loss']:.3f}, error {means['error_2']:.3f}", refresh=False)
        self._bar.update(step - self._bar.n)

    def validated(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds a line to validation.csv and the curves."""
        _append(self._output / "validation.csv", {"step": step, "samples": step * self._samples, **metrics})
        for name, value in metrics.items():
            self._board.add_scalar(f"held_out/{name}", value, step)
        self._board.flush()

    def close(self) -> None:
        self._bar.close()
        self._board.close()


def _append(path: pathlib.Path, row: Mapping[str, float]) -> None:
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file)
        if new:
            writer.writerow(row)
        writer.writerow([f"{v:.6g}" if isinstance(v, float) else v for v in row.values()])


def _drop_after(path: pathlib.Path, step: int) -> None:
    if not path.exists():
        return
    with path.open(newline="") as file:
        header, *rows = list(csv.reader(file)) or [[]]
    kept = [row for row in rows if row and row[0].isdigit() and int(row[0]) <= step]
    with atomic_file(path) as partial, partial.open("w", newline="") as file:
        csv.writer(file).writerows([header, *kept])


@jax.jit
def _predict_errors(model: DUSt3R, pairs: ViewPairs) -> tuple[PairPredictions, Targets, jax.Array, jax.Array]:
    predicted, targets = predict(model, pairs.rgb)[0], targets_of(pairs)
    return predicted, targets, *point_errors(predicted, targets)[:2]


def preview(path: pathlib.Path, model: DUSt3R, pairs: ViewPairs, count: int = 6) -> None:
    """Draws pairs: both images; true and predicted depth and confidence of view 1; point errors of both views.

    Errors are distances of normalised points, in view 1's camera: black 0, white half of the scene's mean distance.
    Grey: unknown depth.
    """
    count = min(count, len(pairs.rgb))
    pairs = jax.tree.map(lambda a: a[:count], pairs)
    predicted, targets, *errors = _predict_errors(model, pairs)
    depth, true = (np.array(p.points_i[:count, ..., 2]) for p in (predicted, targets))
    known = np.stack([np.asarray(valid[:count]) for valid in (targets.valid_i, targets.valid_j)])
    rows = []
    for n in range(count):
        here = known[0, n]
        if not here.any():
            here[0, 0] = true[n, 0, 0] = 1  # nothing to scale by, but still draw a picture
        depth[n] *= np.median(true[n][here] / np.maximum(depth[n][here], 1e-6))
        span = (true[n][here].min(), true[n][here].max())
        cells = [
            np.asarray(pairs.rgb[n, 0]),
            np.asarray(pairs.rgb[n, 1]),
            np.where(here[..., None], _coloured(true[n], *span), np.uint8(128)),
            _coloured(depth[n], *span),
            _coloured(np.log(np.asarray(predicted.confidence_i[n])), 0, 3, "viridis"),
        ]
        for of_view, error in zip(known[:, n], errors, strict=True):
            cells.append(np.where(of_view[..., None], _coloured(np.asarray(error[n]), 0, 0.5, "gray"), np.uint8(128)))
        rows.append(np.concatenate(cells, axis=1))
    picture = np.concatenate(rows)
    larger = Image.fromarray(picture).resize((picture.shape[1] * 2, picture.shape[0] * 2), Image.Resampling.NEAREST)
    with atomic_file(path) as partial:
        larger.save(partial, format="png")


def _coloured(values: np.ndarray, low: float, high: float, name: str = "turbo") -> np.ndarray:
    from matplotlib import colormaps

    scaled = np.clip((values - low) / max(high - low, 1e-6), 0, 1)
    return (colormaps[name](scaled)[..., :3] * 255).astype(np.uint8)
