"""Pictures, videos and the report of a result: what reconstruct and the program `report` have in common."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from easi3r_jax.apps import cli
from easi3r_jax.apps.environment import peak_memory_bytes
from easi3r_jax.apps.progress import TITLES, Stages
from easi3r_jax.apps.sequences import find_sequence, load_arrays
from easi3r_jax.core.errors import InputError
from easi3r_jax.core.types import Frames, Observer
from easi3r_jax.evaluation import metrics
from easi3r_jax.io.export.jsonfile import read_object, write_json
from easi3r_jax.io.pictures.gallery import MARKER, Gallery, gallery_files
from easi3r_jax.io.pictures.movies import ensure_encoder
from easi3r_jax.io.pictures.page import Media, Part, Row, Table, Text, page
from easi3r_jax.io.results import SavedScene

#: Metrics worth a line on the screen; metrics.json has them all.
METRICS = {
    "ate": "camera path, ATE (units of the truth)",
    "rpe_translation": "camera path, RPE translation",
    "rpe_rotation_deg": "camera path, RPE rotation (degrees)",
    "focal_relative_error": "focal length, relative error",
    "abs_rel": "depth, AbsRel",
    "delta_1_25": "depth, share within 1.25",
    "score_auc": "motion score, ROC-AUC (0.5: chance)",
    "mask_iou": "motion mask, IoU",
    "mask_share": "share of pixels marked as moving",
}

#: The others, for the page.
_MORE_METRICS = {
    "sq_rel": "depth, SqRel (units of the truth)",
    "depth_rmse": "depth, RMSE (units of the truth)",
    "log_rmse": "depth, RMSE of the logarithm",
    "delta_1_25_2": "depth, share within 1.25²",
    "delta_1_25_3": "depth, share within 1.25³",
    "abs_rel_scale_shift": "depth, AbsRel after scale and shift",
    "delta_1_25_scale_shift": "depth, share within 1.25 after scale and shift",
    "mask_j_mean": "motion mask, J mean (DAVIS)",
    "mask_j_recall": "motion mask, J recall",
    "mask_j_decay": "motion mask, J decay",
    "mask_f_mean": "motion mask, F mean (DAVIS)",
    "mask_f_recall": "motion mask, F recall",
    "mask_f_decay": "motion mask, F decay",
}

# Bytes of videos in a page: beyond it browsers get slow, and Firefox takes no data: URL of more than 32 MB, in base64
# (MDN, "data: URLs").
_MOST_VIDEO = 23_900_000

_SHOWN = {
    "panel": "Frames, depth, score and masks over time.",
    "attention": "Mean and deviation of the cross-attention over the pairs in which a frame is the source, and over "
    "those in which it is the reference (in whose camera the points are), and the dynamic score",
    "depth": "Depth over time: near is bright, equal ratios are equal steps of colour, one scale for the clip.",
    "masks": "What moves (red)",
    "image": "Frames with their numbers.",
    "losses": "Loss of the global alignment by iteration: how far the pairs' points are from the scene's, weighted by "
    "confidence, and its further terms.",
    "trajectory": "The camera's path from above, from violet (first frame) to yellow (last).",
    "score": "How the dynamic score is distributed over all pixels",
}
#: What masks come from (`PipelineConfig.masks`), in words.
_SOURCES = {
    "motion": "the score above its threshold",
    "flow": "optical flow that the cameras do not explain",
    "given": "masks that were given",
}


class PictureFlags:
    """`--videos`, `--gif` and `--report`: three flags, to be added to a group of a program's.

    Args:
      group: of the program's flags.
      wanted: videos and the report are on by default.
    """

    def __init__(self, group: cli.Group, *, wanted: bool = False):
        self._videos = group.boolean(
            "videos", wanted, "Write panel.mp4, depth.mp4, masks.mp4 and attention.mp4, and show some in the report."
        )
        self._gif = group.boolean("gif", False, "Write the same as GIFs, too: large files.")
        self._report = group.boolean(
            "report", wanted, "Write report.html, one page with pictures, plots, metrics, options and timings in it."
        )

    def any(self) -> bool:
        """Whether anything is asked for."""
        return self._videos.value or self._gif.value or self._report.value

    def check(self) -> None:
        """Fails now where `write` would fail after the work: no encoder for videos.

        Raises:
          OutputError: that.
        """
        if self._videos.value:
            ensure_encoder()

    def write(
        self, saved: SavedScene, output: pathlib.Path, *, name: str, ground_truth: str = "", observer: Observer
    ) -> list[str]:
        """Writes what is asked for into a folder, beside what is there: all of it, or nothing.

        Args:
          saved: the result.
          output: the folder.
          name: heads the report.
          ground_truth: an npz file; "": that of the clip that config.json names, if it is still there.
          observer: told of progress.

        Returns:
          lines on what was written, and on what the result has nothing for.

        Raises:
          InputError: ground truth that is asked for and cannot be had; a damaged file in the result.
          OutputError: something cannot be written.
        """
        if not self.any():
            return []
        centres, why_not = true_centres(saved, ground_truth)
        gallery = Gallery(
            saved.scene,
            saved.time,
            motion=saved.motion,
            threshold=saved.threshold,
            losses=saved.losses,
            true_centres=centres,
        )
        left_out = gallery.omitted | ({"true path": why_not} if why_not else {})
        page_wanted = self._report.value
        figures, times = (read_object(saved.folder / file) for file in ("metrics.json", "timings.json"))
        if page_wanted and not figures:
            left_out["figures"] = "the result was not compared with ground truth: it has no metrics.json"
        steps = gallery.writers(videos=self._videos.value, gif=self._gif.value, stills=page_wanted)
        with gallery_files(output) as new:
            if page_wanted:
                steps["report.html"] = lambda path: path.write_text(
                    report_page(saved, name, new, left_out, figures, times), encoding="utf-8"
                )
            for done, (file, write) in enumerate(steps.items()):
                observer("pictures", done, len(steps) + 1, file)
                write(new / file)
            observer("pictures", len(steps), len(steps) + 1, MARKER)
            sizes = {path.name: path.stat().st_size for path in sorted(new.iterdir())}
            record = {"scene": saved.folder, "files": list(sizes), "left_out": left_out}
            write_json(new / MARKER, record)
            observer("pictures", len(steps) + 1, len(steps) + 1, "")
        told = [file for file in sizes if file.endswith((".mp4", ".gif", ".html"))]
        lines = [f"  {output / file}, {sizes[file] / 1e6:.2f} MB" for file in told]
        return lines + [f"  without {part}: {reason}" for part, reason in left_out.items()]


def timings(stages: Stages, seconds: float) -> dict[str, Any]:
    """What `timings.json` says: time and items of every stage, all of the time, peak memory."""
    rows = {stage: {"seconds": t, "items": stages.units[stage]} for stage, t in stages.seconds.items()}
    return {"stages": rows, "seconds": seconds, "peak_memory_bytes": peak_memory_bytes()}


def true_centres(saved: SavedScene, ground_truth: str = "") -> tuple[np.ndarray | None, str]:
    """Camera centres of the truth, brought to the result's world.

    By the inverse of the similarity that brings the result to the truth, as for the ATE: the gaps between the paths
    are then those of that figure, in world units. (The similarity that fits the truth to the result is another: where
    the result is poor, it shrinks the truth.)

    Args:
      saved: the result.
      ground_truth: an npz file, as typed; "": that of the clip that the result was made of.

    Returns:
      (T, 3), or None and why there are none.

    Raises:
      InputError: a file that was asked for and is not there or does not fit.
    """
    options = saved.config.get("options")
    options = options if isinstance(options, dict) else {}
    seq, kept = options.get("seq"), options.get("ground_truth", "")
    if saved.source is None:
        reason = "the result is of an older version, which does not say what its frames were"
        if ground_truth:
            raise InputError(f"--ground_truth cannot be brought to the frames: {reason}.")
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
        frames = Frames(
            saved.scene.rgb, saved.source.index, saved.time, saved.source.frame_from_source, np.array(saved.source.size)
        )
        truth = load_arrays(path, frames, ("world_from_cam",)).get("world_from_cam")
        if truth is None:
            return None, "the ground truth has no camera path"
        estimate = np.asarray(saved.scene.world_from_cam)
        if metrics.pose_metrics(estimate, truth)["ate"] is None:
            return None, "no similarity brings the true path to it: too few frames, or a camera that does not move"
        scale, rotation, translation = metrics.umeyama(estimate[:, :3, 3], truth[:, :3, 3])
        if not scale > 0:
            return None, "no similarity brings the true path to it: the paths have nothing in common"
        return (truth[:, :3, 3] - translation) @ rotation / scale, ""
    except InputError as error:
        if ground_truth:
            raise
        return None, f"the ground truth cannot be had ({error})"


def report_page(
    saved: SavedScene,
    name: str,
    folder: pathlib.Path,
    left_out: Mapping[str, str],
    figures: Mapping[str, Any],
    times: Mapping[str, Any],
) -> str:
    """`report.html`: what the pictures in a folder show, and what the result says of itself.

    Args:
      saved: the result.
      name: heads the page.
      folder: of the pictures; those that are not there are left out.
      left_out: what the result has nothing for, and why.
      figures: `metrics.json`.
      times: `timings.json`.
    """

    def media(file: str, text: str) -> list[Media]:
        kind = {"mp4": "video/mp4", "png": "image/png", "jpg": "image/jpeg"}[file.rsplit(".", 1)[1]]
        path = folder / file
        return [Media(kind, path.read_bytes(), text)] if path.is_file() else []

    texts = _captions(saved.config)
    # The panel has depth and masks: their own videos would only make the page larger.
    videos: list[Part] = []
    room, beside = _MOST_VIDEO, []
    for film in ("panel", "attention"):
        for video in media(f"{film}.mp4", texts[film]):
            if len(video.data) <= room:
                videos.append(video)
                room -= len(video.data)
            else:
                beside.append(f"{film}.mp4")
    if beside:
        videos.append(Text(f"Beside this page, which would be too large with them: {', '.join(beside)}."))
    overview = media("overview.jpg", "Some frames, and all that is known of them.")
    sheets = [m for s in ("image", "depth", "masks") for m in media(f"contact_{s}.jpg", texts[s])]
    plots = [m for s in ("trajectory", "losses", "score") for m in media(f"plot_{s}.png", texts[s])]
    sections: list[tuple[str, list[Part]]] = [
        ("Videos", videos),
        ("Overview", list(overview)),
        ("Plots", [Row(plots)]),
        ("Against ground truth", _metrics(figures)),
        ("Frames", list(sheets)),
        ("Time", _timings(times)),
        ("Weights and versions", _versions(saved.config)),
        ("Options", _options(saved.config)),
        ("Left out", [Table(("part", "why"), [*left_out.items()])] if left_out else []),
    ]
    count, height, width = saved.scene.depth.shape
    lead = [f"{count} frames of {width}x{height}, {saved.time[-1] - saved.time[0]:.2f} s."]
    seen = [(heading, parts) for heading, parts in sections if parts]
    return page(name, lead, seen, "Written by easi3r_jax. World units are arbitrary unless known poses give them.")


def _captions(config: Mapping[str, Any]) -> dict[str, str]:
    """`_SHOWN`, and what score and masks of this result were made of, as far as it says."""
    pipeline = config.get("pipeline")
    pipeline = pipeline if isinstance(pipeline, dict) else {}
    cue, sources = pipeline.get("motion"), pipeline.get("masks")
    attention = score = masks = ""
    if isinstance(cue, str):
        attention = " made of them" if cue == "attention" else f", which is of another cue: --motion={cue}"
    if isinstance(sources, list):
        known = [text for source, text in _SOURCES.items() if source in sources]
        masks = f": {' or '.join(known)}" if known else ": nothing, since no masks were asked for (--masks=none)"
        score = "" if "motion" in sources else "; masks are not made of it"
    added = {"attention": attention, "masks": masks, "score": score}
    return _SHOWN | {name: f"{_SHOWN[name]}{text}." for name, text in added.items()}


def _metrics(figures: Mapping[str, Any]) -> list[Part]:
    columns = {name: values for name, values in figures.items() if isinstance(values, dict)}
    alone = {name: value for name, value in figures.items() if name not in columns}  # of evaluate
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
        return [Text("The result does not say what its stages took.")]
    rows = [
        (TITLES.get(str(stage), str(stage)), str(values.get("items", "")), _number(values.get("seconds"), digits=1))
        for stage, values in stages.items()
        if isinstance(values, dict)
    ]
    rows.append(("in all before the pictures, compilation included", "", _number(record.get("seconds"), digits=1)))
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
        rows.append(("layers in", _plain(config["dtype"])))
    versions = config.get("versions")
    if isinstance(versions, dict):
        rows += [(name, _plain(version)) for name, version in versions.items()]
    note = Text(
        "Released DUSt3R and MonST3R weights are CC BY-NC-SA 4.0 (attribution, non-commercial, share alike), before "
        "and after conversion."
    )
    checkpoint = config.get("checkpoint")
    is_small = isinstance(checkpoint, dict) and checkpoint.get("source_name") == "embedded"
    small = [Text("The embedded network is a small one for trials: what it marks as moving means little.")]
    return [Table(("", ""), rows), *(small if is_small else []), note] if rows else []


def _options(config: Mapping[str, Any]) -> list[Part]:
    options, changed = config.get("options"), config.get("changed")
    if not isinstance(options, dict) or not options:
        return [Text("The result does not say which options made it.")]
    told = isinstance(changed, list)
    names = sorted(options, key=lambda name: not (told and name in changed))
    marked = frozenset(i for i, name in enumerate(names) if told and name in changed)
    note = f"{len(marked)} differ from their defaults: marked, and first." if told else "Defaults were not recorded."
    return [Text(note), Table(("option", "value"), [(f"--{n}", _plain(options[n])) for n in names], marked)]


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _number(value: Any, *, digits: int = 4, scale: float = 1.0) -> str:
    """A number of a file that may hold anything; integers there may be larger than any float."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e15
    return f"{scale * value:.{digits}f}" if is_number else "-"
