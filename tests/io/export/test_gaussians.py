"""Initial Gaussians, read back by plyfile; and the COLMAP folder, as trainers of Gaussians look through it."""

import dataclasses
import pathlib

import numpy as np
import plyfile
import pycolmap
import pytest

import easi3r_jax as e3r
from easi3r_jax.apps import export
from easi3r_jax.io import results
from tests.rendered import demo_result, demo_truth

SH0 = 0.5 / np.sqrt(np.pi)
#: Of the format's readers: the properties by name, whatever their order.
NAMES = {"x", "y", "z", "opacity", *(f"f_dc_{i}" for i in range(3)), *(f"scale_{i}" for i in range(3))}
NAMES |= {f"rot_{i}" for i in range(4)}


def doubted() -> e3r.Reconstruction:
    """The bundled clip's truth; confidence grows from left to right."""
    truth = demo_result()
    trust = np.broadcast_to(np.linspace(1.2, 9, 96, dtype=np.float32), truth.scene.depth.shape).copy()
    return dataclasses.replace(truth, scene=dataclasses.replace(truth.scene, confidence=trust))


@pytest.fixture
def run(tmp_path, capsys):
    def run(result, **values):
        saved = results.save_result(tmp_path / "result", result, record={"options": {}})
        values = {"scene": saved, "format": "gaussians", "source": "frames"} | values
        code = export.FLAGS.execute(export.main, ["", *(f"--{k}={v}" for k, v in values.items())])
        return code, capsys.readouterr(), saved / "exports"

    return run


def read(path: pathlib.Path) -> dict[str, np.ndarray]:
    vertices = plyfile.PlyData.read(str(path))["vertex"]
    assert {p.name for p in vertices.properties} >= NAMES
    return {name: np.asarray(vertices[name], np.float64) for name in NAMES}


def on_frame(found, t: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Of the Gaussians that frame t sees in front: their numbers, rows, columns, and relative differences of depth."""
    scene = demo_result().scene
    xyz = np.column_stack([found[a] for a in "xyz"])
    pose, camera = scene.world_from_cam[t].astype(np.float64), scene.intrinsics[t].astype(np.float64)
    inside = (xyz - pose[:3, 3]) @ pose[:3, :3]
    pixel = inside @ camera.T
    x, y = np.rint(pixel[:, :2] / np.maximum(pixel[:, 2:], 1e-6)).astype(int).T
    seen = np.flatnonzero((inside[:, 2] > 0) & (x >= 0) & (y >= 0) & (x < 96) & (y < 64))
    x, y = x[seen], y[seen]
    return seen, y, x, np.abs(inside[seen, 2] / scene.depth[t][y, x] - 1)


def test_gaussians_lie_on_the_true_surfaces_in_their_colours(run):
    code, said, exports = run(doubted())
    assert (code, said.err) == (0, "")
    found = read(exports / "gaussians" / "gaussians.ply")
    assert len(found["x"]) > 3000
    seen, y, x, away = on_frame(found, 8)
    assert len(seen) > 1000 and np.median(away) < 0.01
    near = away < 0.01
    color = np.column_stack([found[f"f_dc_{i}"] for i in range(3)])[seen[near]] * SH0 + 0.5
    difference = np.abs(color - demo_result().scene.rgb[8][y[near], x[near]] / 255)
    assert np.median(difference) < 0.05
    for t in (0, 15):  # no static Gaussian is where only something that moves is
        seen, y, x, away = on_frame(found, t)
        assert demo_truth()["masks"][t][y, x][away < 0.005].mean() < 0.05


def test_scales_are_distances_of_neighbours_rotations_the_identity_and_opacities_grow_with_confidence(run):
    code, _, exports = run(doubted(), cloud_points=4000)
    assert code == 0
    found = read(exports / "gaussians" / "gaussians.ply")
    assert len(found["x"]) == 4000
    xyz = np.column_stack([found[a] for a in "xyz"])
    some = np.random.default_rng(0).choice(4000, 60, replace=False)
    distances = np.sort(np.linalg.norm(xyz[some, None] - xyz[None], axis=2), axis=1)[:, 1:4]
    expected = np.sqrt(np.square(distances).mean(1))
    usual = expected < 5 * np.median(expected)
    for i in range(3):
        np.testing.assert_allclose(np.exp(found[f"scale_{i}"])[some][usual], expected[usual], rtol=1e-3)
    rotation = np.column_stack([found[f"rot_{i}"] for i in range(4)])
    np.testing.assert_array_equal(rotation, np.tile([1, 0, 0, 0], (4000, 1)))
    opacity = 1 / (1 + np.exp(-found["opacity"]))
    assert opacity.min() > 0.099 and opacity.max() < 0.951
    seen, _, x, away = on_frame(found, 8)  # the cameras hardly turn: what is left in one is left in all
    left, right = (opacity[seen[(away < 0.01) & part]] for part in (x < 20, x > 76))
    assert left.mean() + 0.3 < right.mean()


def test_dynamic_gaussians_are_frame_by_frame(run):
    code, _, exports = run(demo_result(), keep="dynamic", every=5)
    assert code == 0
    folder = exports / "gaussians"
    assert not (folder / "gaussians.ply").exists()
    assert [p.name for p in sorted((folder / "dynamic").iterdir())] == [f"{t:05d}.ply" for t in (0, 5, 10, 15)]
    found = read(folder / "dynamic" / "00005.ply")
    _, y, x, away = on_frame(found, 5)
    assert away.max() < 1e-4 and demo_truth()["masks"][5][y, x].all()


def test_an_empty_scene_is_refused_in_one_line(run):
    truth = demo_result().scene
    nothing = dataclasses.replace(
        demo_result(),
        scene=dataclasses.replace(
            truth, confidence=np.zeros_like(truth.confidence), dynamic_mask=np.zeros_like(truth.dynamic_mask)
        ),
    )
    code, said, exports = run(nothing)
    assert code == 1 and "No Gaussians: no static pixel" in said.err and said.err.count("\n") == 1
    assert not (exports / "gaussians").exists()
    with pytest.raises(e3r.InputError, match="no dynamic pixel of frame 3"):
        e3r.initial_gaussians(nothing.scene, frame=3)


def mask_of(folder: pathlib.Path, image: pathlib.Path) -> list[pathlib.Path]:
    """The masks that Brush 0.3 takes for an image: in `masks`, of the name's stem, or of the stem of the whole name."""
    return [p for p in (folder / "masks").iterdir() if p.stem.lower() in (image.name.lower(), image.stem.lower())]


def test_trainers_find_images_masks_and_points_in_the_colmap_export(run):
    """The parser of gsplat: COLMAP's own reader on `sparse/0`, names paired with the sorted files of `images`."""
    code, _, exports = run(demo_result(), format="colmap")
    folder = exports / "colmap"
    assert code == 0
    model = pycolmap.Reconstruction(folder / "sparse" / "0")
    files = sorted(p.name for p in (folder / "images").iterdir())
    assert sorted(image.name for image in model.images.values()) == files
    assert {camera.model.name for camera in model.cameras.values()} == {"PINHOLE"}
    assert len(model.points3D) > 1000
    assert all(len(image.get_observation_points2D()) for image in model.images.values())
    for name in files:
        assert len(mask_of(folder, folder / "images" / name)) == 1
    assert not list(folder.rglob("*.ply"))  # Brush would start from it instead of from the points
