"""`python -m experiments.validate`, and what it says of the network that ships."""

import json

import pytest

from easi3r_jax.apps import validate


@pytest.fixture(scope="module")
def figures(tmp_path_factory):
    path = tmp_path_factory.mktemp("validate") / "figures.json"
    assert validate.FLAGS.execute(validate.main, ["", "--num=32", f"--json={path}"]) == 0
    return json.loads(path.read_text())


def test_the_network_that_ships_does_what_its_card_says(figures):
    """docs/embedded.md has the figures of 256 pairs; these are of the first 32 of them."""
    model = figures["model"]
    assert model["error_1"] < 0.09 and model["error_2"] < 0.097
    assert model["abs_rel"] < 0.095 and model["delta_1_25"] > 0.89
    assert model["rotation_deg"] < 4.1 and model["focal"] < 0.1


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
