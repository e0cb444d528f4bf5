"""Every stage against the published method's numbers, and the program that compares them."""

import json
import pathlib
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from easi3r_jax.apps.parity.folders import find_checks
from easi3r_jax.apps.parity.report import Golden, compare
from easi3r_jax.apps.parity.weights import golden_config, golden_model
from easi3r_jax.core.errors import InputError
from easi3r_jax.models import normalize_rgb
from easi3r_jax.weights.load import load_model
from tests.flags import callers_flags

ROOT = pathlib.Path(__file__).parents[2]
HERE = (
    *("aggregation", "checkpoints", "flow", "manifests", "metrics"),
    *("mast3r_tiny", "model_tiny_dpt", "model_tiny_linear", "pairs", "preprocess", "vggt_motion", "vggt_tiny"),
)


# Left to the heavy checks and to `make parity`: flow of a second size, and arrays that other tests compare too, in
# tests/models, tests/models/vggt, tests/motion, tests/weights/convert and tests/inference/refine.
HEAVY = ("aggregation", "checkpoints", "flow", "manifests", "mast3r_tiny", "vggt_motion", "vggt_tiny")


@pytest.mark.parametrize("kind", [pytest.param(k, marks=[pytest.mark.slow] * (k in HEAVY)) for k in HERE])
def test_every_comparison_holds(golden, kind):
    ((folder, check),) = find_checks(golden / kind)
    rows = list(check(folder))
    assert len(rows) >= 4
    assert not [row for row in rows if not row.passed]


def test_every_comparison_of_vggt4ds_cue_holds(golden, tmp_path):
    shutil.copytree(golden / "vggt_motion", tmp_path / "vggt_motion", ignore=shutil.ignore_patterns("refine_*.npz"))
    ((folder, check),) = find_checks(tmp_path / "vggt_motion")
    rows = list(check(folder))
    assert len(rows) >= 20 and not [row for row in rows if not row.passed]
    papers = [row for row in rows if "paperform_a_dyn" in row.name]
    assert papers and all(row.error <= row.tolerance <= 1e-5 for row in papers)


def test_every_comparison_of_flow_holds_at_a_size_that_needs_padding(golden, tmp_path):
    """RAFT by its small network; the large one: `make test-slow`, above."""
    left_out = shutil.ignore_patterns("*_128x160.npz", "raft_basic_*.npz")
    shutil.copytree(golden / "flow", tmp_path / "flow", ignore=left_out)
    ((folder, check),) = find_checks(tmp_path / "flow")
    rows = list(check(folder))
    assert len(rows) >= 12 and {row.stage for row in rows} == {
        f"flow/{name}_130x150" for name in ("raft_small", "sea_raft_m")
    }
    assert not [row for row in rows if not row.passed]


@pytest.mark.slow
def test_every_comparison_of_the_alignment_holds(golden, environment, tmp_path):
    """In a process of its own, which is not compiled as tests/flags.py asks for. `make test`: tests/alignment."""
    shutil.copytree(golden / "alignment", tmp_path / "alignment")
    program = ("-m", "experiments.parity", f"--golden={tmp_path / 'alignment'}", f"--json={tmp_path / 'rows.json'}")
    done = subprocess.run(
        [sys.executable, *program],
        cwd=ROOT,
        env={**environment, "XLA_FLAGS": callers_flags()},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert len(rows) >= 100
    assert not [row for row in rows if not row["passed"]]


def test_all_golden_folders_are_recognised(golden):
    """`trained` is for a test of its own."""
    assert {folder.name for folder, _ in find_checks(golden)} == {*HERE, "alignment"}


def test_a_trained_network_gives_the_reference_networks_output(golden, cache, monkeypatch):
    """Random weights, as of all other comparisons, keep every activation small."""
    monkeypatch.setenv("EASI3R_JAX_CACHE", str(cache))
    model = load_model(str(golden / "trained"), "exact")
    expected = np.load(golden / "trained" / "expected.npz")
    images = expected["images"]  # (pairs, 2, H, W, 3) in [0, 1], not of whole 255ths
    grid = model.grid(images.shape[2:4])

    @jax.jit
    def run(model, *views):
        features = [model.encoder(view)[0] for view in views]
        return model.predict(*features, model.decode(*features, grid), grid)

    found = run(model, *(2 * images[:, view] - 1 for view in (0, 1)))
    for name, ours in zip(("pts3d_1", "conf_1", "pts3d_2", "conf_2"), found, strict=True):
        np.testing.assert_allclose(ours, expected[name], atol=1e-5 * np.abs(expected[name]).max(), err_msg=name)


def test_frames_reach_the_network_in_its_range():
    rgb = jnp.asarray([[0, 51, 255]], jnp.uint8)
    np.testing.assert_allclose(normalize_rgb(rgb), [[-1, -0.6, 1]], atol=1e-7)


@pytest.mark.parametrize(
    ("ours", "passes"),
    [([1.0, 2.0], True), ([1.0, 2.0 + 3e-5], False), ([1.0, np.nan], False), ([1.0, 2.0, 3.0], False)],
)
def test_a_row_passes_only_within_its_tolerance(ours, passes):
    assert compare("stage", "array", np.array(ours), np.array([1.0, 2.0]), 1e-5).passed is passes


@pytest.fixture
def tiny(golden, tmp_path):
    """A golden folder of its own: the linear network's."""
    folder = tmp_path / "golden" / "model_tiny_linear"
    shutil.copytree(golden / "model_tiny_linear", folder)
    return folder


def test_the_program_prints_a_table_and_writes_json(here, tiny, tmp_path):
    done = here("parity", f"--golden={tiny.parent}", f"--json={tmp_path / 'rows.json'}")
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert all(row["passed"] for row in rows)
    assert {"stage", "name", "max_abs", "error", "tolerance"} <= set(rows[0])
    assert done.stdout.count("\nok  ") + done.stdout.startswith("ok  ") == len(rows)


def test_a_number_that_is_off_fails_the_program(here, tiny):
    path = tiny / "linear_64x96.npz"
    arrays = dict(np.load(path))
    name = next(n for n in sorted(arrays) if n.endswith("pts3d_1") or "conf" in n)
    arrays[name] = arrays[name].copy()
    arrays[name].flat[7] += 1e-4 * np.abs(arrays[name]).max()
    np.savez(path, **arrays)
    done = here("parity", f"--golden={tiny}", "--noall")
    assert done.returncode == 1
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("FAIL")]
    assert name in line
    assert "1 of" in done.stderr


def test_an_unknown_array_fails_the_program(here, tiny):
    path = tiny / "linear_64x96.npz"
    np.savez(path, surprise=np.ones(3, np.float32), **np.load(path))
    done = here("parity", f"--golden={tiny}", "--noall")
    assert done.returncode == 1
    assert "surprise: unknown array" in done.stdout


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda folder: (folder / "config.json").unlink(), "No golden folder"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json"),
        (lambda folder: (folder / "linear_64x96.npz").unlink(), "are missing"),
    ],
    ids=["no description", "damaged description", "no arrays"],
)
def test_a_folder_without_numbers_is_an_error(here, tiny, spoil, says):
    spoil(tiny)
    done = here("parity", f"--golden={tiny}")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert says in done.stderr


def test_unread_arrays_are_reported(tmp_path):
    np.savez(tmp_path / "x.npz", read=np.ones(2), state_3=np.ones(2), surprise=np.ones(2))
    golden = Golden(tmp_path / "x.npz")
    assert compare("stage", "read", np.ones(2), golden["read"], 0.0).passed
    (row,) = golden.unread("stage", r"state_\d")
    assert row.name == "surprise: unknown array"
    assert not row.passed


def test_a_network_needs_one_description(golden, tmp_path):
    shutil.copytree(golden / "pairs", tmp_path / "alone")
    (tmp_path / "alone" / "config.json").write_text("{}")
    with pytest.raises(InputError, match="do not either"):
        golden_config(tmp_path / "alone", "linear", (64, 96))
    for name, depth in (("a", "2"), ("b", "3")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"model": {"enc_depth": depth}}))
    with pytest.raises(InputError, match="different"):
        golden_config(tmp_path / "alone", "linear", (64, 96))


def test_bfloat16_has_a_gate_of_its_own(golden):
    """The accelerators' default: 8 bits of mantissa are 0.4 % a product; measured 1.1 to 2.2 % after all layers."""
    folder = golden / "model_tiny_linear"
    entry = json.loads((folder / "config.json").read_text())["files"]["linear_64x96.npz"]
    config = golden_config(folder, entry["head"], (entry["H"], entry["W"]))
    model = golden_model(config, entry["weight_seed"], entry["gains"]).with_precision("bf16")
    expected = np.load(folder / "linear_64x96.npz")
    grid = model.grid((entry["H"], entry["W"]))

    @jax.jit
    def run(model, rgb):
        features = model.encode(rgb)
        decoded = model.decode(features[:1], features[1:], grid)
        return features, decoded.stats, model.predict(features[:1], features[1:], decoded, grid)

    features, stats, predicted = jax.device_get(run(model, expected["frames_u8"]))
    points_i, confidence_i, points_j, confidence_j = predicted
    found = {
        "enc_tokens": features,
        "plain_ab_attn_k_b1": stats.src[0].reshape(-1, *grid).transpose(1, 2, 0),
        "plain_ab_attn_k_b2": stats.ref[0].reshape(-1, *grid).transpose(1, 2, 0),
        "plain_ab_pts3d_1": points_i[0],
        "plain_ab_conf_1": confidence_i[0],
        "plain_ab_pts3d_2": points_j[0],
        "plain_ab_conf_2": confidence_j[0],
    }
    for name, ours in found.items():
        error = compare("bfloat16", name, ours, expected[name], 0.04).error
        assert 1e-4 < error <= 0.04, name  # as exact as float32 would mean that it was not used
