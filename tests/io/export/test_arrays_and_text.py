"""scene.npz, trajectory.txt, intrinsics.txt and JSON: round trips, and refusal of invalid files."""

import dataclasses
import json
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from easi3r_jax.core.errors import InputError
from easi3r_jax.io.export import load_scene, to_json, write_intrinsics, write_json, write_scene, write_tum
from easi3r_jax.io.priors.text import read_trajectory
from easi3r_jax.models.config import DUSt3RConfig

KEYS = {
    *("format_version", "world_from_cam", "intrinsics", "depth", "confidence"),
    *("dynamic_mask", "dynamic_score", "static_mask", "images"),
}


def test_scene_round_trip(scene, tmp_path):
    write_scene(tmp_path / "scene.npz", scene)
    for path in (tmp_path, tmp_path / "scene.npz", str(tmp_path)):
        read = load_scene(path)
        for field in dataclasses.fields(scene):
            found, expected = getattr(read, field.name), getattr(scene, field.name)
            assert found.dtype == expected.dtype
            np.testing.assert_array_equal(found, expected)


def test_scene_has_exactly_the_documented_arrays(scene, tmp_path):
    write_scene(tmp_path / "scene.npz", scene)
    with np.load(tmp_path / "scene.npz") as file:
        assert set(file.files) == KEYS


@pytest.fixture
def arrays(scene, tmp_path):
    write_scene(tmp_path / "good.npz", scene)
    with np.load(tmp_path / "good.npz") as file:
        return dict(file)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda a: {k: v for k, v in a.items() if k not in ("depth", "images")}, "lacks depth, images"),
        (lambda a: a | {"depth": a["depth"][:, :, :-1]}, r"\(3, 24, 31\)|\(3, 24, 32\)"),
        (lambda a: a | {"world_from_cam": a["world_from_cam"][:, :3]}, r"world_from_cam is float32 \(3, 3, 4\)"),
        (lambda a: a | {"intrinsics": a["intrinsics"][0]}, r"intrinsics is float32 \(3, 3\)"),
        (lambda a: a | {"dynamic_mask": a["dynamic_mask"].astype(np.uint8)}, "dynamic_mask is uint8"),
        (lambda a: {k: v[:0] for k, v in a.items() if v.ndim}, "world_from_cam is float32"),
    ],
)
def test_a_wrong_scene_is_refused(arrays, tmp_path, change, words):
    np.savez(tmp_path / "bad.npz", **change(arrays))
    with pytest.raises(InputError, match=words):
        load_scene(tmp_path / "bad.npz")


def test_a_pickle_in_a_scene_is_never_run(arrays, tmp_path):
    touched = tmp_path / "touched"

    class Evil:
        def __reduce__(self):
            return pathlib.Path.touch, (touched,)

    np.savez(tmp_path / "evil.npz", **(arrays | {"depth": np.array([Evil()], object)}))
    with pytest.raises(InputError, match="Cannot read the scene"):
        load_scene(tmp_path / "evil.npz")
    assert not touched.exists()


def test_damaged_and_missing_files_are_refused(arrays, tmp_path):
    whole = (tmp_path / "good.npz").read_bytes()
    for name, data in {"cut": whole[: len(whole) // 2], "text": b"hello", "empty": b"", "zip": b"PK\x03\x04"}.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError, match="Cannot read the scene"):
            load_scene(tmp_path / name)
    np.save(tmp_path / "bare.npy", arrays["depth"])
    with pytest.raises(InputError, match="not an npz archive"):
        load_scene(tmp_path / "bare.npy")
    with pytest.raises(InputError, match="No scene at"):
        load_scene(tmp_path / "nowhere")


def test_trajectory_round_trip(scene, time, tmp_path):
    write_tum(tmp_path / "trajectory.txt", time, scene.world_from_cam)
    read_time, read, _ = read_trajectory(tmp_path / "trajectory.txt")
    np.testing.assert_array_equal(read_time, time)
    np.testing.assert_allclose(read, scene.world_from_cam, atol=1e-7)


def test_trajectory_has_the_order_of_the_tum_tools(tmp_path):
    world_from_cam = np.eye(4)
    world_from_cam[:3, :3] = Rotation.from_euler("z", 90, degrees=True).as_matrix()
    world_from_cam[:3, 3] = [1, 2, 3]
    write_tum(tmp_path / "t.txt", np.array([0.25]), world_from_cam[None])
    header, line = (tmp_path / "t.txt").read_text().splitlines()
    assert header.startswith("#")
    half = np.sqrt(0.5)
    np.testing.assert_allclose([float(x) for x in line.split()], [0.25, 1, 2, 3, 0, 0, half, half], atol=1e-8)


def test_quaternions_have_a_positive_scalar(tmp_path):
    turns = np.tile(np.eye(4), (50, 1, 1))
    turns[:, :3, :3] = Rotation.random(50, random_state=0).as_matrix()
    write_tum(tmp_path / "t.txt", np.arange(50), turns)
    assert (np.loadtxt(tmp_path / "t.txt")[:, 7] >= 0).all()


def test_intrinsics_round_trip(scene, tmp_path):
    write_intrinsics(tmp_path / "i.txt", scene.intrinsics)
    assert (tmp_path / "i.txt").read_text().startswith("#")
    np.testing.assert_allclose(np.loadtxt(tmp_path / "i.txt").reshape(-1, 3, 3), scene.intrinsics, rtol=1e-8)


def refuse(token):
    raise AssertionError(f"not strict JSON: {token}")


def test_json_is_strict(tmp_path):
    value = {
        "nan": float("nan"),
        "infinite": [np.inf, np.float32(-np.inf)],
        "numpy": [np.float32(0.5), np.int64(3), np.bool_(True), np.array([[1, 2]])],
        "jax": [jnp.ones(2), jnp.float32(np.nan), jnp.bfloat16(1.5)],
        "path": pathlib.Path("a/b"),
        "config": DUSt3RConfig.embedded(),
        "text": "Grüße",
        3: (None, True, 7),
    }
    write_json(tmp_path / "x.json", value)
    read = json.loads((tmp_path / "x.json").read_text(encoding="utf-8"), parse_constant=refuse)
    assert read["nan"] is None
    assert read["infinite"] == ["Infinity", "-Infinity"]
    assert read["numpy"] == [0.5, 3, True, [[1, 2]]]
    assert read["jax"] == [[1, 1], None, 1.5]
    assert read["path"] == "a/b"
    assert read["config"]["confidence_range"] == [1.0, "Infinity"]
    assert read["text"] == "Grüße"
    assert read["3"] == [None, True, 7]


def test_json_refuses_what_it_cannot_represent():
    with pytest.raises(TypeError, match="object cannot be converted to JSON"):
        to_json({"x": [object()]})
