"""The Python code in the documentation runs unchanged: each document from top to bottom, in a folder with a clip."""

import pathlib
import re

import jax
import numpy as np
import pytest
from PIL import Image

from easi3r_jax import attention_maps, load_result, make_edges, reconstruct_stream
from easi3r_jax.io.pictures.movies import write_mp4
from easi3r_jax.io.sequences import CLIPS

ROOT = pathlib.Path(__file__).parents[1]
FRAMES = 3


def blocks(name: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (ROOT / name).read_text(encoding="utf-8"), flags=re.M | re.S)


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("docs")
    images = [np.asarray(Image.open(path)) for path in sorted((CLIPS / "demo" / "frames").iterdir())[:FRAMES]]
    write_mp4(folder / "clip.mp4", images, rate=8)
    return folder


def run(name: str, folder: pathlib.Path, monkeypatch) -> dict:
    """The names that a document's code defines."""
    monkeypatch.chdir(folder)
    names: dict = {}
    for number, block in enumerate(blocks(name)):
        exec(compile(block, f"{name}, block {number + 1}", "exec"), names)  # noqa: S102
    return names


def test_the_first_script_does_what_it_says(clip, monkeypatch):
    """Twenty lines of code or fewer: the whole method, a result written and read, a cue, a gradient."""
    (script,) = blocks("README.md")
    lines = [line for line in script.splitlines() if line.split("#")[0].strip()]
    assert len(lines) <= 20
    assert blocks("docs/extending.md")[0] == script
    names = run("README.md", clip, monkeypatch)
    np.testing.assert_array_equal(names["same"].scene.depth, names["result"].scene.depth)
    assert np.any(names["other"].scene.dynamic_score != names["result"].scene.dynamic_score)
    slopes = [float(np.abs(x).max()) for x in jax.tree.leaves(names["grads"])]
    assert all(np.isfinite(slopes)) and max(slopes) > 1e-6


@pytest.mark.slow
def test_every_stage_can_be_changed(clip, monkeypatch):
    names = run("docs/extending.md", clip, monkeypatch)
    assert names["result"].scene.depth.shape == (FRAMES, *names["frames"].rgb.shape[1:3])
    assert np.all(np.isfinite(names["losses"])) and names["losses"][-1] < names["losses"][0]
    slopes = [float(np.abs(x).max()) for x in jax.tree.leaves(names["gradients"])]
    assert all(np.isfinite(slopes)) and max(slopes) > 1e-6
    assert names["logits"].ndim == 5


@pytest.mark.slow
def test_gradients_and_sweeps_give_what_is_claimed(tmp_path, monkeypatch):
    text = (ROOT / "docs/differentiating.md").read_text(encoding="utf-8")
    (claimed,) = re.findall(r"It prints −([\d.]+) twice", text)
    names = run("docs/differentiating.md", tmp_path, monkeypatch)
    for value in (names["change"], names["difference"]):
        np.testing.assert_allclose(value, -float(claimed), rtol=0.05)
    for slopes in (names["by_loss"], names["by_score"], names["by_cue"](names["ones"])):
        slopes = [float(np.abs(x).max()) for x in jax.tree.leaves(slopes)]
        assert all(np.isfinite(slopes)) and max(slopes) > 0
    assert np.all(np.isfinite(names["losses"])) and names["degrees"].shape == (len(names["settings"]),)
    with Image.open(tmp_path / "sweep.png") as figure:
        assert figure.size == (1200, 480) and len(np.unique(np.asarray(figure.convert("L")))) > 50


def test_a_network_of_ones_own_runs_the_whole_method(clip, monkeypatch):
    """docs/backbones.md, which also says how long it is."""
    names = run("docs/backbones.md", clip, monkeypatch)
    result, toy = names["result"], names["toy"]
    assert result.unit == "metres" and 2 < np.mean(result.scene.depth) < 3
    assert result.scene.depth.shape == (FRAMES, *names["frames"].rgb.shape[1:3])
    assert result.scene.dynamic_mask.any() and not result.scene.dynamic_mask.all()
    again = load_result(clip / "results" / "toy")
    assert again.unit == "metres" and "in metres" in repr(again)
    assert "(z, metres)" in (clip / "results" / "toy" / "depth" / "scale.txt").read_text()
    streamed = reconstruct_stream(toy, names["frames"])
    assert streamed.unit == "metres" and np.isfinite(streamed.scene.depth).all()
    edges = make_edges(FRAMES, "complete")
    slope = jax.grad(lambda toy: attention_maps(toy, names["frames"].rgb, edges).std_src.sum())(toy)
    assert np.isfinite(slope.queries).all() and np.abs(slope.queries).max() > 0
