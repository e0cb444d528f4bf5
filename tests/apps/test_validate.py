"""`python -m experiments.validate`, and its results for the network that ships with the package."""

import json
import pathlib
import re

import jax
import numpy as np
import pytest

from easi3r_jax.apps import validate
from easi3r_jax.apps.training_data import rendered
from easi3r_jax.weights.load import load_model

CARD = pathlib.Path(__file__).parents[2] / "docs" / "embedded.md"


NUM = 32


@pytest.fixture(scope="module")
def figures(tmp_path_factory):
    path = tmp_path_factory.mktemp("validate") / "figures.json"
    assert validate.FLAGS.execute(validate.main, ["", f"--num={NUM}", f"--json={path}"]) == 0
    return json.loads(path.read_text())


def test_it_measures_a_network(capsys, tmp_path):
    """That the figures are right: below, in `make test-slow`."""
    path = tmp_path / "figures.json"
    assert validate.FLAGS.execute(validate.main, ["", "--num=2", "--batch_size=2", f"--json={path}"]) == 0
    figures = json.loads(path.read_text())
    assert figures["model"].keys() == figures["view_1_twice"].keys() >= {"error_1", "error_2", "abs_rel"}
    assert 0 < figures["model"]["error_2"] < figures["view_1_twice"]["error_2"]
    assert f"{figures['model']['error_2']:.4f}" in capsys.readouterr().out


def lengths(points: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """(E, 1, 1, 1) mean distance from the camera of the valid points of both views, (E, 2, H, W, 3)."""
    return np.array([np.linalg.norm(p[v], axis=-1).mean() for p, v in zip(points, valid, strict=True)])[
        :, None, None, None
    ]


@pytest.mark.slow
def test_the_metrics_are_those_of_the_networks_points(figures):
    """Measured again, in NumPy, from the network's predictions of the same pairs."""
    model = load_model("embedded", "exact")
    pairs = jax.device_get(rendered(model.config.image_size, seed=0, moving=False).held_out(NUM))
    v, u = np.mgrid[: pairs.depth.shape[2], : pairs.depth.shape[3]]
    pixels = np.stack([u, v, np.ones_like(u)], axis=-1)
    rays = np.einsum("bkij,hwj->bkhwi", np.linalg.inv(pairs.intrinsics), pixels)
    own = rays * pairs.depth[..., None]
    found, true, grid = [], [], model.grid(model.config.image_size)

    @jax.jit
    def predict(model, rgb_i, rgb_j):
        features = [model.encode(rgb) for rgb in (rgb_i, rgb_j)]
        return model.predict(*features, model.decode(*features, grid), grid)

    for i, j in ((0, 1), (1, 0)):
        i_from_j = np.linalg.inv(pairs.world_from_cam[:, i]) @ pairs.world_from_cam[:, j]
        moved = np.einsum("bij,bhwj->bhwi", i_from_j[:, :3, :3], own[:, j]) + i_from_j[:, None, None, :3, 3]
        true.append(np.stack([own[:, i], moved], axis=1))
        points_i, _, points_j, _ = predict(model, pairs.rgb[:, i], pairs.rgb[:, j])
        found.append(np.stack([points_i, points_j], axis=1))
    found, true = np.concatenate(found), np.concatenate(true)
    known = np.concatenate([pairs.depth > 0, pairs.depth[:, ::-1] > 0])
    errors = np.linalg.norm(found / lengths(found, known)[..., None] - true / lengths(true, known)[..., None], axis=-1)
    for view, name in enumerate(("error_1", "error_2")):
        mean = np.mean([e[k].mean() for e, k in zip(errors[:, view], known[:, view], strict=True)])
        assert figures["model"][name] == pytest.approx(mean, rel=1e-4)
    z, depth, seen = found[:, 0, ..., 2], true[:, 0, ..., 2], known[:, 0]
    ratios = [z_[k] / d[k] for z_, d, k in zip(z, depth, seen, strict=True)]
    relative = np.mean([np.abs(r * np.median(1 / r) - 1).mean() for r in ratios])
    assert figures["model"]["abs_rel"] == pytest.approx(relative, rel=1e-4)


@pytest.mark.slow
def test_the_network_that_ships_does_what_its_card_says(figures):
    """docs/embedded.md has the figures of 256 pairs; the first 32 of them differ by a few per cent."""
    model = figures["model"]
    card = CARD.read_text(encoding="utf-8")
    points = re.search(r"points, view 1 / view 2 .*?\| \*\*([\d.]+) / ([\d.]+)\*\*", card)
    depth = re.search(r"AbsRel, fraction within 1.25 \| \*\*([\d.]+), ([\d.]+)\*\*", card)
    focal = re.search(r"\| focal length, relative error \| ([\d.]+)", card)
    for name, said in zip(
        ("error_1", "error_2", "abs_rel", "delta_1_25", "focal"),
        (*points.groups(), *depth.groups(), focal[1]),
        strict=True,
    ):
        assert model[name] == pytest.approx(float(said), rel=0.15), name


@pytest.mark.slow
def test_it_needs_the_second_view(figures):
    assert figures["model"]["error_2"] < 0.7 * figures["view_1_twice"]["error_2"]
    assert figures["model"]["rotation_deg"] < 0.6 * figures["view_1_twice"]["rotation_deg"]
    # And it knows more of the camera than that it hardly moves.
    for name, still in (("rotation_deg", "rotation_still_deg"), ("translation", "translation_still")):
        assert figures["model"][name] < 0.6 * figures["model"][still]
        assert figures["model"][still] == figures["view_1_twice"][still]


def test_an_arc_belongs_to_scenes_at_rest(capsys):
    assert validate.FLAGS.execute(validate.main, ["", "--moving", "--arc_deg=10"]) == 1
    assert "--arc_deg" in capsys.readouterr().err
