"""Invalid input: one line that says what is wrong and what to do, exit code 1, nothing left behind."""

import os
import pathlib
import shutil

import cv2
import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from easi3r_jax.apps import clips, modes, reconstruct
from easi3r_jax.io import export
from easi3r_jax.io.sequences import CLIPS
from easi3r_jax.weights.load import EMBEDDED

QUICK = {"first": 3, "graph": "complete", "iterations": 5, "compare_plain": False}


@pytest.fixture(autouse=True)
def own_cache(cache, monkeypatch, no_summary):
    monkeypatch.setenv("EASI3R_JAX_CACHE", str(cache))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def run(tmp_path, capsys):
    """Runs the program with flags; returns its exit code and stderr."""

    def run(**values):
        values = {**QUICK, "output": str(tmp_path / "out" / "result"), **values}
        code = reconstruct.FLAGS.execute(clips.main, ["", *(f"--{k}={v}" for k, v in values.items())])
        return code, capsys.readouterr().err

    return run


@pytest.fixture
def complaint(run, tmp_path):
    """The one line with which the program refuses; it must leave no output."""

    def complaint(**values):
        code, errors = run(**values)
        assert code == 1, errors
        assert len(errors.splitlines()) == 1, errors
        assert errors.startswith("error: ")
        if "output" not in values:
            assert not list((tmp_path / "out").rglob("*"))
        return errors

    return complaint


@pytest.fixture
def images(tmp_path):
    """A folder of four good frames."""
    folder = tmp_path / "images"
    shutil.copytree(CLIPS / "demo" / "frames", folder)
    for path in sorted(folder.iterdir())[4:]:
        path.unlink()
    return folder


@pytest.fixture
def network(tmp_path):
    """Writes the embedded network with changed tensors, as a folder that `--checkpoint` takes."""

    def network(change):
        folder = tmp_path / "network"
        folder.mkdir()
        shutil.copy(EMBEDDED / "config.json", folder)
        tensors = load_file(EMBEDDED / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")
        return str(folder)

    return network


def video(path: pathlib.Path, num_frames: int = 40) -> pathlib.Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 24, (96, 64))
    rng = np.random.default_rng(0)
    for _ in range(num_frames):
        writer.write(rng.integers(0, 256, (64, 96, 3), np.uint8))
    writer.release()
    return path


def test_good_images_pass(run, images, tmp_path):
    """What the other tests spoil."""
    code, errors = run(seq=str(images))
    assert (code, errors) == (0, "")
    assert export.load_scene(tmp_path / "out" / "result" / "scene.npz").depth.shape == (3, 64, 96)


def test_no_such_path(complaint, tmp_path):
    assert "nowhere.mp4" in complaint(seq=str(tmp_path / "nowhere.mp4"))


def test_empty_folder(complaint, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "no images" in complaint(seq=str(tmp_path / "empty")).lower()


def test_one_unreadable_image(complaint, images):
    victim = sorted(images.iterdir())[1]
    victim.write_bytes(victim.read_bytes()[:200])
    assert victim.name in complaint(seq=str(images))


def test_text_named_mp4(complaint, tmp_path):
    path = tmp_path / "notes.mp4"
    path.write_text("This is no video.\n" * 100)
    assert "notes.mp4" in complaint(seq=str(path))


def test_video_cut_in_the_middle(complaint, tmp_path):
    path = video(tmp_path / "cut.mp4")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert "cut.mp4" in complaint(seq=str(path), first=0)


def test_images_of_different_sizes(complaint, images):
    name = sorted(images.iterdir())[2]
    cv2.imwrite(str(name), np.zeros((32, 48, 3), np.uint8))
    message = complaint(seq=str(images))
    assert name.name in message
    assert "48x32" in message


def test_one_pixel(complaint, tmp_path):
    folder = tmp_path / "pixel"
    folder.mkdir()
    cv2.imwrite(str(folder / "0.png"), np.zeros((1, 1, 3), np.uint8))
    assert "1x1" in complaint(seq=str(folder))


@pytest.mark.parametrize("num_frames", [1, pytest.param(2, marks=pytest.mark.slow), 3])
def test_identical_frames_are_reconstructed(run, images, tmp_path, num_frames):
    first, *others = sorted(images.iterdir())
    for path in others:
        shutil.copy(first, path)
    code, errors = run(seq=str(images), first=num_frames)
    assert (code, errors) == (0, "")
    scene = export.load_scene(tmp_path / "out" / "result" / "scene.npz")
    for name, value in vars(scene).items():
        assert len(value) == num_frames
        assert np.isfinite(value).all(), name


def test_ground_truth_that_does_not_fit(complaint, images, tmp_path):
    np.savez(tmp_path / "truth.npz", depth=np.ones((3, 10, 10), np.float32))
    message = complaint(seq=str(images), ground_truth=str(tmp_path / "truth.npz"))
    assert "depth has shape (3, 10, 10)" in message


def test_invalid_ground_truth(complaint, images, tmp_path):
    (tmp_path / "truth.npz").write_bytes(b"PK\x03\x04 but no zip")
    assert "truth.npz" in complaint(seq=str(images), ground_truth=str(tmp_path / "truth.npz"))


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"graph": "web-3"}, "web-3"),
        ({"graph": "oneref-7"}, "oneref-7"),
        ({"otsu_classes": "2,7"}, "otsu_classes"),
        ({"every": 2, "fps": 5.0}, "not both"),
        ({"foreground": "3"}, "'3'"),
        ({"foreground": "some"}, "'some'"),
        ({"export": "colmap,obj"}, "'obj'"),
        ({"foreground": "\N{SUPERSCRIPT TWO}"}, "foreground".title()),
        ({"learning_rate": 0.001, "learning_rate_min": 0.01}, "learning_rate_min"),
    ],
)
def test_impossible_options_fail_before_the_work(complaint, monkeypatch, values, says):
    monkeypatch.setattr(modes.pipeline, "encode", lambda *_, **__: pytest.fail("began to work"))
    if says not in ("oneref-7", "'3'"):  # these two depend on the clip's length
        monkeypatch.setattr(
            reconstruct, "load_backbone_and_metadata", lambda *_, **__: pytest.fail("loaded the network")
        )
    assert says in complaint(seq="demo", **values)


def test_nan_in_the_weights(complaint, network):
    def spoil(tensors):
        tensors["dec_norm.weight"][3] = np.nan

    message = complaint(checkpoint=network(spoil))
    assert "dec_norm.weight" in message
    assert "NaN" in message


def test_a_missing_a_misshapen_and_an_extra_tensor_are_reported_together(complaint, network):
    def spoil(tensors):
        tensors["enc_norm.weight"] = np.ones(7, np.float32)
        tensors["mystery.weight"] = tensors.pop("dec_norm.weight")

    message = complaint(checkpoint=network(spoil))
    for name in ("enc_norm.weight", "mystery.weight", "dec_norm.weight"):
        assert name in message


@pytest.mark.parametrize(
    "name", ["bad_truncated.pth", "evil_os_system.pth", "evil_plain_pickle_eval.pth", "bad_text.pth"]
)
def test_truncated_and_malicious_checkpoints(complaint, golden, name):
    message = complaint(checkpoint=str(golden / "checkpoints" / name))
    assert name in message
    assert "golden-harmless" not in message


def test_no_such_checkpoint(complaint):
    assert "./nothing.pth" in complaint(checkpoint="./nothing.pth")
    assert "no checkpoint at" in complaint(checkpoint="checkpoints/typo.pth")  # not asked for on the hub


def test_hub_name_without_a_network(complaint):
    name = "naver/DUSt3R_ViTLarge_BaseDecoder_512_dpt"
    message = complaint(checkpoint=name)
    assert name in message
    assert "model.safetensors" in message
    assert "config.json" in message


def test_another_folder_is_never_replaced(complaint, tmp_path):
    mine = tmp_path / "holiday"
    mine.mkdir()
    (mine / "photo.png").write_bytes(b"mine")
    assert "not an earlier result" in complaint(output=str(mine))
    assert (mine / "photo.png").read_bytes() == b"mine"


def test_output_where_nothing_can_be_written(complaint, tmp_path, monkeypatch):
    monkeypatch.setattr(reconstruct, "load_backbone_and_metadata", lambda *_, **__: pytest.fail("began to work"))
    (tmp_path / "file").write_text("x")
    assert "choose another folder" in complaint(output=str(tmp_path / "file" / "result"))
    if pathlib.Path("/proc/self").is_dir():  # nobody, root included, makes a folder there
        assert "choose another folder" in complaint(output="/proc/result")


def test_full_disk_leaves_the_older_result(run, tmp_path, monkeypatch):
    folder = tmp_path / "out" / "result"
    (folder / "depth").mkdir(parents=True)
    for name in ("scene.npz", "scene.ply", "depth/00000.npy"):
        (folder / name).write_bytes(b"older")
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    write = np.savez

    def full(*arguments, **options):
        write(*arguments, **options)
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(np, "savez", full)
    code, errors = run(seq="demo")
    assert code == 1
    assert "disk is full" in errors
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before
    assert os.listdir(folder.parent) == ["result"]


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (KeyboardInterrupt(), 130, "Interrupted"),
        (MemoryError(), 1, "fewer frames"),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 byte"), 1, "fewer frames"),
    ],
    ids=["Ctrl-C", "memory", "device memory"],
)
def test_interruptions_and_exhaustion(run, monkeypatch, tmp_path, error, code, says):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(modes.pipeline, "reconstruct", fail)
    found, errors = run(seq="demo")
    assert found == code
    assert says in errors
    assert len(errors.splitlines()) == 1
    assert not list((tmp_path / "out").rglob("*"))


def test_a_bug_of_the_library_keeps_its_traceback(run, monkeypatch):
    def fail(*_, **__):
        raise ZeroDivisionError

    monkeypatch.setattr(modes.pipeline, "reconstruct", fail)
    with pytest.raises(ZeroDivisionError):
        run(seq="demo")
