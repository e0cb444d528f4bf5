"""Programs whose inputs and results lie in an S3 store."""

from __future__ import annotations

import importlib
import io
import pathlib
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest

from easi3r_jax.apps.command import PROGRAMS
from easi3r_jax.apps.run_folder import save_so_far
from easi3r_jax.core.errors import InputError
from easi3r_jax.io import remote, results
from easi3r_jax.io.remote import upload
from easi3r_jax.io.sequences import CLIPS, load_frames
from easi3r_jax.weights.checkpoint import save_checkpoint
from easi3r_jax.weights.load import load_model, on_this_machine
from tests.networks import network, small_network

FRAMES = 4
ROOT = pathlib.Path(__file__).parents[3]


@pytest.fixture
def run(cached, capsys, monkeypatch) -> Callable[..., subprocess.CompletedProcess]:
    """`run("export", "--scene=...")` runs a program in this process."""
    monkeypatch.setattr(results, "write_summary", lambda path, *_, **__: path.touch())

    def execute(program: str, *arguments: str) -> subprocess.CompletedProcess:
        module = importlib.import_module(f"easi3r_jax.apps.{PROGRAMS[program][0]}")
        capsys.readouterr()
        code = module.FLAGS.execute(module.main, [program, *arguments])
        return subprocess.CompletedProcess(arguments, code, *capsys.readouterr())

    return execute


def train(*arguments: str) -> subprocess.CompletedProcess:
    """In a process of its own: it splits the CPU into devices before JAX starts."""
    command = [sys.executable, "-m", "experiments.train", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)


@pytest.fixture
def elsewhere(tmp_path, monkeypatch, forget) -> Callable[[], None]:
    """Goes on as another machine, which has nothing but the store."""

    def move() -> None:
        forget()
        monkeypatch.setenv("EASI3R_JAX_CACHE", str(tmp_path / "another"))

    return move


def put_clip(bucket, name: str, like: str = "demo") -> None:
    """The first frames of a bundled clip, with their ground truth."""
    for frame in range(FRAMES):
        bucket.put(f"{name}/frames/{frame:05d}.png", (CLIPS / like / "frames" / f"{frame:05d}.png").read_bytes())
    with np.load(CLIPS / like / "ground_truth.npz") as file:
        arrays = {key: file[key] if file[key].ndim == 2 else file[key][:FRAMES] for key in file.files}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    bucket.put(f"{name}/ground_truth.npz", buffer.getvalue())


def put_network(bucket, tmp_path: pathlib.Path) -> str:
    config = small_network()
    save_checkpoint(tmp_path / "net", config, network(config), source_name="tests", licence="none")
    bucket.files.put(str(tmp_path / "net"), f"{bucket.address}/net", recursive=True)
    return f"{bucket.address}/net"


def test_a_clip_and_weights_from_the_store_and_the_result_back(bucket, run, elsewhere, tmp_path, monkeypatch):
    put_clip(bucket, "clips/room")
    checkpoint = put_network(bucket, tmp_path)
    output = f"{bucket.address}/results/room"
    arguments = (f"--seq={bucket.address}/clips/room", f"--checkpoint={checkpoint}", "--iterations=2", "--flow=none")
    done = run("reconstruct", *arguments, "--nocompare_plain", f"--output={output}")
    assert done.returncode == 0, done.stderr
    assert f"result: {output}" in done.stdout
    elsewhere()
    result = results.load_result(f"{output}/scene.npz")
    assert result.scene.depth.shape[0] == FRAMES
    assert result.record["options"]["seq"] == f"{bucket.address}/clips/room"

    refused = run("export", f"--scene={output}", "--format=ply")
    assert (refused.returncode, "say where to write with --output" in refused.stderr) == (1, True)
    for name in ("ply", "npz"):
        exported = run("export", f"--scene={output}", f"--format={name}", f"--output={bucket.address}/exports")
        assert exported.returncode == 0, exported.stderr
    assert {name.partition("/")[0] for name in bucket.names("exports")} == {"ply", "npz", remote.MARKER}
    # What config.json names is not looked up without being asked, and can be given.
    looked_up = run("export", f"--scene={output}", "--format=npz", f"--output={tmp_path}/exports")
    assert f"the clip is at {bucket.address}/clips/room: give it as --source" in looked_up.stdout

    with monkeypatch.context() as patched:
        patched.setattr(upload._Uploaded, "_put", lambda *_: (_ for _ in ()).throw(ConnectionError("the line is dead")))
        broken = run("reconstruct", *arguments, "--nocompare_plain", f"--output={output}")
    assert broken.returncode == 1
    assert "the line is dead" in broken.stderr
    assert broken.stderr.count("\n") == 1
    with pytest.raises(InputError, match="was not completely written"):
        results.load_result(output)


def test_wrong_addresses_are_one_line_before_anything_is_computed(bucket, run):
    put_clip(bucket, "clip")
    clip = f"--seq={bucket.address}/clip"
    for arguments, says in (
        ((f"--seq={bucket.address}/none",), "there is nothing there"),
        (("--seq=s3://no-such-bucket-of-ours/clip",), "there is no such bucket"),
        ((clip, "--output=s3://no-such-bucket-of-ours/result"), "there is no such bucket"),
        ((clip, f"--output={bucket.address}/clip"), "not empty and not an earlier result"),
        ((clip, f"--checkpoint={bucket.address}/none.pth", f"--output={bucket.address}/r"), "there is nothing there"),
    ):
        done = run("reconstruct", *arguments)
        assert done.returncode == 1
        assert says in done.stderr
        assert done.stderr.startswith("error: Cannot ") or "not an earlier result" in done.stderr
        assert done.stderr.count("\n") == 1
    assert bucket.names("r") == set()


def test_an_evaluation_goes_on_on_another_machine(bucket, run, elsewhere, tmp_path):
    put_clip(bucket, "data/one")
    put_clip(bucket, "data/two", "demo_still")
    checkpoint = put_network(bucket, tmp_path)
    output = f"{bucket.address}/evaluation"
    arguments = ("--dataset=custom", f"--data_root={bucket.address}/data", f"--checkpoint={checkpoint}")
    arguments += ("--iterations=2", "--flow=none", f"--output={output}")
    first = run("evaluate", *arguments, "--num_sequences=1")
    assert first.returncode == 0, first.stderr
    assert "1 sequences, 1 to do" in first.stdout
    elsewhere()
    second = run("evaluate", *arguments)
    assert second.returncode == 0, second.stderr
    assert "2 sequences, 1 to do" in second.stdout
    assert f"report: {output}/report.md" in second.stdout
    assert len(bucket.get("evaluation/results.jsonl").splitlines()) == 2
    compared = run("evaluate", "--compare", output, output)
    assert compared.returncode == 0, compared.stderr
    assert f"A: {output}" in compared.stdout


@pytest.mark.slow
def test_a_training_run_goes_on_on_another_machine(bucket, elsewhere):
    put_clip(bucket, "data/one")
    put_clip(bucket, "data/two", "demo_still")
    output = f"{bucket.address}/run"
    arguments = ("--preset=tiny", f"--data=pairs:{bucket.address}/data:0.5", "--matching_weight=0", "--steps=2")
    arguments += ("--attention_weight=0", "--batch_size=2", "--held_out=2", "--held_out_final=2", "--log_every=1")
    first = train(*arguments, "--stop_after=1", f"--output={output}")
    assert first.returncode == 0, first.stderr
    elsewhere()
    second = train(*arguments, f"--output={output}", "--resume")
    assert second.returncode == 0, second.stderr
    header, *lines = bucket.get("run/log.csv").decode().splitlines()
    assert header.startswith("step")
    assert [int(line.split(",")[0]) for line in lines] == [1, 2]
    assert load_model(f"{output}/model").config.image_size


def test_an_upload_on_the_way_that_fails_is_a_warning(bucket, monkeypatch, capsys):
    with remote.writing(f"{bucket.address}/run") as output:
        output.folder.mkdir()
        (output.folder / "a").write_text("a")
        with monkeypatch.context() as patched:
            patched.setattr(upload._Uploaded, "_put", lambda *_: (_ for _ in ()).throw(ConnectionError("dead")))
            save_so_far(output)
        assert "warning: Cannot write" in capsys.readouterr().err
    assert bucket.names("run") == {"a", remote.MARKER}


def test_the_library_takes_addresses(bucket):
    put_clip(bucket, "clip")
    assert len(load_frames(f"{bucket.address}/clip").rgb) == FRAMES
    assert len(load_frames(f"{bucket.address}/clip/frames/00000.png").rgb) == 1


def test_models_on_the_hub_are_left_to_its_own_client():
    silent = lambda *_: None  # noqa: E731
    assert on_this_machine("hf://owner/name", silent) == on_this_machine("owner/name", silent) == "owner/name"
    assert on_this_machine("embedded", silent) == "embedded"
