"""Inputs of the network: resized and cropped frames, and the pair graphs."""

from __future__ import annotations

import json
import pathlib
import re
from collections.abc import Iterator

import numpy as np

from easi3r_jax.apps.parity.report import Row, at_most, equal
from easi3r_jax.core.config import FrameConfig
from easi3r_jax.core.pairs import make_edges
from easi3r_jax.io.video import load_frames


def check_frames(folder: pathlib.Path) -> Iterator[Row]:
    """Every image of `inputs/` at every size and crop; within one of 255 levels."""
    for path in sorted(folder.glob("size*_crop*_sq*.npz")):
        size, crop, square = (int(n) for n in re.findall(r"\d+", path.stem))
        config = FrameConfig(size=size, crop=bool(crop), square_ok=bool(square))
        with np.load(path) as file:
            golden = dict(file)
        for name, array in golden.items():
            match = re.fullmatch(r"(.+)_u8(?:_stride(\d+))?", name)
            if match:
                step = int(match[2] or 1)
                ours = load_frames([folder / "inputs" / f"{match[1]}.png"], config).rgb[0]
                stage = f"{folder.name}/{path.stem}"
                yield equal(stage, f"{match[1]} size", ours.shape[:2], golden[f"{match[1]}_true_shape"].ravel())
                levels = np.abs(ours[::step, ::step].astype(int) - array.astype(int)).max()
                yield at_most(stage, f"{match[1]}, levels of 255", levels, 1)


def check_pairs(folder: pathlib.Path) -> Iterator[Row]:
    """Every graph's set of directed pairs.

    The reference does not symmetrise some graphs, and its cyclic windows pair a frame with itself on short clips. The
    golden sets are compared after symmetrising and removing self-pairs.
    """
    golden = json.loads((folder / "pairs.json").read_text())
    for graph, clips in golden["symmetrize_true"].items():
        for count, record in clips.items():
            theirs = {(i, j) for i, j in record["upstream_order"] if i != j}
            theirs |= {(j, i) for i, j in theirs}
            yield _same_pairs(f"{folder.name}", f"{graph}, {count} frames", make_edges(int(count), graph), theirs)
    for name, pairs in golden.get("prefilter", {}).items():
        graph, count, prefilter = re.findall(r"(\S+) n=(\d+) prefilter=(\S+)", name)[0]
        ours = make_edges(int(count), graph, prefilter=prefilter)
        yield _same_pairs(folder.name, name, ours, {(i, j) for i, j in pairs})


def _same_pairs(stage: str, name: str, ours: np.ndarray, theirs: set[tuple[int, int]]) -> Row:
    mine = {(int(i), int(j)) for i, j in ours}
    wrong = len(mine ^ theirs) + len(ours) - len(mine)
    return at_most(stage, f"{name}: pairs that differ or repeat", wrong, 0)
