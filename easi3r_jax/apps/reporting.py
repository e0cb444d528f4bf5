"""Pictures, videos and the report of a result, shared by reconstruct and the program `report`."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np

from easi3r_jax.apps import cli
from easi3r_jax.apps.compilation import Compilations
from easi3r_jax.apps.environment import peak_memory_bytes
from easi3r_jax.apps.exporting import recorded_path
from easi3r_jax.apps.progress import Stages, table
from easi3r_jax.apps.report_page import report_page
from easi3r_jax.core.errors import InputError
from easi3r_jax.core.types import Progress, Reconstruction
from easi3r_jax.evaluation import metrics
from easi3r_jax.io import remote
from easi3r_jax.io.export.jsonfile import read_object, write_json
from easi3r_jax.io.pictures.gallery import MARKER, Gallery, gallery_files
from easi3r_jax.io.pictures.movies import ensure_encoder
from easi3r_jax.io.sequences import find_sequence, load_arrays


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


def timings(stages: Stages, seconds: float, compilations: Compilations) -> dict[str, Any]:
    """Content of `timings.json`: time and items of every stage, total time, what was compiled, peak memory."""
    rows = {stage: {"seconds": t, "items": stages.units[stage]} for stage, t in stages.seconds.items()}
    compiled = {"programs": compilations.count, "cached": compilations.cached, "seconds": compilations.seconds}
    return {"stages": rows, "seconds": seconds, "compiled": compiled, "peak_memory_bytes": peak_memory_bytes()}


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
            path = pathlib.Path(remote.local(ground_truth)).expanduser()
            if not path.is_file():
                raise InputError(f"No ground truth at {path}: --ground_truth takes an .npz file.")
        elif any(isinstance(text, str) and remote.is_address(text) for text in (seq, kept)):
            # What a file says, perhaps somebody else's: not followed without being asked.
            return None, "the clip was read from an address: give its ground truth as --ground_truth"
        else:
            path = None
            if isinstance(seq, str) and isinstance(kept, str):
                path = find_sequence(recorded_path(saved, seq), recorded_path(saved, kept)).ground_truth
        if path is None:
            return None, "the clip has no ground truth"
        truth = load_arrays(path, saved.frames, ("world_from_cam",)).get("world_from_cam")
        if truth is None:
            return None, "the ground truth has no camera path"
        estimate = np.asarray(saved.scene.world_from_cam)
        if metrics.pose_metrics(estimate, truth)["ate"] is None:
            return None, "no similarity aligns the true path: too few frames, or a static camera"
        scale, rotation, translation = metrics.path_similarity(estimate, truth)
        if not scale > 0:
            return None, "no similarity aligns the true path: the paths have nothing in common"
        return (truth[:, :3, 3] - translation) @ rotation / scale, ""
    except InputError as error:
        if ground_truth:
            raise
        return None, f"the ground truth is not available ({error})"


def closing_table(stages: Stages, seconds: float, compilations: Compilations, output: pathlib.Path | str) -> str:
    """Time per stage, what was compiled, peak memory, and the result's folder."""
    rows = [(stage, str(stages.units[stage]), f"{t:.1f}") for stage, t in stages.seconds.items()]
    rows.append(("total, including compilation", "", f"{seconds:.1f}"))
    memory = ", ".join(f"{where} {size / 1e9:.2f} GB" for where, size in peak_memory_bytes().items())
    compiled = f"{compilations.count} programs in {compilations.seconds:.1f} s, {compilations.cached} from the cache"
    lines = (table(rows, ("stage", "items", "seconds")), f"  compiled: {compiled}", f"  peak memory: {memory}")
    return "\n".join((*lines, f"  result: {output}"))
