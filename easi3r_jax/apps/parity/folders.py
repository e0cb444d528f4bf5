"""Recognises golden folders and selects their checks."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable, Iterator

from easi3r_jax.apps.parity import alignment, conversion, flow, inputs, metrics, motion, network, vggt, vggt4d
from easi3r_jax.apps.parity.report import Row
from easi3r_jax.core.errors import InputError

Check = Callable[[pathlib.Path], Iterator[Row]]


def find_checks(root: pathlib.Path) -> list[tuple[pathlib.Path, Check]]:
    """Every golden folder at or directly below `root`, with its check.

    Raises:
      InputError: a folder's description cannot be read.
    """
    found = []
    for folder in [root, *sorted(p for p in root.glob("*") if p.is_dir())]:
        check = _check_for(folder)
        if check is not None:
            found.append((folder, check))
    return found


def missing_files(folder: pathlib.Path) -> list[str]:
    """Files that the folder's description lists but that are missing. A subset of a golden folder is allowed."""
    settings = _read(folder / "config.json") if (folder / "config.json").is_file() else {}
    index = _read(folder / "index.json") if (folder / "index.json").is_file() else {}
    names = [*settings.get("files", ()), *(f"{case}.npz" for case in settings.get("cases", ()))]
    names += [f"{graph.replace('-', '_')}_pass1.npz" for graph in settings.get("graphs", ())]
    names += list(index.get("files", ()))
    return [f"{folder.name}/{name}" for name in names if not (folder / name).exists()]


def _check_for(folder: pathlib.Path) -> Check | None:
    has = {
        name: (folder / name).is_file()
        for name in ("config.json", "index.json", "pairs.json", "predictions.npz", "input_frames.npz")
    }
    settings = _read(folder / "config.json") if has["config.json"] else {}
    index = _read(folder / "index.json") if has["index.json"] else {}
    if has["predictions.npz"] and "cases" in settings:
        return alignment.check_folder
    if has["input_frames.npz"] and "graphs" in settings:
        return motion.check_folder
    if vggt4d.is_folder(folder):
        return vggt4d.check_folder
    if vggt.is_folder(settings):
        return vggt.check_folder
    if "files" in settings and "model" in settings:
        return network.check_folder
    if settings and all(isinstance(entry, dict) and "clip_seed" in entry for entry in settings.values()):
        return flow.check_folder
    if "model_string" in index:
        return conversion.check_checkpoints
    if index and (folder / "inputs").is_dir():
        return inputs.check_frames
    if has["pairs.json"]:
        return inputs.check_pairs
    if metrics.is_folder(folder):
        return metrics.check_folder
    if any(conversion.is_manifest(p) for p in folder.glob("*.json")):
        return conversion.check_manifests
    return None


def _read(path: pathlib.Path) -> dict:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not readable JSON: {error}.") from error
    return value if isinstance(value, dict) else {}
