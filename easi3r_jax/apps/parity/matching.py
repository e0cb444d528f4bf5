"""Reciprocal nearest neighbours of descriptors: indices, exactly."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Iterator

import numpy as np

from easi3r_jax.apps.parity.report import Golden, Row, equal
from easi3r_jax.core.reciprocal import nearest_descriptors, reciprocal_matches

#: By k-d trees, the same as `fast_*`.
_NOT_COMPARED = r"kdtree_s\d+_idx[12]"


def check_file(path: pathlib.Path) -> Iterator[Row]:
    """Compares every array of a golden file."""
    golden, stage = Golden(path), f"{path.parent.name}/{path.stem}"
    one, two = golden["desc1"], golden["desc2"]
    widths, confidences = (one.shape[1], two.shape[1]), (golden["conf1"].ravel(), golden["conf2"].ravel())
    flat = [x.reshape(-1, x.shape[-1]) for x in (one, two)]
    yield equal(stage, "nn_1to2", nearest_descriptors(*flat), golden["nn_1to2"])
    yield equal(stage, "nn_2to1", nearest_descriptors(*flat[::-1]), golden["nn_2to1"])
    for case in sorted({name.rpartition("_")[0] for name in golden if re.match(r"fast_|nonsym_|init_", name)}):
        options = re.fullmatch(r"(fast|nonsym)_s(\d+)|init_grid(\d+)_tol(\d+)", case)
        if options is None:
            continue  # reported below
        kind, step, grid, tolerance = options.groups()
        found = reciprocal_matches(
            one,
            two,
            subsample=int(step or grid),
            tolerance=None if tolerance is None else float(tolerance),
            both_ways=kind == "nonsym",
        )
        indices = [np.asarray(x)[np.asarray(found.valid)] for x in (found.index_i, found.index_j)]
        for side, (index, width) in enumerate(zip(indices, widths, strict=True), 1):
            if f"{case}_idx{side}" in golden:
                yield equal(stage, f"{case}_idx{side}", index, golden[f"{case}_idx{side}"])
            if f"{case}_xy{side}" in golden:
                xy = np.stack([index % width, index // width], axis=1)
                yield equal(stage, f"{case}_xy{side}", xy, golden[f"{case}_xy{side}"])
        if f"{case}_conf" in golden:
            least = np.minimum(*(c[index] for c, index in zip(confidences, indices, strict=True)))
            yield equal(stage, f"{case}_conf", least, golden[f"{case}_conf"])
    yield from golden.unread(stage, _NOT_COMPARED)
