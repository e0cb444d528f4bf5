"""Properties of every data set."""

import pathlib
import re

import numpy as np
import pytest

from easi3r_jax.core.errors import ConfigError
from easi3r_jax.evaluation.datasets import TEST_SETS, TestSet, bonn, find_test_set, tum
from easi3r_jax.evaluation.metrics import DepthOptions
from tests.evaluation.datasets import layouts
from tests.evaluation.datasets.layouts import Film, toy

TASKS = ("masks", "poses", "depth", "points")
METRICS = {"masks": {"j_mean", "j_recall"}, "poses": {"ate", "rpe_translation", "rpe_rotation_deg"}}
METRICS["depth"] = {"abs_rel", "delta_1_25"}
#: How depth is aligned and up to which depth it is evaluated; docs/datasets.md has the sources.
DEPTHS = {
    "sintel": DepthOptions("scale", max_depth=70.0),
    "bonn": DepthOptions("scale", max_depth=10.0),
    "kitti": DepthOptions("scale", max_depth=80.0),
    "nyu": DepthOptions("median", per_frame=True, max_depth=10.0),
    "iphone": DepthOptions("scale", max_depth=80.0),
    "custom": DepthOptions("scale", max_depth=80.0),
}
DOCUMENT = pathlib.Path(__file__).parents[3] / "docs/datasets.md"


@pytest.fixture(params=sorted(TEST_SETS))
def data_set(request) -> TestSet:
    return find_test_set(request.param)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ConfigError, match=r"'kiti'.*bonn.*kitti.*tum"):
        find_test_set("kiti")


def test_names_and_tasks(data_set):
    assert TEST_SETS[data_set.name] is data_set
    assert data_set.tasks and set(data_set.tasks) <= set(TASKS)
    assert data_set.depth == DEPTHS.get(data_set.name) and (data_set.depth is not None) == ("depth" in data_set.tasks)
    assert data_set.single_frames == (data_set.name == "nyu")


def test_published_rows_match_its_tasks_and_our_units(data_set):
    for row in data_set.published:
        assert row.task in data_set.tasks and set(row.metrics) <= METRICS[row.task]
        assert re.search(r"arXiv \d{4}\.\d{5}.*Table \d", row.source)
        for name, value in row.metrics.items():
            assert 0 < value < (10 if name == "rpe_rotation_deg" else 1), (row.method, name)
    methods = [(row.method, row.task, row.source) for row in data_set.published]
    assert len(set(methods)) == len(methods)


def test_the_document_has_a_section_for_each_data_set(data_set):
    assert re.search(rf"^### `.*\b{data_set.name}\b.*`", DOCUMENT.read_text(encoding="utf-8"), flags=re.MULTILINE)


def test_a_missing_root(data_set, tmp_path, message_of):
    message = message_of(lambda: data_set.find(tmp_path / "nowhere"))
    assert str(tmp_path / "nowhere") in message and data_set.name in message
    (tmp_path / "file").write_text("")
    assert "no folder" in message_of(lambda: data_set.find(tmp_path / "file"))


def test_a_root_without_the_data_set(data_set, tmp_path, message_of):
    (tmp_path / "other").mkdir()
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "README.txt").write_text("nothing here")
    message = message_of(lambda: data_set.find(tmp_path))
    assert str(tmp_path) in message and "docs/datasets.md" in message


def write_custom(folder: pathlib.Path, film: Film) -> None:
    layouts.write_clip(folder, film, masks=np.zeros(film.depth.shape, bool))


@pytest.mark.parametrize(
    ("known", "write"),
    [
        ("tum", layouts.write_tum),
        ("scannet", layouts.write_scannet),
        ("adt", layouts.write_adt),
        ("iphone", layouts.write_iphone),
        ("bonn", layouts.write_bonn_prepared),
        ("custom", write_custom),
    ],
)
def test_a_sequence_keeps_its_name_however_it_is_reached(known, write, tmp_path, monkeypatch):
    """From inside its folder, and through a link that has the protocol's name."""
    name = {"tum": tum.SEQUENCES[0], "bonn": bonn.SEQUENCES[0]}.get(known, "walk")
    write(tmp_path / name, toy(12))
    monkeypatch.chdir(tmp_path / name)
    assert [sequence.name for sequence in find_test_set(known).find(".")] == [name]
    (tmp_path / name).rename(tmp_path / "stored")
    (tmp_path / name).symlink_to("stored")
    assert [sequence.name for sequence in find_test_set(known).find(tmp_path / name)] == [name]
