"""`report.html`: the pictures in a folder and the records of a result, as one page."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from easi3r_jax.apps.progress import TITLES
from easi3r_jax.core.types import Reconstruction
from easi3r_jax.io.pictures.page import Media, Part, Row, Table, Text, page

#: Metrics that are printed; metrics.json has all of them.
METRICS = {
    "ate": "camera path, ATE (units of the truth)",
    "rpe_translation": "camera path, RPE translation",
    "rpe_rotation_deg": "camera path, RPE rotation (degrees)",
    "focal_relative_error": "focal length, relative error",
    "abs_rel": "depth, AbsRel",
    "delta_1_25": "depth, fraction within 1.25",
    "score_auc": "motion score, ROC-AUC (0.5: chance)",
    "mask_iou": "motion mask, IoU",
    "mask_share": "fraction of pixels marked as dynamic",
}

#: Further metrics, for the page.
_MORE_METRICS = {
    "sq_rel": "depth, SqRel (units of the truth)",
    "depth_rmse": "depth, RMSE (units of the truth)",
    "log_rmse": "depth, RMSE of the logarithm",
    "delta_1_25_2": "depth, fraction within 1.25²",
    "delta_1_25_3": "depth, fraction within 1.25³",
    "abs_rel_scale_shift": "depth, AbsRel after scale and shift",
    "delta_1_25_scale_shift": "depth, fraction within 1.25 after scale and shift",
    "mask_j_mean": "motion mask, J mean (DAVIS)",
    "mask_j_recall": "motion mask, J recall",
    "mask_j_decay": "motion mask, J decay",
    "mask_f_mean": "motion mask, F mean (DAVIS)",
    "mask_f_recall": "motion mask, F recall",
    "mask_f_decay": "motion mask, F decay",
}

# Bytes of videos in a page: larger pages are slow, and Firefox accepts no data: URL above 32 MB, in base64 (MDN,
# "data: URLs").
_MAX_VIDEO_BYTES = 23_900_000

_CAPTIONS = {
    "panel": "Frames, depth, score and masks over time.",
    "attention": "Mean and standard deviation of the cross-attention over the pairs in which a frame is the source, "
    "and over those in which it is the reference (in whose camera the points are), and the dynamic score",
    "depth": "Depth over time: near is bright, equal ratios are equal colour steps, one scale for the clip.",
    "masks": "Dynamic regions (red)",
    "image": "Frames with their numbers.",
    "losses": "Loss of the global alignment by iteration: the confidence-weighted distance between the pairs' points "
    "and the scene's, and the other terms.",
    "trajectory": "The camera's path from above, from violet (first frame) to yellow (last).",
    "score": "Distribution of the dynamic score over all pixels",
}
#: Descriptions of the mask sources (`PipelineConfig.masks`).
_SOURCES = {
    "motion": "the score above its threshold",
    "flow": "optical flow that the cameras do not explain",
    "given": "user-supplied masks",
}


_UNITS = {
    "metres": "Lengths are in metres, as the network predicts them.",
    "known poses": "Lengths are in the unit of the known poses.",
    "arbitrary": "World units are arbitrary unless known poses give them.",
}


def report_page(
    saved: Reconstruction,
    name: str,
    folder: pathlib.Path,
    left_out: Mapping[str, str],
    values: Mapping[str, Any],
    times: Mapping[str, Any],
) -> str:
    """`report.html`: the pictures in a folder, and the result's records.

    Args:
      saved: the result.
      name: title of the page.
      folder: of the pictures; missing ones are omitted.
      left_out: what the result has no data for, and why.
      values: `metrics.json`.
      times: `timings.json`.
    """

    def media(file: str, text: str) -> list[Media]:
        kind = {"mp4": "video/mp4", "png": "image/png", "jpg": "image/jpeg"}[file.rsplit(".", 1)[1]]
        path = folder / file
        return [Media(kind, path.read_bytes(), text)] if path.is_file() else []

    texts = _captions(saved.record)
    # The panel shows depth and masks: their own videos would only enlarge the page.
    videos: list[Part] = []
    remaining, beside = _MAX_VIDEO_BYTES, []
    for film in ("panel", "attention"):
        for video in media(f"{film}.mp4", texts[film]):
            if len(video.data) <= remaining:
                videos.append(video)
                remaining -= len(video.data)
            else:
                beside.append(f"{film}.mp4")
    if beside:
        videos.append(Text(f"Stored beside this page, which would otherwise be too large: {', '.join(beside)}."))
    overview = media("overview.jpg", "Some frames with all of their maps.")
    sheets = [m for s in ("image", "depth", "masks") for m in media(f"contact_{s}.jpg", texts[s])]
    plots = [m for s in ("trajectory", "losses", "score") for m in media(f"plot_{s}.png", texts[s])]
    sections: list[tuple[str, list[Part]]] = [
        ("Videos", videos),
        ("Overview", list(overview)),
        ("Plots", [Row(plots)]),
        ("Against ground truth", _metrics(values)),
        ("Frames", list(sheets)),
        ("Time", _timings(times)),
        ("Weights and versions", _versions(saved.record)),
        ("Options", _options(saved.record)),
        ("Omitted", [Table(("part", "reason"), [*left_out.items()])] if left_out else []),
    ]
    count, height, width = saved.scene.depth.shape
    lead = [f"{count} frames of {width}x{height}, {saved.frames.time[-1] - saved.frames.time[0]:.2f} s."]
    shown = [(heading, parts) for heading, parts in sections if parts]
    return page(name, lead, shown, f"Written by easi3r_jax. {_UNITS[saved.unit]}")


def _captions(config: Mapping[str, Any]) -> dict[str, str]:
    """`_CAPTIONS`, with the sources of this result's score and masks, as far as they are recorded."""
    pipeline = config.get("pipeline")
    pipeline = pipeline if isinstance(pipeline, dict) else {}
    cue, sources = pipeline.get("cue", pipeline.get("motion")), pipeline.get("masks")  # older results say "motion"
    attention = score = masks = ""
    if isinstance(cue, str):
        attention = (
            " computed from them"
            if cue in ("attention", "formula")
            else f", which comes from another cue: --motion={cue}"
        )
    if isinstance(sources, list):
        known = [text for source, text in _SOURCES.items() if source in sources]
        masks = f": {' or '.join(known)}" if known else ": none, since no masks were requested (--masks=none)"
        score = "" if "motion" in sources else "; masks are not computed from it"
    added = {"attention": attention, "masks": masks, "score": score}
    return _CAPTIONS | {name: f"{_CAPTIONS[name]}{text}." for name, text in added.items()}


def _metrics(record: Mapping[str, Any]) -> list[Part]:
    columns = {name: values for name, values in record.items() if isinstance(values, dict)}
    alone = {name: value for name, value in record.items() if name not in columns}  # from evaluate
    columns |= {"result": alone} if alone else {}
    if not columns:
        return []
    known: dict[str, None] = {key: None for values in columns.values() for key in values}
    titled = METRICS | _MORE_METRICS
    titles = {key: text for key, text in titled.items() if key in known} | {k: k for k in known if k not in titled}
    rows = [(text, *(_number(values.get(key)) for values in columns.values())) for key, text in titles.items()]
    return [Table(("", *columns), rows, numbers=True)]


def _timings(record: Mapping[str, Any]) -> list[Part]:
    stages, memory = record.get("stages"), record.get("peak_memory_bytes")
    if not isinstance(stages, dict):
        return [Text("The result does not record the time of its stages.")]
    rows = [
        (TITLES.get(str(stage), str(stage)), str(values.get("items", "")), _number(values.get("seconds"), digits=1))
        for stage, values in stages.items()
        if isinstance(values, dict)
    ]
    rows.append(("total before the pictures, compilation included", "", _number(record.get("seconds"), digits=1)))
    parts: list[Part] = [Table(("stage", "items", "seconds"), rows, numbers=True)]
    if isinstance(memory, dict):
        sizes = [f"{where} {_number(size, scale=1e-9, digits=2)} GB" for where, size in memory.items()]
        parts.append(Text(f"Peak memory: {', '.join(sizes)}."))
    return parts


def _versions(config: Mapping[str, Any]) -> list[Part]:
    rows: list[tuple[str, str]] = []
    for what, called in (("checkpoint", "checkpoint"), ("refiner", "refiner"), ("flow", "optical flow")):
        weights = config.get(what)
        if isinstance(weights, dict):
            titles = {"source_name": called, "folder": called, "source_sha256": "its SHA-256", "licence": "its licence"}
            rows += [(title, _plain(weights[key])) for key, title in titles.items() if key in weights]
    if "precision" in config:
        rows.append(("precision", _plain(config["precision"])))
    elif "dtype" in config:  # older results
        rows.append(("dtype of layers", _plain(config["dtype"])))
    versions = config.get("versions")
    if isinstance(versions, dict):
        rows += [(name, _plain(version)) for name, version in versions.items()]
    note = Text(
        "Released DUSt3R and MonST3R weights are CC BY-NC-SA 4.0 (attribution, non-commercial, share alike), before "
        "and after conversion."
    )
    checkpoint = config.get("checkpoint")
    is_small = isinstance(checkpoint, dict) and checkpoint.get("source_name") == "embedded"
    small = [Text("The embedded network is a small one for trials: its dynamic regions are not reliable.")]
    return [Table(("", ""), rows), *(small if is_small else []), note] if rows else []


def _options(config: Mapping[str, Any]) -> list[Part]:
    options, changed = config.get("options"), config.get("changed")
    if not isinstance(options, dict) or not options:
        return [Text("The result does not record its options.")]
    is_known = isinstance(changed, list)
    names = sorted(options, key=lambda name: not (is_known and name in changed))
    marked = frozenset(i for i, name in enumerate(names) if is_known and name in changed)
    note = (
        f"{len(marked)} differ from their defaults; they are marked and come first."
        if is_known
        else "Defaults were not recorded."
    )
    return [Text(note), Table(("option", "value"), [(f"--{n}", _plain(options[n])) for n in names], marked)]


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _number(value: Any, *, digits: int = 4, scale: float = 1.0) -> str:
    """A number from a file that may contain anything; integers may exceed the range of floats."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e15
    return f"{scale * value:.{digits}f}" if is_number else "-"
