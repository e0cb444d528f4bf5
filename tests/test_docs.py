"""The Python code in the documentation runs unchanged: each document from top to bottom, in a folder with a clip."""

import pathlib
import re

import jax
import numpy as np
import pytest
from PIL import Image

from easi3r_jax.io.pictures.movies import write_mp4
from easi3r_jax.io.sequences import CLIPS

ROOT = pathlib.Path(__file__).parents[1]
FRAMES = 5


def blocks(name: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (ROOT / name).read_text(encoding="utf-8"), flags=re.M | re.S)


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("docs")
    images = [np.asarray(Image.open(path)) for path in sorted((CLIPS / "demo" / "frames").iterdir())[:FRAMES]]
    write_mp4(folder / "clip.mp4", images, rate=8)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", ["docs/extending.md", "docs/differentiating.md"])
def test_the_code_runs(name, clip, monkeypatch):
    monkeypatch.chdir(clip)
    names: dict = {}
    for number, block in enumerate(blocks(name)):
        exec(compile(block, f"{name}, block {number + 1}", "exec"), names)  # noqa: S102
    assert names


@pytest.mark.slow
def test_the_first_script_does_what_it_says(clip, monkeypatch):
    """Fifteen lines of code or so: the whole method, a result written and read, a cue, a gradient."""
    (script,) = blocks("README.md")
    lines = [line for line in script.splitlines() if line.split("#")[0].strip()]
    assert len(lines) <= 20
    monkeypatch.chdir(clip)
    names: dict = {}
    exec(script, names)  # noqa: S102
    np.testing.assert_array_equal(names["same"].scene.depth, names["result"].scene.depth)
    assert np.any(names["other"].scene.dynamic_score != names["result"].scene.dynamic_score)
    slopes = [float(np.abs(x).max()) for x in jax.tree.leaves(names["grads"])]
    assert all(np.isfinite(slopes)) and max(slopes) > 1e-6
