"""`python -m experiments.alignment_study`, small: the rows whose results theory determines."""

import json

import pytest

from easi3r_jax.apps.alignment_study import METRICS, ROWS, START_METRICS

# More than thirteen alignments, each compiled: two minutes.
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def study(command, tmp_path_factory):
    """The program's output and the file that it writes."""
    file = tmp_path_factory.mktemp("study") / "study.json"
    flags = ("--num=1", "--num_frames=4", "--iterations=100", "--graph=complete")
    done = command("alignment_study", *flags, f"--json={file}")
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(file.read_text())


def test_every_row_has_every_metric(study):
    out, record = study
    (given,), (starts,) = record["given"], record["starts"]
    assert list(given) == list(ROWS) and len(starts) == 4
    for rows, columns in ((given, METRICS), (starts, START_METRICS)):
        for name, row in rows.items():
            assert all(row[metric] is not None for metric in columns), name
            assert any(line.strip().startswith(name) for line in out.splitlines())


def test_known_cameras_have_no_error(study):
    (given,) = study[1]["given"]
    for name, (kinds, _) in ROWS.items():
        if "intrinsics" in kinds:
            assert given[name]["focal_relative_error"] < 1e-5, name
        if "poses" in kinds:
            assert given[name]["ate"] < 1e-5 and given[name]["rpe_rotation_deg"] < 0.1, name
    assert given["points only"]["ate"] > 1e-3


def test_inputs_improve_the_other_estimates(study):
    """On this clip; docs/alignment.md has the means over more and longer ones."""
    (given,) = study[1]["given"]
    assert given["flow, masks: truth"]["ate"] < given["points only"]["ate"]
    assert given["known intrinsics, flow, masks: truth"]["ate"] < given["known intrinsics"]["ate"]
    # Noise along the rays does not affect the focal length; poses must not change it.
    assert given["known poses"]["focal_relative_error"] < 0.005
    assert given["known intrinsics and poses"]["abs_rel"] < 1.02 * given["points only"]["abs_rel"]


def test_the_alignment_improves_from_any_initialisation(study):
    (starts,) = study[1]["starts"]
    for name, row in starts.items():
        assert row["loss"] < row["start_loss"], name
