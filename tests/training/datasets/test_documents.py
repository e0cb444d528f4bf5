"""The Python in docs/datasets.md about training data, on small data sets of the same layout."""

import pathlib
import re

import numpy as np
import pytest

from easi3r_jax.training.batch import ViewPairs
from easi3r_jax.training.datasets import open_dataset

DOCUMENT = pathlib.Path(__file__).parents[3] / "docs" / "datasets.md"
SHARES, TRUTH, _ = re.findall(r"^```python\n(.*?)^```", DOCUMENT.read_text(encoding="utf-8"), flags=re.M | re.S)


def test_published_data_sets_are_mixed(layouts, tmp_path, monkeypatch):
    pytest.importorskip("h5py")
    monkeypatch.chdir(tmp_path)
    pathlib.Path("data").mkdir()
    names: dict = {}
    for name in re.findall(r'"(\w+)": "data/', SHARES):
        folder = re.findall(rf'"{name}": "(data/\w+)"', SHARES)[0]
        pathlib.Path(folder).symlink_to(layouts(name).root)
    exec(SHARES, names)  # noqa: S102
    batch = ViewPairs(*names["batch"])
    assert batch.rgb.shape[:2] == (8, 2) and batch.rgb.dtype == np.uint8
    assert batch.depth.shape == batch.rgb.shape[:4] and np.all((batch.depth > 0).any(axis=(2, 3)))


def test_a_users_ground_truth_is_read(layouts, tmp_path, monkeypatch):
    room = layouts("pairs")
    monkeypatch.chdir(tmp_path)
    pathlib.Path("my_data/kitchen").mkdir(parents=True)
    (tmp_path / "my_data/kitchen/frames").symlink_to(room.folder / "frames")
    depth = np.stack([room.render(t, room.intrinsics, room.shape)[1] for t in range(len(room.world_from_cam))])
    exec(TRUTH, {"depth": depth, "world_from_cam": room.world_from_cam, "intrinsics": room.intrinsics})  # noqa: S102
    (sequence,) = open_dataset("pairs", pathlib.Path("my_data")).sequences
    np.testing.assert_allclose(sequence.read_depth(1, room.shape), depth[1], rtol=1e-6)
