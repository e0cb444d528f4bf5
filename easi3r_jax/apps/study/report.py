"""From metrics of clips to tables: means with standard errors, choices on development clips, Markdown."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from easi3r_jax.apps.study.scores import ALL_LAYERS, CUES, FORMULA, MAPS, READOUT, Score


class Mean(NamedTuple):
    """Mean over the clips where a metric is defined, its standard error (None for one clip), and their number."""

    mean: float | None
    error: float | None
    count: int

    def __str__(self) -> str:
        if self.mean is None:
            return "–"
        return f"{self.mean:.3f}" + ("" if self.error is None else f" ± {self.error:.3f}")


def mean(values: Iterable[float | None]) -> Mean:
    """Mean and standard error; undefined values (None) are ignored."""
    known = [v for v in values if v is not None]
    if not known:
        return Mean(None, None, 0)
    centre = math.fsum(known) / len(known)
    if len(known) == 1:
        return Mean(centre, None, 1)
    variance = math.fsum((v - centre) ** 2 for v in known) / (len(known) - 1)
    return Mean(centre, math.sqrt(variance / len(known)), len(known))


def over_clips(clips: Sequence[Mapping]) -> dict:
    """{key: metrics} of every clip to {key: {metric: Mean}}."""
    if not clips:
        return {}
    return {
        key: {metric: mean(clip[key].get(metric) for clip in clips) for metric in values}
        for key, values in clips[0].items()
    }


def differences(clips: Sequence[Mapping[str, Mapping[str, float | None]]]) -> dict[str, dict[str, Mean]]:
    """Of every row but the first, metrics minus the first row's, clip by clip; twins' rows minus the twins' first.

    Paired, since clips differ far more than the rows of one clip do.
    """
    if not clips:
        return {}
    found = {}
    still = ", still"
    first = {name.endswith(still): name for name in reversed(list(clips[0]))}
    for name, values in clips[0].items():
        base = first[name.endswith(still)]
        if name == base:
            continue
        found[name] = {
            metric: mean(_minus(clip[name].get(metric), clip[base].get(metric)) for clip in clips) for metric in values
        }
    return found


def _minus(value: float | None, other: float | None) -> float | None:
    return None if value is None or other is None else value - other


def _of_attention(score: Score) -> bool:
    return score.source not in CUES


#: What is chosen on development clips: from which scores, and by which metric.
CHOICES: dict[str, tuple[Callable[[Score], bool], str]] = {
    "the method's score, clustered or not": (lambda s: s.source == ALL_LAYERS and s.map == FORMULA, "auc"),
    "a single map of all layers": (lambda s: s.source == ALL_LAYERS and s.map != FORMULA, "auc"),
    "the method's score of any layer": (lambda s: _of_attention(s) and s.map == FORMULA, "auc"),
    "any map of any layer": (_of_attention, "auc"),
    "any map of any layer, by AUC above still": (_of_attention, "gain"),
    "read-out, clustered or not": (lambda s: s.source == READOUT, "auc"),
    "gram, clustered or not": (lambda s: s.source == "gram", "auc"),
    "rigid, clustered or not": (lambda s: s.source == "rigid", "auc"),
    "match, clustered or not": (lambda s: s.source == "match", "auc"),
}


def choose(development: Mapping[Score, Mapping[str, Mean]]) -> dict[str, Score]:
    """The best score of each kind by its mean over the development clips (the first in a tie)."""
    chosen = {}
    for kind, (belongs, metric) in CHOICES.items():
        values = {score: means[metric].mean for score, means in development.items() if belongs(score)}
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


#: Metrics of a score by their headings: what it ranks, and the masks it gives. Two tables, so that each stays narrow.
_AUC = {"auc": "AUC", "still_auc": "AUC, still", "gain": "difference"}
_MASK = {"iou": "IoU", "share": "marked", "still_share": "marked, still"}


def score_tables(
    test: Mapping[Score, Mapping[str, Mean]], development: Mapping[Score, Mapping[str, Mean]], layers: Sequence[str]
) -> list[Table]:
    """The method's score and its parts, single layers, and the chosen scores."""
    tables = []
    listed = [
        Score(source, name, clustered)
        for source, name in (*((ALL_LAYERS, name) for name in MAPS), *((cue, "") for cue in CUES))
        for clustered in (False, True)
        if Score(source, name, clustered) in test  # not every network has a read-out
    ]
    for what, columns in (("AUC", _AUC), ("masks", _MASK)):
        rows = [(score.name, *(str(test[score][metric]) for metric in columns)) for score in listed]
        tables.append(Table(f"Scores of the first pass, test clips: {what}", ("score", *columns.values()), rows))
    for clustered in (False, True):
        title = (
            f"AUC (in brackets: still) by map and layer, {'clustered' if clustered else 'not clustered'}, test clips"
        )
        rows = []
        for name in MAPS:
            values = [test[Score(layer, name, clustered)] for layer in layers]
            rows.append((name, *(f"{_short(v['auc'])} ({_short(v['still_auc'])})" for v in values)))
        tables.append(Table(title, ("map", *layers), rows))
    chosen = choose(development)
    rows = [(kind, score.name, str(development[score]["auc"])) for kind, score in chosen.items()]
    tables.append(Table("Chosen on development clips", ("chosen from", "score", "its AUC there"), rows))
    for what, columns in (("AUC", _AUC), ("masks", _MASK)):
        rows = [(kind, *(str(test[score][metric]) for metric in columns)) for kind, score in chosen.items()]
        tables.append(Table(f"The chosen scores, test clips: {what}", ("chosen from", *columns.values()), rows))
    return tables


#: Metrics of a reconstruction in the tables; results.json has all.
_GEOMETRY = {
    "ate": "ATE",
    "rpe_translation": "RPE",
    "rpe_rotation_deg": "RPE, degrees",
    "abs_rel": "AbsRel",
    "delta_1_25": "δ < 1.25",
}
_MOTION = {"score_auc": "AUC", "mask_iou": "mask IoU", "mask_share": "marked"}


def system_tables(systems: Mapping[str, Mapping[str, Mean]], paired: Mapping[str, Mapping[str, Mean]]) -> list[Table]:
    """Full reconstructions: geometry, its `differences` to the first row, and masks. Rows keep their order."""
    tables = []
    first = next(iter(systems), "")
    for what, columns, found in (
        ("geometry", _GEOMETRY, systems),
        (f"geometry, clip by clip minus {first} (twins: minus its twin)", _GEOMETRY, paired),
        ("motion", _MOTION, systems),
    ):
        rows = [
            (name, *(str(means.get(metric, Mean(None, None, 0))) for metric in columns))
            for name, means in found.items()
            if any(metric in means for metric in columns)
        ]
        if rows:
            tables.append(Table(f"Reconstructions, test clips: {what}", ("system", *columns.values()), rows))
    return tables


def _short(value: Mean) -> str:
    return "–" if value.mean is None else f"{value.mean:.2f}"
