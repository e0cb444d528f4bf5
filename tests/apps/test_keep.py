"""`--keep`: which points are exported and shown. Results are made of the bundled, rendered clip's ground truth."""

import json

import numpy as np
import pycolmap
import pytest
import trimesh
from PIL import Image

import easi3r_jax as e3r
from easi3r_jax.apps import export, view
from easi3r_jax.io import results
from easi3r_jax.io.export.pointcloud import moving_pixels, static_pixels
from tests.rendered import demo_result, demo_truth


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    return results.save_result(tmp_path_factory.mktemp("kept") / "demo", demo_result(), record={"options": {}})


@pytest.fixture
def run(capsys, result):
    def run(**values):
        values = {"scene": result, "format": "ply", "source": "frames"} | values
        code = export.FLAGS.execute(export.main, ["", *(f"--{k}={v}" for k, v in values.items())])
        return code, *capsys.readouterr()

    return run


def write_masks(folder, masks):
    folder.mkdir()
    for t, mask in enumerate(masks):
        Image.fromarray(np.where(mask, 255, 0).astype(np.uint8)).save(folder / f"{t:05d}.png")
    return folder


def labels_of(points, t, labels):
    """The label of the pixel that each world point projects to in frame t."""
    scene = demo_result().scene
    pose = scene.world_from_cam[t].astype(np.float64)
    pixels = ((points - pose[:3, 3]) @ pose[:3, :3]) @ scene.intrinsics[t].astype(np.float64).T
    x, y = np.rint(pixels[:, :2] / pixels[:, 2:]).astype(int).T
    return labels[t][y, x]


@pytest.mark.parametrize("keep", ["all", "static", "dynamic"])
def test_points_are_those_of_the_true_motion(run, tmp_path, keep):
    assert run(keep=keep, output=tmp_path)[0] == 0
    moving = demo_truth()["masks"]
    found = set()
    for t in (0, 7, 15):
        points = trimesh.load(tmp_path / "ply" / "frames" / f"{t:05d}.ply").vertices
        assert len(points) > 50
        found |= set(labels_of(points, t, moving).tolist())
    assert found == {"all": {False, True}, "static": {False}, "dynamic": {True}}[keep]


def test_one_object_alone_by_masks(run, tmp_path):
    """Moving or not: of the largest object every point is kept, and nothing else."""
    instance = demo_truth()["instance"]
    number = np.bincount(instance[instance > 0]).argmax()
    folder = write_masks(tmp_path / "masks", instance == number)
    code, out, err = run(keep=folder, format="ply,colmap,exr,nerfstudio", output=tmp_path / "out")
    assert (code, err) == (0, "")
    scene = e3r.keep_points(demo_result(), instance == number).scene
    points = trimesh.load(tmp_path / "out" / "ply" / "frames" / "00003.ply").vertices
    assert set(labels_of(points, 3, instance).tolist()) == {number}
    assert len(points) == (static_pixels(scene, 3, 1.1) | moving_pixels(scene, 3)).sum()
    for name in ("colmap", "nerfstudio"):  # masks for training mark the object
        with Image.open(tmp_path / "out" / name / "masks" / "00003.png.png") as mask:
            np.testing.assert_array_equal(np.asarray(mask) > 0, instance[3] == number)
    read = pycolmap.Reconstruction(tmp_path / "out" / "colmap" / "sparse" / "0")
    for point in read.points3D.values():
        assert all(instance[e.image_id - 1].any() for e in point.track.elements)
    assert json.loads((tmp_path / "out" / "ply" / "export.json").read_text())["restricted"] is True
    is_static = bool(((instance == number) & ~demo_truth()["masks"]).any())
    assert ("without static points" in out) != is_static


def test_of_the_dynamic_alone_no_static_points_are_left(run, tmp_path):
    code, out, _ = run(keep="dynamic", format="colmap", output=tmp_path)
    assert code == 0 and "without static points: none are kept (--keep)" in out
    assert not pycolmap.Reconstruction(tmp_path / "colmap" / "sparse" / "0").points3D


def test_a_new_result_keeps_its_arrays_whole(tmp_path):
    kept = demo_truth()["masks"]
    folder = results.save_result(tmp_path / "new", demo_result(), keep=kept, record={})
    np.testing.assert_array_equal(results.load_result(folder).scene.depth, demo_result().scene.depth)
    cloud = trimesh.load(folder / "scene.glb")
    names = [name for name in cloud.geometry if name.startswith("background")]
    assert not names and any(name.startswith("foreground") for name in cloud.geometry)


def test_the_viewer_is_given_what_is_kept(result, monkeypatch):
    shown = []
    monkeypatch.setattr(view, "serve", lambda saved, *_: shown.extend(saved))
    monkeypatch.setattr(view, "check_address", lambda *_: None)
    monkeypatch.setattr(view.viewer, "import_viser", lambda: None)
    assert view.FLAGS.execute(view.main, ["", f"--scene={result}", "--keep=dynamic"]) == 0
    np.testing.assert_array_equal(shown[0].scene.depth > 0, demo_truth()["masks"])


@pytest.mark.parametrize(
    ("keep", "words"),
    [
        ("object", "--keep=object: it must be all, static, dynamic, or a folder of masks"),
        ("EMPTY", "mark no pixel"),
        ("FEW", "masks for 2 frames"),
    ],
)
def test_a_wrong_selection_is_refused_in_one_line(run, tmp_path, keep, words):
    masks = np.zeros((16, 64, 96), bool)
    folder = write_masks(tmp_path / "masks", masks if keep == "EMPTY" else ~masks[:2])
    code, _, err = run(keep=keep if keep == "object" else folder)
    assert code == 1 and words in err
    assert sum(line.startswith("error:") for line in err.splitlines()) == 1


def test_what_would_be_empty_is_refused():
    still = demo_result()
    scene = e3r.Scene4D(**(vars(still.scene) | {"dynamic_mask": np.zeros_like(still.scene.dynamic_mask)}))
    with pytest.raises(e3r.InputError, match="the scene has no dynamic pixel"):
        e3r.keep_points(e3r.Reconstruction(scene=scene, frames=still.frames), "dynamic")
    with pytest.raises(e3r.InputError, match="Masks of shape"):
        e3r.keep_points(still, np.ones((2, 3, 3), bool))
