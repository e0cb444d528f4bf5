"""`reconstruct` with a checkpoint of VGGT: a result like any other, and one line for flags that it does not use."""

import dataclasses
import json

import numpy as np
import pytest

from easi3r_jax.io.results import load_result
from easi3r_jax.weights.checkpoint import save_checkpoint
from tests.networks import SMALL_VGGT, vggt

CONFIG = dataclasses.replace(SMALL_VGGT, image_size=(56, 56))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("vggt") / "checkpoint"
    save_checkpoint(path, CONFIG, vggt(CONFIG), source_name="random", licence="of nobody")
    return path


def test_a_clip_becomes_a_result_with_exports(reconstruct_here, checkpoint, tmp_path):
    code, out, err = reconstruct_here(
        checkpoint=checkpoint,
        seq="demo",
        first=4,
        clusters=4,
        kmeans_restarts=1,
        export="colmap",
        compare_plain=False,
        distortion="SIMPLE_RADIAL:90,48,32,-0.05",
    )
    assert (code, err) == (0, "")
    assert "4 frames of 56x42" in out and "similarity of queries and keys to those of other frames (VGGT4D)" in out
    assert "--distortion: the frames are undistorted; their focal length is the network's" in out
    result = load_result(tmp_path / "out")
    assert result.frames.lens is not None
    assert result.scene.depth.shape == (4, 42, 56) and np.isfinite(result.scene.world_from_cam).all()
    record = json.loads((tmp_path / "out" / "config.json").read_text())
    assert record["network"]["network"] == "vggt" and record["flow"] is None
    assert record["checkpoint"]["licence"] == "of nobody"
    assert (tmp_path / "out" / "exports" / "colmap").is_dir() and (tmp_path / "out" / "scene.glb").is_file()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"flow": "dis"}, "A checkpoint of VGGT does not use --flow=dis: omit it."),
        ({"window": 3, "overlap": 2}, "does not use --window=3, --overlap=2: omit it."),
        ({"motion": "match"}, "cue 'match' needs a network of pairs"),
        ({"mode": "feedforward"}, "A checkpoint of VGGT does not use --mode=feedforward: omit it."),
        ({"crop": False}, "--nocrop has no effect with VGGT"),
        ({"square_ok": True}, "--square_ok has no effect with VGGT"),
        ({"size": 300}, "do not fit a network trained at 56x56"),
    ],
)
def test_what_it_does_not_do_is_said_in_a_line(reconstruct_here, checkpoint, flags, message):
    code, _, err = reconstruct_here(checkpoint=checkpoint, seq="demo", first=2, **flags)
    assert code != 0 and message in err and len(err.strip().splitlines()) == 1


def test_programs_that_need_pairs_say_so(here, checkpoint):
    done = here("evaluate", f"--checkpoint={checkpoint}", "--dataset=synthetic")
    assert done.returncode != 0
    assert "has weights of VGGT, which takes a clip at once: this needs a network of pairs" in done.stderr
