"""The program with SAM 2 on PyTorch, with random weights: JAX and PyTorch in one process, with and without windows."""

import json

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from easi3r_jax.io import export
from tests.sam2_network import save_small_sam2

pytestmark = pytest.mark.torch

QUICK = {"graph": "complete", "iterations": 5, "compare_plain": False, "flow": "none"}


def test_masks_are_refined_at_once_and_in_windows(reconstruct_here, tmp_path):
    """Every run aligns five frames at a time, so that all share compiled programs."""
    save_small_sam2(tmp_path / "sam2")
    refine = {"refine": "sam2", "refine_checkpoint": tmp_path / "sam2"}
    scenes = []
    for flags in ({"first": 5}, {"first": 5, **refine}, {"first": 7, "window": 5, "overlap": 3, **refine}):
        code, _, errors = reconstruct_here(**QUICK, **flags)
        assert code == 0 and not errors, errors
        scenes.append(export.load_scene(tmp_path / "out").dynamic_mask)
    plain, refined, windows = scenes
    assert (refined & plain == plain).all() and np.any(refined != plain)
    assert len(windows) == 7
    np.testing.assert_array_equal(windows[:3], refined[:3])  # the first window's alone
    record = json.loads((tmp_path / "out" / "config.json").read_text())
    assert record["refiner"]["source_name"] == str(tmp_path / "sam2")
    assert len(record["refiner"]["source_sha256"]) == 64


def test_an_object_that_is_seen_once_is_followed_or_shown_once(reconstruct_here, tmp_path):
    """Masks of one's own, of which one is not empty: never in every second frame."""
    save_small_sam2(tmp_path / "sam2")
    (tmp_path / "masks").mkdir()
    for t in range(5):
        mask = np.zeros((64, 96), np.uint8)
        mask[20:40, 30:60] = 255 * (t == 2)
        Image.fromarray(mask).save(tmp_path / "masks" / f"{t}.png")
    flags = {"masks": tmp_path / "masks", "refine": "sam2", "refine_checkpoint": tmp_path / "sam2"}
    code, _, errors = reconstruct_here(**QUICK, first=5, **flags)
    assert code == 0 and not errors, errors
    shown = np.any(export.load_scene(tmp_path / "out").dynamic_mask, axis=(1, 2))
    assert shown.tolist() in ([True] * 5, [t == 2 for t in range(5)])


@pytest.mark.parametrize("change", ["of SAM 2.0", "NaN"])
def test_weights_that_are_not_exactly_the_networks_are_refused(reconstruct_here, tmp_path, change):
    save_small_sam2(tmp_path / "sam2")
    if change == "NaN":
        tensors = {name: np.full_like(x, np.nan) for name, x in load_file(tmp_path / "sam2/model.safetensors").items()}
        save_file(tensors, tmp_path / "sam2/model.safetensors", metadata={"format": "pt"})
    else:
        config = json.loads((tmp_path / "sam2/config.json").read_text())
        config |= {
            "enable_occlusion_spatial_embedding": False,
            "enable_temporal_pos_encoding_for_object_pointers": False,
        }
        (tmp_path / "sam2/config.json").write_text(json.dumps(config))
    code, _, errors = reconstruct_here(**QUICK, first=5, refine="sam2", refine_checkpoint=tmp_path / "sam2")
    assert code == 1 and len(errors.splitlines()) == 1 and "model.safetensors" in errors
    assert ("not of this configuration" if change == "of SAM 2.0" else "NaN") in errors
