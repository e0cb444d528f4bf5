"""`python -m experiments.ablate_cue`: its table agrees with the study's scores of the same clip."""

import numpy as np
import pytest

from easi3r_jax.apps import ablate_cue
from easi3r_jax.apps.ablate_cue import cue_parts
from easi3r_jax.apps.study import scores
from easi3r_jax.apps.study.clips import read
from easi3r_jax.core.config import PipelineConfig
from easi3r_jax.evaluation.metrics import roc_auc
from easi3r_jax.inference import pipeline
from easi3r_jax.io.sequences import CLIPS
from easi3r_jax.weights.load import load_model


def test_parts_are_everything_each_layer_and_each_head():
    names, parts = cue_parts(3, 2)
    assert parts.shape == (1 + 3 + 6, 3, 2) and len(set(names)) == 10
    np.testing.assert_array_equal(parts[1:4].sum(0), np.ones((3, 2)))
    np.testing.assert_array_equal(parts[4:].sum(0), np.ones((3, 2)))
    assert names[5] == "layer 1, head 2" and parts[5].tolist() == [[0, 1], [0, 0], [0, 0]]


@pytest.fixture(scope="module")
def rows():
    """The printed table: numbers of each row by its name."""
    printed = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builtins.print", printed.append)
        assert ablate_cue.FLAGS.execute(ablate_cue.main, [""]) == 0
    lines = printed[0].splitlines()
    return {line[:20].strip(): [float(x) for x in line[20:].split()] for line in lines[2:]}


@pytest.mark.slow
def test_every_layer_and_head_has_a_row(rows):
    assert len(rows) == 1 + 4 + 16
    assert all(len(values) == (2 if name == "everything" else 4) for name, values in rows.items())
    assert all(0 <= value <= 1 for values in rows.values() for value in values)


@pytest.mark.slow
def test_a_layer_alone_is_the_studys(rows):
    """Which slices the moments instead of weighing them, and takes its masks from another place."""
    model = load_model("embedded")
    clip = read(CLIPS / "demo", model.config).moving
    features = pipeline.encode(model, clip.frames)
    found = {}
    for score, values, _ in scores.scored(model, clip, features, PipelineConfig()):
        if score.source in scores.CUES:  # the last of them, which take longest
            break
        if score.map == scores.FORMULA and score.clustered:
            found[score.source] = roc_auc(values, clip.truth.masks)
    assert rows["everything"][0] == pytest.approx(found[scores.ALL_LAYERS], abs=2e-3)
    for n in range(4):
        assert rows[f"layer {n + 1}"][1] == pytest.approx(found[f"layer {n + 1}"], abs=2e-3)
