"""Round trips of result folders; damaged or unsupported folders are refused in one line."""

import dataclasses
import json
import pathlib
import shutil
import zipfile

import jax
import numpy as np
import pytest

from easi3r_jax.core.errors import ConfigError, InputError
from easi3r_jax.core.types import Frames, MotionMaps, Scene4D, TemporalMaps, frames_at
from easi3r_jax.io import results
from tests.results import write_result

T, H, W = 3, 4, 6
NAMES = ["b 1.jpg", "b 3.jpg", "ä.jpg"]
LOSSES = np.array([0.5, 0.25], np.float32)


@pytest.fixture(scope="module")
def scene():
    rng = np.random.default_rng(0)
    return Scene4D(
        world_from_cam=np.tile(np.eye(4, dtype=np.float32), (T, 1, 1)),
        intrinsics=np.tile(np.array([[8, 0, 3], [0, 8, 2], [0, 0, 1]], np.float32), (T, 1, 1)),
        depth=rng.uniform(1, 2, (T, H, W)).astype(np.float32),
        confidence=rng.uniform(1, 2, (T, H, W)).astype(np.float32),
        dynamic_mask=rng.random((T, H, W)) < 0.3,
        dynamic_score=rng.random((T, H, W), np.float32),
        static_mask=rng.random((T, H, W)) < 0.3,
        rgb=rng.integers(0, 256, (T, H, W, 3), np.uint8),
    )


@pytest.fixture(scope="module")
def frames(scene):
    return Frames(
        rgb=scene.rgb,
        source_index=np.array([1, 3, 4], np.int32),
        time=np.array([0.1, 0.3, 0.4]),
        frame_from_source=np.array([[0.5, 0, -1.25], [0, 0.5, -0.25], [0, 0, 1]]),
        source_size=np.array([8, 16], np.int32),
    )


@pytest.fixture(scope="module")
def motion():
    maps = np.random.default_rng(1).random((6, T, 2, 3)).astype(np.float32)
    return MotionMaps(TemporalMaps(*maps[:4]), maps[4], np.arange(T * 6, dtype=np.int32).reshape(T, 2, 3), maps[5])


@pytest.fixture(scope="module")
def written(scene, frames, motion, tmp_path_factory):
    folder = tmp_path_factory.mktemp("results") / "result"
    return write_result(
        folder,
        scene,
        motion,
        frames=frames,
        source_names=NAMES,
        threshold=0.625,
        losses=LOSSES,
        config={"seed": 3},
    )


@pytest.fixture
def folder(written, tmp_path):
    return shutil.copytree(written, tmp_path / "result")


def rewrite(folder: pathlib.Path, change, save=np.savez) -> None:
    """Saves scene.npz again with changed arrays."""
    with np.load(folder / "scene.npz") as file:
        arrays = dict(file)
    save(folder / "scene.npz", **change(arrays))


def assert_same(found, expected):
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("save", [None, np.savez_compressed])
def test_what_was_written_is_read(folder, scene, frames, motion, save):
    if save:
        rewrite(folder, lambda arrays: arrays, save)
    for path in (folder, str(folder), folder / "scene.npz"):
        saved = results.load_result(path)
        assert_same(saved.scene, scene)
        assert_same(saved.motion, motion)
        np.testing.assert_array_equal(saved.frames.time, frames.time)
        assert saved.frames.frame_from_source is not None
        np.testing.assert_array_equal(saved.frames.source_index, frames.source_index)
        np.testing.assert_array_equal(saved.frames.frame_from_source, frames.frame_from_source)
        np.testing.assert_array_equal(saved.frames.source_size, (8, 16))
        assert saved.frames.names == tuple(NAMES)
        assert saved.record == {"seed": 3}
        assert saved.threshold == 0.625
        np.testing.assert_array_equal(saved.losses, LOSSES)
        assert saved.folder == folder


def test_what_is_not_known_is_none(scene, frames, tmp_path):
    folder = write_result(tmp_path / "r", scene, frames=frames, losses=np.zeros(0), config={})
    saved = results.load_result(folder)
    assert saved.motion is None and saved.threshold is None and saved.losses is None
    assert saved.frames.frame_from_source is not None and saved.frames.names is None


def test_a_missing_config_is_empty(folder):
    (folder / "config.json").unlink()
    assert results.load_result(folder).record == {}


def test_intrinsics_of_the_source_see_a_point_where_the_original_has_it(folder, frames):
    """A frame's pixel (x, y) is the original's (2 x + 2.5, 2 y + 0.5)."""
    saved = results.load_result(folder)
    ray = np.array([0.3, -0.2, 1.0])
    x, y, _ = np.asarray(saved.scene.intrinsics[0], np.float64) @ ray
    np.testing.assert_allclose(
        saved.frames.original_intrinsics(saved.scene.intrinsics)[0] @ ray, [2 * x + 2.5, 2 * y + 0.5, 1]
    )


def test_flow_that_there_is_not_cannot_be_kept(scene, frames, tmp_path):
    with pytest.raises(ConfigError, match="no optical flow to keep"):
        write_result(tmp_path / "r", scene, frames=frames, config={}, keep_flow=True)
    assert not (tmp_path / "r").exists()


def test_arrays_are_mapped_not_read_and_cannot_be_written_to(folder):
    scene = results.load_result(folder).scene
    base = scene.depth
    while isinstance(base, np.ndarray) and not isinstance(base, np.memmap):
        base = base.base
    assert isinstance(base, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        scene.depth[0, 0, 0] = 1


def test_a_scene_that_is_open_outlives_its_replacement(folder, scene, frames):
    saved = results.load_result(folder)
    other = dataclasses.replace(scene, depth=scene.depth + 1)
    write_result(folder, other, frames=frames, config={})
    np.testing.assert_array_equal(saved.scene.depth, scene.depth)
    np.testing.assert_array_equal(results.load_result(folder).scene.depth, other.depth)


def without(*keys):
    return lambda arrays: {k: v for k, v in arrays.items() if not k.startswith(keys)}


def test_a_scene_of_before_losses_and_threshold_were_kept_is_read(folder, scene, motion):
    rewrite(folder, without("losses", "dynamic_threshold"))
    saved = results.load_result(folder)
    assert saved.threshold is None and saved.losses is None
    assert_same(saved.motion, motion)


OLDER = ("format_version", "time", "source", "frame_from_source", "motion")


def test_a_scene_of_before_there_were_versions_takes_its_times_from_the_trajectory(folder, scene, frames):
    rewrite(folder, without(*OLDER))
    saved = results.load_result(folder)
    np.testing.assert_allclose(saved.frames.time, frames.time, atol=1e-6)
    assert saved.frames.frame_from_source is None and saved.motion is None
    assert_same(saved.scene, scene)


def test_an_older_scene_says_that_its_source_is_not_recorded(folder, frames, tmp_path):
    rewrite(folder, without(*OLDER))
    saved = results.load_result(folder)
    some = frames_at(saved.frames, slice(1, 3))
    assert some.source_index is None and len(some.rgb) == len(some.time) == 2
    for use in (
        lambda: saved.frames.original_intrinsics(saved.scene.intrinsics),
        lambda: saved.frames.original_size,
        lambda: results.save_result(tmp_path / "copy", saved),
    ):
        with pytest.raises(InputError, match=r"older version.*reconstruct the clip again"):
            use()
    assert frames.original_size == (8, 16)


@pytest.mark.parametrize("version", ["before_static_masks", "before_versions"])
def test_what_an_older_program_wrote_is_read(version):
    """`older_results` holds files of its own making, not of ours with arrays taken out."""
    folder = pathlib.Path(__file__).parents[1] / "older_results" / version
    saved = results.load_result(folder)
    assert (
        saved.frames.frame_from_source is None
        and saved.motion is None
        and saved.threshold is None
        and saved.losses is None
    )
    assert saved.record["options"]["seq"] == "clip"
    np.testing.assert_allclose(saved.frames.time, [0, 1 / 24], atol=1e-6)
    with np.load(folder / "scene.npz") as file:
        assert ("static_mask" in file.files) == (version == "before_versions")
        for name, array in vars(saved.scene).items():
            key = {"rgb": "images"}.get(name, name)
            np.testing.assert_array_equal(array, file[key] if key in file.files else ~file["dynamic_mask"])
            assert not array.flags.writeable


@pytest.mark.parametrize(
    ("text", "words"), [(None, "is from an older version.*reconstruct"), ("0 0 0 0 0 0 0 1\n", "1 poses")]
)
def test_an_older_scene_without_its_times_is_refused(folder, text, words):
    rewrite(folder, without(*OLDER))
    (folder / "trajectory.txt").unlink()
    if text:
        (folder / "trajectory.txt").write_text(text)
    with pytest.raises(InputError, match=words):
        results.load_result(folder)


def changed(key, value):
    def change(arrays):
        array = arrays[key].copy()
        array[...] = value(array) if callable(value) else value
        return arrays | {key: array}

    return change


def entry(index, value):
    def change(array):
        array[index] = value
        return array

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (changed("format_version", 2), "format 2.*update"),
        (changed("format_version", -1), "format -1"),
        (without("time"), "lacks time"),
        (without("depth"), "lacks depth"),
        (without("static_mask"), "lacks static_mask"),  # a numbered result has it
        (without("motion_labels"), "lacks motion_labels"),
        (changed("time", np.nan), "times"),
        (changed("world_from_cam", entry((1, 0, 0), 1.5)), "world_from_cam of frame 1"),
        (changed("world_from_cam", entry((2, 0, 0), -1)), "world_from_cam of frame 2"),
        (changed("world_from_cam", entry((0, 0, 3), np.inf)), "world_from_cam of frame 0"),
        (changed("world_from_cam", entry((0, 3, 3), 2)), "world_from_cam of frame 0"),
        (changed("intrinsics", entry((0, 0, 0), -8)), "intrinsics of frame 0"),
        (changed("intrinsics", entry((2, 0, 1), 1)), "intrinsics of frame 2"),
        (changed("intrinsics", entry((1, 1, 2), np.nan)), "intrinsics of frame 1"),
        (changed("source_size", 0), "source is damaged"),
        (changed("source_index", [1, 1, 4]), "source is damaged"),
        (changed("frame_from_source", entry((0, 1), 0.5)), "source is damaged"),
        (lambda a: a | {"source_names": np.array(["a", "../b", "c"])}, r"'\.\./b' is not a file name"),
        (lambda a: a | {"source_names": np.array(["a", "b"])}, r"source_names is .*\(2,\)"),
        (lambda a: a | {"time": a["time"].astype(np.float32)}, "time is float32"),
        (lambda a: a | {"losses": np.zeros((2, 3), np.float32)}, "losses is float32"),
        (lambda a: a | {"dynamic_threshold": np.float64(0.5)}, "dynamic_threshold is float64"),
        (lambda a: a | {"depth": np.asfortranarray(a["depth"])}, "Fortran"),
        (lambda a: a | {"depth": np.array([print], object)}, "Cannot read the scene.*pickled"),
    ],
)
def test_a_wrong_scene_is_refused_in_one_line(folder, change, words):
    rewrite(folder, change)
    with pytest.raises(InputError, match=words) as error:
        results.load_result(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["nothing", "empty", "file"])
def test_a_file_that_is_not_a_result_is_refused(tmp_path, name):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="No scene at"):
        results.load_result(tmp_path / name)


def test_damage_anywhere_is_detected(folder):
    """Cut at any place, or with any byte of its arrays changed."""
    path = folder / "scene.npz"
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        inside = [info.header_offset + 300 for info in archive.infolist() if info.file_size > 300]
    for length in np.linspace(0, len(whole) - 1, 40).astype(int):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match="Cannot read the scene"):
            results.load_result(folder)
    assert len(inside) == 5
    for offset in inside:
        path.write_bytes(whole[:offset] + bytes([whole[offset] ^ 1]) + whole[offset + 1 :])
        with pytest.raises(InputError, match="Cannot read the scene"):
            results.load_result(folder)


@pytest.mark.parametrize("text", ["{", "[1]", '"x"', "[" * 100_000])
def test_a_config_that_is_none_is_refused(folder, text):
    (folder / "config.json").write_text(text)
    with pytest.raises(InputError, match=r"config\.json"):
        results.load_result(folder)
    (folder / "config.json").write_text(json.dumps({"a": 1}))
    assert results.load_result(folder).record == {"a": 1}
