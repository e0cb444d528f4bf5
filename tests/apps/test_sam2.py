"""The program with SAM 2 on PyTorch, with random weights: JAX and PyTorch in one process, with and without windows."""

import json

import numpy as np
import pytest

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
