"""Pictures, videos and the report of a result, shared by reconstruct and the program `report`."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from easi3r_jax.apps import cli
from easi3r_jax.apps.environment import peak_memory_bytes
from easi3r_jax.apps.progress import TITLES, Stages
from easi3r_jax.core.errors import InputError
from easi3r_jax.core.geometry.procrustes import register_similarity
from easi3r_jax.core.types import Progress, Reconstruction
from easi3r_jax.evaluation import metrics
from easi3r_jax.io.export.jsonfile import read_object, write_json
from easi3r_jax.io.pictures.gallery import MARKER, Gallery, gallery_files
from easi3r_jax.io.pictures.movies import ensure_encoder
from easi3r_jax.io.pictures.page import Media, Part, Row, Table, Text, page
from easi3r_jax.io.sequences import find_sequence, load_arrays

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


class PictureFlags:
    """The flags `--videos`, `--gif` and `--report`, added to a group of a program's flags.

    Args:
      group: of the program's flags.
      wanted: whether videos and the report are on by default.
    """

    def __init__(self, group: cli.Group, *, wanted: bool = False):
        self._videos = group.boolean(
            "videos", wanted, "Write panel.mp4, depth.mp4, masks.mp4 and attention.mp4, and embed some in the report."
        )
        self._gif = group.boolean("gif", False, "Also write them as GIFs (large files).")
        self._report = group.boolean(
            "report", wanted, "Write report.html, one page with pictures, plots, metrics, options and timings."
        )

    def any(self) -> bool:
        """Whether anything is requested."""
        return self._videos.value or self._gif.value or self._report.value

    def check(self) -> None:
        """Checks before the work that videos can be encoded.

        Raises:
          OutputError: there is no encoder.
        """
        if self._videos.value:
            ensure_encoder()

    def write(
        self, saved: Reconstruction, output: pathlib.Path, *, name: str, ground_truth: str = "", progress: Progress
    ) -> list[str]:
        """Writes the requested files atomically into a folder, beside its other files.

        Args:
          saved: the result.
          output: the folder.
          name: title of the report.
          ground_truth: an npz file; "": that of the clip that config.json names, if it still exists.
          progress: called with progress.

        Returns:
          lines on what was written, and on what the result has no data for.

        Raises:
          InputError: requested ground truth that is not available; a damaged file in the result.
          OutputError: something cannot be written.
        """
        if not self.any():
            return []
        centres, why_not = true_centres(saved, ground_truth)
        gallery = Gallery(
            saved.scene,
            saved.frames.time,
            motion=saved.motion,
            threshold=saved.threshold,
            losses=saved.losses,
            true_centres=centres,
        )
        left_out = gallery.omitted | ({"true path": why_not} if why_not else {})
        page_wanted = self._report.value
        values, times = (read_object(saved.saved_folder() / file) for file in ("metrics.json", "timings.json"))
        if page_wanted and not values:
            left_out["metrics"] = "the result was not compared with ground truth: it has no metrics.json"
        steps = gallery.writers(videos=self._videos.value, gif=self._gif.value, stills=page_wanted)
        with gallery_files(output) as new:
            if page_wanted:
                steps["report.html"] = lambda path: path.write_text(
                    report_page(saved, name, new, left_out, values, times), encoding="utf-8"
                )
            for done, (file, write) in enumerate(steps.items()):
                progress("pictures", done, len(steps) + 1, file)
                write(new / file)
            progress("pictures", len(steps), len(steps) + 1, MARKER)
            sizes = {path.name: path.stat().st_size for path in sorted(new.iterdir())}
            record = {"scene": saved.folder, "files": list(sizes), "left_out": left_out}
            write_json(new / MARKER, record)
            progress("pictures", len(steps) + 1, len(steps) + 1, "")
        listed = [file for file in sizes if file.endswith((".mp4", ".gif", ".html"))]
        lines = [f"  {output / file}, {sizes[file] / 1e6:.2f} MB" for file in listed]
        return lines + [f"  without {part}: {reason}" for part, reason in left_out.items()]


def timings(stages: Stages, seconds: float) -> dict[str, Any]:
    """Content of `timings.json`: time and items of every stage, total time, peak memory."""
    rows = {stage: {"seconds": t, "items": stages.units[stage]} for stage, t in stages.seconds.items()}
    return {"stages": rows, "seconds": seconds, "peak_memory_bytes": peak_memory_bytes()}


def true_centres(saved: Reconstruction, ground_truth: str = "") -> tuple[np.ndarray | None, str]:
    """True camera centres, mapped to the result's world.

    They are mapped by the inverse of the similarity that aligns the result with the truth, as for the ATE: the gaps
    between the paths are then those that the ATE measures, in world units. (The similarity that fits the truth to the
    result is different: for a poor result it shrinks the truth.)

    Args:
      saved: the result.
      ground_truth: an npz file, as typed; "": that of the result's clip.

    Returns:
      (T, 3), or None and the reason why there are none.

    Raises:
      InputError: a requested file that is missing or does not match.
    """
    options = saved.record.get("options")
    options = options if isinstance(options, dict) else {}
    seq, kept = options.get("seq"), options.get("ground_truth", "")
    if saved.frames.frame_from_source is None:
        reason = "the result is from an older version, which does not record its source frames"
        if ground_truth:
            raise InputError(f"--ground_truth cannot be matched to the frames: {reason}.")
        return None, reason
    try:
        if ground_truth:
            path = pathlib.Path(ground_truth).expanduser()
            if not path.is_file():
                raise InputError(f"No ground truth at {path}: --ground_truth takes an .npz file.")
        else:
            path = find_sequence(seq, kept).ground_truth if isinstance(seq, str) and isinstance(kept, str) else None
        if path is None:
            return None, "the clip has no ground truth"
        truth = load_arrays(path, saved.frames, ("world_from_cam",)).get("world_from_cam")
        if truth is None:
            return None, "the ground truth has no camera path"
        estimate = np.asarray(saved.scene.world_from_cam)
        if metrics.pose_metrics(estimate, truth)["ate"] is None:
            return None, "no similarity aligns the true path: too few frames, or a static camera"
        scale, rotation, translation = register_similarity(estimate[:, :3, 3], truth[:, :3, 3])
        if not scale > 0:
            return None, "no similarity aligns the true path: the paths have nothing in common"
        return (truth[:, :3, 3] - translation) @ rotation / scale, ""
    except InputError as error:
        if ground_truth:
            raise
        return None, f"the ground truth is not available ({error})"


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
    return page(name, lead, shown, "Written by easi3r_jax. World units are arbitrary unless known poses give them.")


def _captions(config: Mapping[str, Any]) -> dict[str, str]:
    """`_CAPTIONS`, with the sources of this result's score and masks, as far as they are recorded."""
    pipeline = config.get("pipeline")
    pipeline = pipeline if isinstance(pipeline, dict) else {}
    cue, sources = pipeline.get("motion"), pipeline.get("masks")
    attention = score = masks = ""
    if isinstance(cue, str):
        attention = " computed from them" if cue == "attention" else f", which comes from another cue: --motion={cue}"
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
    if "dtype" in config:
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
