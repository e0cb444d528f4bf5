"""The Python in docs/datasets.md about test sets, on a small data set of the same layout."""

import functools
import pathlib
import re

import numpy as np

from easi3r_jax.core.config import FrameConfig
from easi3r_jax.core.types import Frames
from easi3r_jax.io import video
from tests.evaluation.datasets.layouts import SHAPE, write_davis

DOCUMENT = pathlib.Path(__file__).parents[3] / "docs" / "datasets.md"


def test_a_test_set_is_read(tmp_path, monkeypatch):
    code = re.findall(r"^```python\n(.*?)^```", DOCUMENT.read_text(encoding="utf-8"), flags=re.M | re.S)[-1]
    monkeypatch.chdir(tmp_path)
    write_davis(tmp_path / "data" / "davis")
    # Its images have 8 x 6 pixels: too few to be enlarged to 512.
    small = functools.partial(video.load_frames, config=FrameConfig(size=64))
    monkeypatch.setattr(video, "load_frames", small)
    names: dict = {}
    exec(code, names)  # noqa: S102
    frames, moving = names["frames"], names["moving"]
    assert isinstance(frames, Frames) and tuple(frames.source_size) == SHAPE
    assert moving.dtype == np.bool_ and moving.shape == SHAPE and moving.any()
