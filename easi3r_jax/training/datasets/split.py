"""What is held out of a data set: whole scenes, so that validation tells how a network does on new ones."""

from __future__ import annotations

import dataclasses
import hashlib
import os

from easi3r_jax.training.datasets.sequence import Dataset

#: Of a data set with fewer scenes nothing is held out: too much would be missing from training.
FEWEST_SCENES = 5
_ONE_IN = 10


def hold_out(dataset: Dataset) -> tuple[Dataset, Dataset | None]:
    """Divides a data set into what is trained on and what is not: one scene in ten, at least one.

    Which scenes are held out follows from their names below the data set's folder: it is the same wherever that lies.

    Returns:
      The two parts; all of it and None where there are fewer than `FEWEST_SCENES` scenes.
    """

    def rank(scene: str) -> bytes:
        return hashlib.sha256(os.fsencode(os.path.relpath(scene, dataset.root))).digest()

    scenes = sorted({sequence.scene for sequence in dataset.sequences}, key=rank)
    if len(scenes) < FEWEST_SCENES:
        return dataset, None
    apart = set(scenes[: max(len(scenes) // _ONE_IN, 1)])
    parts = (
        tuple(s for s in dataset.sequences if s.scene not in apart),
        tuple(s for s in dataset.sequences if s.scene in apart),
    )
    return dataclasses.replace(dataset, sequences=parts[0]), dataclasses.replace(dataset, sequences=parts[1])
