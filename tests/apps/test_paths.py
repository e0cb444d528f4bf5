"""Paths as people write them: relative to where they stand, with `~`, with spaces, through a link; in every program.

A shell does not expand the tilde of `--output=~/x`. Training runs: test_train_advice.py.
"""

import json
import os
import shutil

import numpy as np
import pytest

from easi3r_jax.apps import ablate_cue, calibrate, validate
from easi3r_jax.apps.study import main as study
from easi3r_jax.io.sequences import CLIPS
from easi3r_jax.weights.load import EMBEDDED

#: A folder, as it is typed in `work`, where the person stands.
PLACES = {"relative": "data", "above": "../above", "spaces": "some data", "tilde": "~/my data", "link": "link"}
CLIPS_HERE, FRAMES = ("demo", "second", "third"), 4
QUICK = ("--first=3", "--graph=complete", "--iterations=3", "--flow=none", "--nocompare_plain")


@pytest.fixture
def stand(tmp_path, monkeypatch, no_summary):
    """`stand(place)`: the typed and the real path of a folder, which is filled with a clip, masks and weights."""
    work, home = tmp_path / "work", tmp_path / "home"
    for folder in (work / "data", work / "some data", tmp_path / "above", home / "my data", tmp_path / "target"):
        folder.mkdir(parents=True)
    (work / "link").symlink_to(tmp_path / "target")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(work)

    def stand(place):
        typed = PLACES[place]
        real = (work / os.path.expanduser(typed)).resolve()
        shutil.copytree(EMBEDDED, real / "weights")
        for name, source in (*((n, "demo") for n in CLIPS_HERE), *((f"{n}_still", "demo_still") for n in CLIPS_HERE)):
            (real / name / "frames").mkdir(parents=True)
            for path in sorted((CLIPS / source / "frames").iterdir())[:FRAMES]:
                shutil.copy(path, real / name / "frames")
            with np.load(CLIPS / source / "ground_truth.npz") as file:
                np.savez(real / name / "ground_truth.npz", **{key: file[key][:FRAMES] for key in file.files})
        return typed, real

    return stand


def succeeds(done):
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_result_and_what_is_made_of_it(here, stand, monkeypatch, tmp_path):
    """Made with relative paths, then used from another folder: its clip and ground truth are still found."""
    typed, real = stand("relative")
    weights = f"--checkpoint={typed}/weights"
    succeeds(here("reconstruct", f"--seq={typed}/demo", weights, f"--output={typed}/result", *QUICK))
    assert json.loads((real / "result" / "config.json").read_text())["folder"] == str(tmp_path / "work")
    for name in ("elsewhere", "elsewhere/data/demo/frames"):  # other frames, at the same words
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
    monkeypatch.chdir(tmp_path / "elsewhere")
    out = succeeds(here("export", "--scene=../work/data/result", "--format=npz", "--output=../exports"))
    assert f"originals from {real / 'demo' / 'frames'}" in out
    succeeds(here("report", "--scene=../work/data/result", "--novideos", "--output=../page"))
    assert "not available" not in (tmp_path / "page" / "pictures.json").read_text()
    monkeypatch.chdir(tmp_path)
    for place in ("tilde", "spaces", "link"):
        monkeypatch.chdir(tmp_path / "work")
        typed = PLACES[place]
        shutil.copytree(real / "result", (tmp_path / "work" / os.path.expanduser(typed)) / "a, result")
        succeeds(here("export", f"--scene={typed}/a, result", "--format=ply", f"--output={typed}/exports"))
        succeeds(here("report", f"--scene={typed}/a, result", "--novideos", f"--output={typed}/page"))
        succeeds(here("view", f"--scene={typed}/a, result", f"--export_html={typed}/page/scene.html"))
        found = os.listdir(tmp_path / "work" / os.path.expanduser(typed))
        assert {"exports", "page"} <= set(found) and not os.path.exists("~")


@pytest.mark.parametrize("place", ["tilde", "link"])
def test_inputs_of_a_reconstruction(here, stand, place):
    """Clip, weights, masks, cameras, ground truth and output."""
    typed, real = stand(place)
    (real / "K.txt").write_text("90 90 47.5 31.5\n")
    shutil.copytree(real / "demo" / "frames", real / "masks")
    flags = (f"--checkpoint={typed}/weights", f"--masks={typed}/masks", f"--intrinsics={typed}/K.txt")
    truth = f"--ground_truth={typed}/demo/ground_truth.npz"
    succeeds(here("reconstruct", f"--seq={typed}/demo/frames", truth, f"--output={typed}/result", *flags, *QUICK))
    assert (real / "result" / "metrics.json").is_file()


@pytest.mark.parametrize("place", PLACES)
def test_programs_that_read_and_write_files(here, stand, place, monkeypatch):
    """Up to the work where that is long (exit code 130, as after Ctrl-C): what is not found is refused before it."""
    typed, real = stand(place)
    succeeds(here("convert", f"--source={typed}/weights", f"--output={typed}/converted"))
    assert (real / "converted" / "config.json").is_file()
    succeeds(here("convert", f"--source={typed}/converted", f"--output={typed}/official", "--to=official"))
    golden = os.path.join(os.path.dirname(__file__), "..", "golden", "pairs")
    shutil.copytree(golden, real / "golden" / "pairs")
    done = here("parity", f"--golden={typed}/golden", f"--json={typed}/parity.json")
    assert "No golden folder" not in done.stderr

    def begin(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(validate, "rendered", begin)
    monkeypatch.setattr(ablate_cue, "cue_parts", begin)
    monkeypatch.setattr(calibrate, "observed", begin)
    monkeypatch.setattr(study.scores, "evaluated", begin)
    weights = f"--checkpoint={typed}/weights"
    for program, *flags in (
        ("validate", weights, f"--json={typed}/out.json"),
        ("ablate_cue", weights, f"--clip={typed}/demo"),
        ("calibrate", weights, "--dataset=custom", f"--data_root={typed}", f"--output={typed}/readout.json"),
        ("calibrate", weights, f"--clips={typed}", f"--output={typed}/readout.json"),
        ("study", weights, f"--tuned={typed}/converted", f"--clips={typed}", f"--output={typed}/study", "--dev_num=1"),
    ):
        assert here(program, *flags).returncode == 130, program


@pytest.mark.parametrize("place", ["relative", "tilde", "spaces", "link"])
def test_an_evaluation_and_a_comparison(here, stand, place):
    typed, real = stand(place)
    flags = (
        "--dataset=custom",
        f"--data_root={typed}",
        "--num_sequences=1",
        "--allow_missing",
        f"--checkpoint={typed}/weights",
        "--flow=none",
    )
    quick = ("--iterations=2", "--graph=complete", "--motion=none", "--masks=none")
    succeeds(here("evaluate", *flags, *quick, f"--output={typed}/run"))
    succeeds(here("evaluate", "--compare", f"{typed}/run", f"{typed}/run"))
    assert (real / "run" / "report.md").is_file()
