"""VGGT's stages against reference arrays: see docs/parity.md for what is compared, and the tolerances."""

import json

import pytest

from easi3r_jax.apps.parity import vggt
from easi3r_jax.apps.parity.report import Golden
from easi3r_jax.apps.parity.weights import golden_vggt, golden_vggt_config


@pytest.fixture(scope="module")
def folder(golden):
    return golden / "vggt_tiny"


@pytest.fixture(scope="module")
def settings(folder):
    return json.loads((folder / "config.json").read_text())


# The third file is compared by tests/apps/test_parity.py, in `make test-slow`.
@pytest.mark.parametrize(("name", "arrays"), [("dino_3x70x56.npz", 38), ("conv_3x56x70.npz", 7)])
def test_tokens_cameras_depth_points_and_tracks(folder, settings, name, arrays):
    entry = settings["files"][name]
    model = golden_vggt(golden_vggt_config(settings, entry["kind"]), entry)
    rows = list(vggt.check_network(name, model, Golden(folder / name)))
    assert len(rows) >= arrays and not [row for row in rows if not row.passed]


def test_the_position_embedding_is_resized_with_antialiasing(folder):
    golden = Golden(folder / "posembed_interp_37.npz")
    rows = list(vggt.check_positions("", golden))
    assert len(rows) == 2 and not [row for row in rows if not row.passed]


def test_images_are_resized_cropped_and_padded(folder, settings):
    rows = list(vggt.check_images("", Golden(folder / "preprocess.npz"), settings["preprocess"]))
    assert len(rows) == 24 and not [row for row in rows if not row.passed]
