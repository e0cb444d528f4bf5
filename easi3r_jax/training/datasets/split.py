"""Holds out whole scenes of a data set, so that validation measures generalisation to new scenes."""

from __future__ import annotations

import dataclasses
import hashlib
import os

from easi3r_jax.training.datasets.sequence import Dataset

#: From data sets with fewer scenes nothing is held out: training would lose too much.
MIN_SCENES = 5
_HELD_OUT_ONE_IN = 10


def hold_out(dataset: Dataset) -> tuple[Dataset, Dataset | None]:
    """Splits a data set into training and held-out scenes: one scene in ten is held out, at least one.

    Which scenes are held out depends only on their paths relative to the data set's folder.

    Returns:
      Training and held-out part; the whole data set and None if it has fewer than `MIN_SCENES` scenes.
    """

    def rank(scene: str) -> bytes:
        return hashlib.sha256(os.fsencode(os.path.relpath(scene, dataset.root))).digest()

    scenes = sorted({sequence.scene for sequence in dataset.sequences}, key=rank)
    if len(scenes) < MIN_SCENES:
        return dataset, None
    held_out = set(scenes[: max(len(scenes) // _HELD_OUT_ONE_IN, 1)])
    parts = (
        tuple(s for s in dataset.sequences if s.scene not in held_out),
        tuple(s for s in dataset.sequences if s.scene in held_out),
    )
    return dataclasses.replace(dataset, sequences=parts[0]), dataclasses.replace(dataset, sequences=parts[1])
