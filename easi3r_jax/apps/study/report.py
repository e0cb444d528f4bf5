"""From figures of clips to tables: means with standard errors, choices on development clips, Markdown."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from easi3r_jax.apps.study.scores import ALL_LAYERS, CUES, FORMULA, MAPS, Score

Figures = Mapping[str, float | None]


class Mean(NamedTuple):
    """Mean over clips where a figure is defined, its standard error (None for one clip), and how many they are."""

    mean: float | None
    error: float | None
    count: int

    def __str__(self) -> str:
        if self.mean is None:
            return "–"
        return f"{self.mean:.3f}" + ("" if self.error is None else f" ± {self.error:.3f}")


def mean(values: Iterable[float | None]) -> Mean:
    """Undefined figures (None) do not count."""
    known = [v for v in values if v is not None]
    if not known:
        return Mean(None, None, 0)
    centre = math.fsum(known) / len(known)
    if len(known) == 1:
        return Mean(centre, None, 1)
    variance = math.fsum((v - centre) ** 2 for v in known) / (len(known) - 1)
    return Mean(centre, math.sqrt(variance / len(known)), len(known))


def over_clips(clips: Sequence[Mapping]) -> dict:
    """{key: figures} of every clip to {key: {figure: Mean}}."""
    if not clips:
        return {}
    return {
        key: {figure: mean(clip[key].get(figure) for clip in clips) for figure in figures}
        for key, figures in clips[0].items()
    }


def _of_attention(score: Score) -> bool:
    return score.source not in CUES


#: What is chosen on development clips: from which scores, and by which figure.
CHOICES: dict[str, tuple[Callable[[Score], bool], str]] = {
    "the method's score, clustered or not": (lambda s: s.source == ALL_LAYERS and s.map == FORMULA, "auc"),
    "a single map of all layers": (lambda s: s.source == ALL_LAYERS and s.map != FORMULA, "auc"),
    "the method's score of any layer": (lambda s: _of_attention(s) and s.map == FORMULA, "auc"),
    "any map of any layer": (_of_attention, "auc"),
    "any map of any layer, by AUC above still": (_of_attention, "gain"),
    "rigid, clustered or not": (lambda s: s.source == "rigid", "auc"),
    "match, clustered or not": (lambda s: s.source == "match", "auc"),
}


def choose(development: Mapping[Score, Mapping[str, Mean]]) -> dict[str, Score]:
    """Of each kind of score the one that is best on the mean of the development clips (the first of equals)."""
    chosen = {}
    for kind, (belongs, figure) in CHOICES.items():
        values = {score: means[figure].mean for score, means in development.items() if belongs(score)}
        known = {score: value for score, value in values.items() if value is not None}
        if known:
            chosen[kind] = max(known, key=lambda score: known[score])
    return chosen


# --- tables ---------------------------------------------------------------------------------------------------------


class Table(NamedTuple):
    """A titled table of strings."""

    title: str
    header: tuple[str, ...]
    rows: list[tuple[str, ...]]

    def markdown(self) -> str:
        lines = ["| " + " | ".join(row) + " |" for row in (self.header, *self.rows)]
        lines.insert(1, "|" + "---|" * len(self.header))
        return "\n".join([f"**{self.title}**", "", *lines, ""])


def score_tables(
    test: Mapping[Score, Mapping[str, Mean]], development: Mapping[Score, Mapping[str, Mean]], layers: Sequence[str]
) -> list[Table]:
    """The method's score and its parts, layers, and what was chosen."""

    def columns(score: Score) -> tuple[str, ...]:
        return tuple(str(test[score][figure]) for figure in ("auc", "still_auc", "gain", "iou", "share", "still_share"))

    measured = ("AUC", "AUC, still", "difference", "IoU", "marked", "marked, still")
    rows = [
        (Score(source, name, clustered).name, *columns(Score(source, name, clustered)))
        for source, name in (*((ALL_LAYERS, name) for name in MAPS), *((cue, "") for cue in CUES))
        for clustered in (False, True)
    ]
    tables = [Table("Scores of the first pass, test clips", ("score", *measured), rows)]
    for clustered in (False, True):
        title = (
            f"AUC (in brackets: still) by layer and map, {'clustered' if clustered else 'not clustered'}, test clips"
        )
        rows = []
        for layer in layers:
            figures = [test[Score(layer, name, clustered)] for name in MAPS]
            rows.append((layer, *(f"{_short(f['auc'])} ({_short(f['still_auc'])})" for f in figures)))
        tables.append(Table(title, ("layer", *MAPS), rows))
    rows = [
        (kind, score.name, str(development[score]["auc"]), *columns(score))
        for kind, score in choose(development).items()
    ]
    header = ("chosen from", "on development clips", "its AUC there", *measured)
    tables.append(Table("Chosen on development clips, measured on test clips", header, rows))
    return tables


#: Figures of a reconstruction that are tabled; results.json has all.
SYSTEM_FIGURES = {
    "ate": "ATE",
    "rpe_translation": "RPE",
    "rpe_rotation_deg": "RPE, degrees",
    "abs_rel": "AbsRel",
    "delta_1_25": "δ < 1.25",
    "score_auc": "AUC",
    "mask_iou": "mask IoU",
    "mask_share": "marked",
}


def system_table(systems: Mapping[str, Mapping[str, Mean]]) -> Table:
    """Whole reconstructions; rows come in the order measured."""
    rows = [
        (name, *(str(figures.get(figure, Mean(None, None, 0))) for figure in SYSTEM_FIGURES))
        for name, figures in systems.items()
    ]
    return Table("Reconstructions, test clips", ("network and motion", *SYSTEM_FIGURES.values()), rows)


def _short(value: Mean) -> str:
    return "–" if value.mean is None else f"{value.mean:.2f}"
