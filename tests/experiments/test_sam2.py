"""The program with SAM 2 on PyTorch, of random weights: JAX and PyTorch in one process, at once and in windows."""

import json

import numpy as np
import pytest

from easi3r_jax import export
from tests.sam2_network import save_small_sam2

pytestmark = pytest.mark.torch

QUICK = {"first": 5, "graph": "complete", "iterations": 5, "compare_plain": False, "flow": "none"}


@pytest.mark.parametrize("flags", [{}, {"window": 4, "overlap": 2}])
def test_masks_are_refined(reconstruct_here, tmp_path, flags):
    save_small_sam2(tmp_path / "sam2")
    masks = {}
    for refine in ({}, {"refine": "sam2", "refine_checkpoint": tmp_path / "sam2"}):
        code, _, errors = reconstruct_here(**QUICK, **flags, **refine)
        assert code == 0 and not errors, errors
        masks[bool(refine)] = export.load_scene(tmp_path / "out").dynamic_mask
    assert (masks[True] & masks[False] == masks[False]).all()
    assert np.any(masks[True] != masks[False])
    record = json.loads((tmp_path / "out" / "config.json").read_text())
    assert record["refiner"]["source_name"] == str(tmp_path / "sam2")
    assert len(record["refiner"]["source_sha256"]) == 64
