"""`python -m experiments.synthesize`, from the command line to the files, and back through the project's readers."""

import json
import os
import pathlib
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from easi3r_jax.apps import synthesize
from easi3r_jax.apps.study.clips import folders
from easi3r_jax.core.config import FrameConfig
from easi3r_jax.core.geometry import camera, se3
from easi3r_jax.evaluation.ground_truth import load_ground_truth
from easi3r_jax.io import export
from easi3r_jax.io.sequences import find_sequence
from easi3r_jax.io.video import load_frames
from easi3r_jax.training.datasets import open_dataset

SMALL = ("--size=20x33", "--frames=3", "--num_objects=9", "--num_moving=5", "--seed=7")
SHAPES = {
    "depth": (3, 20, 33),
    "masks": (3, 20, 33),
    "world_from_cam": (3, 4, 4),
    "intrinsics": (3, 3, 3),
    "instance": (3, 20, 33),
    "flow_forward": (2, 20, 33, 2),
    "flow_backward": (2, 20, 33, 2),
    "visible_forward": (2, 20, 33),
    "visible_backward": (2, 20, 33),
}


def execute(*arguments: str) -> int:
    return synthesize.FLAGS.execute(synthesize.main, ["", *arguments])


def arrays_of(folder: pathlib.Path) -> dict[str, np.ndarray]:
    with np.load(folder / "ground_truth.npz", allow_pickle=False) as file:
        return dict(file)


def pixels_of(folder: pathlib.Path) -> np.ndarray:
    return np.stack([np.asarray(Image.open(path)) for path in sorted((folder / "frames").iterdir())])


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> pathlib.Path:
    """Two clips and their twins, of an odd size."""
    folder = tmp_path_factory.mktemp("clips") / "out"
    assert execute(*SMALL, "--num=2", f"--output={folder}") == 0
    return folder


def test_folders_of_clips_and_twins(clips):
    names = ["clip_7_00000", "clip_7_00000_still", "clip_7_00001", "clip_7_00001_still"]
    assert sorted(os.listdir(clips)) == names
    for name in names:
        assert sorted(os.listdir(clips / name)) == ["clip.json", "frames", "ground_truth.npz"]
        assert sorted(os.listdir(clips / name / "frames")) == ["00000.png", "00001.png", "00002.png"]
        assert pixels_of(clips / name).shape == (3, 20, 33, 3)
        arrays = arrays_of(clips / name)
        assert {key: array.shape for key, array in arrays.items()} == SHAPES
        assert (arrays["depth"] > 0).all()
        assert arrays["masks"].dtype == arrays["visible_forward"].dtype == bool
    assert any(arrays_of(clips / name)["masks"].any() for name in names)
    assert not any(arrays_of(clips / name)["masks"].any() for name in names if name.endswith("_still"))
    assert (pixels_of(clips / names[0]) != pixels_of(clips / names[2])).mean() > 0.5


def test_the_record_says_how_a_clip_was_made(clips):
    record = json.loads((clips / "clip_7_00001_still" / "clip.json").read_text())
    assert (record["seed"], record["number"], record["moving"], record["kind"]) == (7, 1, False, "clips")
    assert record["options"]["size"] == [20, 33]
    assert record["options"]["num_moving"] == 5


def test_files_hold_what_they_say(clips):
    """Flow and visibility of a twin follow from its own depth and cameras, as read from the file."""
    a = arrays_of(clips / "clip_7_00000_still")
    points = se3.transform_points(a["world_from_cam"], camera.unproject(jnp.asarray(a["depth"]), a["intrinsics"]))
    for name, start, end in (
        ("forward", slice(None, -1), slice(1, None)),
        ("backward", slice(1, None), slice(None, -1)),
    ):
        seen = se3.transform_points(se3.inverse(jnp.asarray(a["world_from_cam"][end])), points[start])
        pixels, depth = (np.asarray(x) for x in camera.project(seen, jnp.asarray(a["intrinsics"][end])))
        flow = np.asarray(camera.pixel_grid(20, 33)) + a[f"flow_{name}"]
        np.testing.assert_allclose(flow[depth > 0.1], pixels[depth > 0.1], atol=1e-2)
        inside = ((flow > -0.51) & (flow < (32.51, 19.51))).all(-1)
        assert inside[a[f"visible_{name}"]].all()
        assert a[f"visible_{name}"].mean() > 0.5


def test_reconstruct_study_and_train_read_them(clips):
    sequence = find_sequence(str(clips / "clip_7_00000"))
    assert sequence.twin == find_sequence(str(clips / "clip_7_00000_still"))  # which has none itself
    assert sequence.twin.twin is None
    frames = load_frames(sequence.frames, FrameConfig(size=32, patch_size=8))
    truth = load_ground_truth(sequence.ground_truth, frames)
    assert truth.depth.shape == truth.masks.shape == frames.rgb.shape[:3]
    assert truth.world_from_cam.shape == (3, 4, 4)
    assert [path.name for path in folders(clips)] == ["clip_7_00000", "clip_7_00001"]
    assert len(open_dataset("pairs", clips).sequences) == 4


def test_the_same_seed_gives_the_same_clips_and_a_larger_number_adds_to_them(clips, tmp_path):
    assert execute(*SMALL, "--num=1", "--notwins", f"--output={tmp_path}") == 0
    assert os.listdir(tmp_path) == ["clip_7_00000"]
    np.testing.assert_array_equal(pixels_of(tmp_path / "clip_7_00000"), pixels_of(clips / "clip_7_00000"))
    np.testing.assert_equal(arrays_of(tmp_path / "clip_7_00000"), arrays_of(clips / "clip_7_00000"))


def test_without_motion_only_the_twin_is_written(clips, tmp_path):
    assert execute(*SMALL, "--num=1", "--nomotion", "--notwins", f"--output={tmp_path}") == 0
    assert os.listdir(tmp_path) == ["clip_7_00000_still"]
    np.testing.assert_array_equal(pixels_of(tmp_path / "clip_7_00000_still"), pixels_of(clips / "clip_7_00000_still"))


def test_one_camera_may_stand_for_all_frames(clips, tmp_path):
    """As docs/datasets.md allows; whoever trains on such a folder can also reconstruct it."""
    shutil.copytree(clips / "clip_7_00000", tmp_path / "clip")
    arrays = arrays_of(tmp_path / "clip")
    whole = load_ground_truth(*truth_and_frames(tmp_path / "clip"))
    np.savez(tmp_path / "clip" / "ground_truth.npz", **{**arrays, "intrinsics": arrays["intrinsics"][0]})
    one = load_ground_truth(*truth_and_frames(tmp_path / "clip"))
    np.testing.assert_array_equal(one.intrinsics, whole.intrinsics)  # a rendered clip's camera keeps its lens
    assert len(open_dataset("pairs", tmp_path).sequences) == 1


def truth_and_frames(folder: pathlib.Path):
    sequence = find_sequence(str(folder))
    return sequence.ground_truth, load_frames(sequence.frames, FrameConfig(size=32, patch_size=8))


def test_flow_can_be_omitted(clips, tmp_path):
    assert execute(*SMALL, "--num=1", "--notwins", "--noflow", f"--output={tmp_path}") == 0
    whole = arrays_of(clips / "clip_7_00000")
    rest = {name: array for name, array in whole.items() if not name.startswith(("flow", "visible"))}
    np.testing.assert_equal(arrays_of(tmp_path / "clip_7_00000"), rest)


def test_an_earlier_clip_is_replaced_and_nothing_else(clips, tmp_path):
    old = tmp_path / "clip_7_00000"
    (old / "frames").mkdir(parents=True)
    (old / "clip.json").write_text("{}")
    (old / "frames" / "old.png").write_bytes(b"old")
    (tmp_path / "clip_8_00000").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    assert execute(*SMALL, "--num=1", "--notwins", f"--output={tmp_path}") == 0
    assert sorted(os.listdir(tmp_path)) == ["clip_7_00000", "clip_8_00000", "notes.txt"]
    assert sorted(os.listdir(old / "frames")) == ["00000.png", "00001.png", "00002.png"]


def test_pairs_have_the_same_layout(tmp_path):
    assert execute("--kind=pairs", "--num=2", "--size=16x24", f"--output={tmp_path / 'out'}") == 0
    assert sorted(os.listdir(tmp_path / "out")) == ["pair_0_00000", "pair_0_00001"]
    arrays = arrays_of(tmp_path / "out" / "pair_0_00001")
    assert {k: v.shape for k, v in arrays.items()} == {
        k: (s[0] - 1, *(({20: 16, 33: 24}.get(n, n)) for n in s[1:])) for k, s in SHAPES.items()
    }
    assert not arrays["masks"].any()
    assert pixels_of(tmp_path / "out" / "pair_0_00001").shape == (2, 16, 24, 3)
    assert 0.2 < arrays["visible_forward"].mean() < 1


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.fixture
def complaint(tmp_path, capsys, monkeypatch):
    """The one line with which the program refuses, before it renders anything; it must leave nothing behind."""

    def complaint(*arguments: str, code: int = 1) -> str:
        monkeypatch.setattr(synthesize, "render", lambda *_: pytest.fail("began to work"))
        if not any(a.startswith("--output") for a in arguments):
            arguments = (*arguments, f"--output={tmp_path / 'out'}")
        assert execute(*arguments) == code
        errors = capsys.readouterr().err
        assert len(errors.splitlines()) == 1, errors
        assert errors.startswith("error: ")
        assert not (tmp_path / "out").exists()
        return errors

    return complaint


@pytest.mark.parametrize("size", ["64", "64x", "x96", "64x96x3", "-64x96", "64 x 96", "6e1x96", "64X96", "999999x9"])
def test_a_size_that_is_none(complaint, size):
    assert "HEIGHTxWIDTH" in complaint(f"--size={size}")


@pytest.mark.parametrize("kind", ["clips", "pairs"])
def test_a_size_too_small_or_too_large(complaint, kind):
    assert "8x96" in complaint("--size=8x96", f"--kind={kind}")
    assert "0x96" in complaint("--size=0x96", f"--kind={kind}")
    assert "4096" in complaint("--size=64x5000", f"--kind={kind}")


def test_more_moving_than_there_are(complaint):
    assert "num_moving=6" in complaint("--num_objects=3")


@pytest.mark.parametrize(
    "argument", ["--num=0", "--num=many", "--frames=1", "--seed=-1", "--kind=films", "--num_moving=-1", "--fps=3"]
)
def test_flags_outside_their_range(complaint, argument):
    assert argument.removeprefix("--").split("=")[0] in complaint(argument, code=2)


def test_another_folder_is_never_replaced(complaint, tmp_path):
    """Another folder in the clip layout, with the name of a clip."""
    mine = tmp_path / "mine" / "clip_0_00001"
    mine.mkdir(parents=True)
    (mine / "ground_truth.npz").write_bytes(b"mine")
    assert "clip.json" in complaint(f"--output={mine.parent}")
    assert os.listdir(mine.parent) == ["clip_0_00001"]
    assert (mine / "ground_truth.npz").read_bytes() == b"mine"


def test_output_where_nothing_can_be_written(complaint, tmp_path):
    (tmp_path / "file").write_text("x")
    assert "choose another folder" in complaint(f"--output={tmp_path / 'file'}")
    if pathlib.Path("/proc/self").is_dir():  # nobody, root included, makes a folder there
        assert "choose another folder" in complaint("--output=/proc/clips")


def test_a_full_disk_leaves_only_complete_clips(clips, tmp_path, capsys, monkeypatch):
    write, written = np.savez, []

    def full(path, **arrays):
        write(path, **arrays)
        written.append(path)
        if len(written) == 2:
            raise OSError(28, os.strerror(28))

    monkeypatch.setattr(np, "savez", full)
    assert execute(*SMALL, "--num=2", f"--output={tmp_path / 'out'}") == 1
    assert "disk is full" in capsys.readouterr().err
    assert os.listdir(tmp_path / "out") == ["clip_7_00000"]
    np.testing.assert_array_equal(pixels_of(tmp_path / "out" / "clip_7_00000"), pixels_of(clips / "clip_7_00000"))


def test_arrays_that_do_not_fit_the_frames_are_refused(tmp_path):
    rgb = np.zeros((3, 20, 33, 3), np.uint8)
    with pytest.raises(ValueError, match="flow_forward is float32"):
        export.write_clip(tmp_path / "clip", rgb, {"flow_forward": np.zeros((3, 20, 33, 2), np.float32)}, {})
    with pytest.raises(ValueError, match="depth is float64"):
        export.write_clip(tmp_path / "clip", rgb, {"depth": np.zeros((3, 20, 33))}, {})
    with pytest.raises(ValueError, match="dpeth"):
        export.write_clip(tmp_path / "clip", rgb, {"dpeth": np.zeros((3, 20, 33), np.float32)}, {})
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_command_itself(command, tmp_path):
    """In a process of its own: nothing on stderr, the folder named on stdout; --help lists every flag."""
    done = command("synthesize", "--size=16x16", "--frames=2", "--num=1", "--notwins", f"--output={tmp_path}")
    assert (done.returncode, done.stderr) == (0, "")
    assert str(tmp_path) in done.stdout
    assert os.listdir(tmp_path) == ["clip_0_00000"]
    text = command("synthesize", "--help").stdout
    assert all(f"--{name}" in text.replace("[no]", "") for name in synthesize.FLAGS.values())
