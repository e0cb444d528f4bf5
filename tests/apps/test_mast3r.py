"""MASt3R by the command line: from a small random network to a scene in metres."""

import json

import numpy as np
import pytest

from easi3r_jax.io.results import load_result
from easi3r_jax.weights.checkpoint import load_metadata, save_checkpoint
from easi3r_jax.weights.convert import convert, open_source
from easi3r_jax.weights.convert.release import release
from tests.networks import network, small_released

CONFIG = small_released("catmlp+dpt")
QUICK = {"first": 3, "size": 48, "graph": "complete", "iterations": 5, "compare_plain": False, "flow": "none"}
QUICK |= {"clusters": 4, "kmeans_restarts": 1}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mast3r") / "converted"
    save_checkpoint(folder, CONFIG, network(CONFIG), source_name="random")
    return folder


def test_the_whole_method_runs_on_it_and_says_metres(checkpoint, reconstruct_here, tmp_path):
    code, out, errors = reconstruct_here(**QUICK, checkpoint=checkpoint, export="png,nerfstudio")
    assert code == 0 and not errors, errors
    assert ", metric, " in out
    result = load_result(tmp_path / "out")
    assert result.unit == "metres" and result.record["backbone"] == "MASt3R" and result.record["network"]["metric"]
    assert result.motion is not None and np.isfinite(result.scene.depth).all()
    assert "(z, metres)" in (tmp_path / "out" / "exports" / "png" / "scale.txt").read_text()
    for name in ("png", "nerfstudio"):
        record = json.loads((tmp_path / "out" / "exports" / name / "export.json").read_text())
        assert record["unit"] == "metres"


def test_options_drop_the_unit_and_use_the_descriptors(checkpoint, reconstruct_here, tmp_path):
    code, _, errors = reconstruct_here(**QUICK, checkpoint=checkpoint, keep_metres=False, match_weight=0.1)
    assert code == 0 and not errors, errors
    result = load_result(tmp_path / "out")
    assert result.unit == "arbitrary" and result.record["pipeline"]["alignment"]["match_weight"] == 0.1
    assert json.loads((tmp_path / "out" / "timings.json").read_text())["stages"]["match"]["items"] == 6


def test_a_network_without_descriptors_is_refused_at_once(reconstruct_here, tmp_path):
    code, _, errors = reconstruct_here(**QUICK, match_weight=0.1)
    assert code == 1 and "no descriptors" in errors and len(errors.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_its_unit_goes_through_the_released_layout_and_back(checkpoint, tmp_path):
    header = json.loads((checkpoint / "config.json").read_text())
    assert header["architecture"]["metric"] is True  # where a converted folder says it
    official = release(checkpoint, tmp_path / "official")
    arguments = json.loads((official / "config.json").read_text())
    assert arguments["head_type"] == "catmlp+dpt" and arguments["output_mode"] == "pts3d+desc6"
    assert "metric" not in arguments  # as in the released one's: it is of this kind
    summary = convert(official, tmp_path / "again")
    assert summary.config == CONFIG and load_metadata(tmp_path / "again")[0].metric
    (official / "config.json").write_text(json.dumps(arguments | {"metric": False}))
    assert not open_source(official).config.metric
