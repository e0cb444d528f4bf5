"""Known depth, and metres. The truth is the bundled, rendered clip's, in which a world unit is one metre here."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

import easi3r_jax as e3r
from easi3r_jax.apps import export
from easi3r_jax.io import results
from easi3r_jax.io.priors.depth import load_depth
from tests.rendered import demo_result, demo_truth

#: Metres in a unit of the estimate's world.
UNIT = 0.37


def shrunk() -> e3r.Reconstruction:
    """The truth in another unit, and with noise, of which a tenth of the static pixels is far off."""
    truth = demo_result()
    rng = np.random.default_rng(0)
    depth = truth.scene.depth / UNIT * rng.normal(1, 0.05, truth.scene.depth.shape)
    depth[rng.random(depth.shape) < 0.1] *= 8
    poses = truth.scene.world_from_cam.copy()
    poses[:, :3, 3] /= UNIT
    scene = dataclasses.replace(truth.scene, depth=depth.astype(np.float32), world_from_cam=poses)
    return dataclasses.replace(truth, scene=scene, record={"options": {}})


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return results.save_result(tmp_path_factory.mktemp("metres") / "demo", shrunk())


@pytest.fixture
def run(capsys, saved, tmp_path):
    def run(scale_from, **values):
        values = {"scene": saved, "format": "npz,png,ply", "source": "frames", "output": tmp_path / "out"} | values
        arguments = [f"--{k}={v}" for k, v in values.items()]
        code = export.FLAGS.execute(export.main, ["", f"--scale_from={scale_from}", *arguments])
        return code, *capsys.readouterr()

    return run


def write(folder, numbers, form="png", depth=None, every=1):
    """Depth of some frames, taken by a sensor of fewer pixels."""
    folder.mkdir()
    depth = demo_truth()["depth"] if depth is None else depth
    for t in numbers:
        values = depth[t, ::every, ::every]
        if form == "npy":
            np.save(folder / f"{t:05d}.npy", values)
        elif form == "millimetres":
            np.save(folder / f"{t:05d}.npy", np.rint(1000 * values).astype(np.uint16))
        elif form == "tif":
            Image.fromarray(values.astype(np.float32)).save(folder / f"{t:05d}.tif")
        else:
            Image.fromarray(np.rint(1000 * values).astype(np.uint16)).save(folder / f"{t:05d}.png")
    return folder


@pytest.mark.parametrize(("form", "every"), [("png", 1), ("png", 2), ("npy", 1), ("millimetres", 2), ("tif", 4)])
def test_metres_from_the_depth_of_some_frames(run, tmp_path, form, every):
    folder = write(tmp_path / "depth", (0, 5, 11), form, every=every)
    code, out, err = run(folder)
    assert (code, err) == (0, "") and "by the depth of 3 frames" in out and "disagrees" not in out
    with np.load(tmp_path / "out" / "npz" / "arrays.npz") as file:
        static = ~file["dynamic_mask"]
        ratio = np.median(file["depth"][static] / demo_truth()["depth"][static])
        path, true = file["world_from_cam"][:, :3, 3], demo_truth()["world_from_cam"][:, :3, 3]
    assert abs(ratio - 1) < 0.01
    np.testing.assert_allclose(np.linalg.norm(path[15] - path[0]), np.linalg.norm(true[15] - true[0]), rtol=0.01)
    for name in ("npz", "png", "ply"):
        assert json.loads((tmp_path / "out" / name / "export.json").read_text())["unit"] == "metres"
    assert "(z, metres)" in (tmp_path / "out" / "png" / "scale.txt").read_text()


@pytest.mark.parametrize("cameras", ["", ":0:15", ":00000.png:00015.png", ":3:9"])
def test_metres_from_the_distance_of_two_cameras(run, tmp_path, cameras):
    first, last = (3, 9) if cameras == ":3:9" else (0, 15)
    centres = demo_truth()["world_from_cam"][:, :3, 3].astype(np.float64)
    length = np.linalg.norm(centres[last] - centres[first])
    code, out, _ = run(f"{length:.8f}{cameras}")
    assert code == 0 and f"frames {first} and {last} are" in out
    with np.load(tmp_path / "out" / "npz" / "arrays.npz") as file:
        found = file["world_from_cam"][:, :3, 3]
    np.testing.assert_allclose(found, centres, atol=1e-4)


def test_a_results_own_depth_is_read_with_its_scale(tmp_path):
    folder = results.save_result(tmp_path / "truth", demo_result(), record={"unit": "metres"})
    assert results.load_result(folder).unit == "metres" and "in metres" in repr(results.load_result(folder))
    found = load_depth(folder / "depth", demo_result().frames)
    np.testing.assert_allclose(found, demo_truth()["depth"], rtol=1e-3)


def test_one_wrong_frame_does_not_matter_but_disagreement_is_said(run, tmp_path):
    depth = demo_truth()["depth"].copy()
    depth[11] *= 2.5
    code, out, _ = run(write(tmp_path / "depth", (0, 5, 11), depth=depth))
    assert code == 0
    spread = float(out.split("the frames' scales differ by a factor of ")[1].split()[0])
    assert 2.4 < spread < 2.6
    factor = float(out.split("1 unit was ")[1].split()[0])
    assert abs(factor / UNIT - 1) < 0.02


def test_depth_of_what_moves_is_not_used():
    result = shrunk()
    depth = demo_truth()["depth"].copy()
    depth[demo_truth()["masks"]] *= 10
    found = e3r.scale_from_depth(result, depth)
    assert abs(found.factor / UNIT - 1) < 0.01 and found.agrees and found.num_frames == 16


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("long", "it must be a folder of depth maps, or a length"),
        ("-1.5", "it must be a folder of depth maps, or a length"),
        ("1.5:3", "it must be a folder of depth maps, or a length"),
        ("1.5:0:16", "There is no frame '16'"),
        ("1.5:4:4", "are in one place"),
        ("INVALID", "no value at any confident static pixel"),
        ("OTHERS", "for 1 images, the clip has 16"),
        ("EMPTY", "No depth maps in"),
        ("SHAPE", "of another shape than the video"),
        ("COLOUR", "not depth: save it with 16 bits"),
        ("RESULT", "says world units: this depth is of a result that is not in metres"),
    ],
)
def test_what_gives_no_scale_is_refused_in_one_line(run, tmp_path, case, words):
    folder = tmp_path / "depth"
    if case == "INVALID":
        write(folder, (0, 1), depth=np.zeros((16, 64, 96), np.float32))
    elif case == "OTHERS":
        folder.mkdir()
        np.save(folder / "cat.npy", demo_truth()["depth"][0])
    elif case == "EMPTY":
        folder.mkdir()
    elif case == "SHAPE":
        write(folder, (0, 1), depth=demo_truth()["depth"][:, :, :64])
    elif case == "RESULT":
        folder = results.save_result(tmp_path / "result", shrunk(), record={}) / "depth"
    elif case == "COLOUR":
        folder.mkdir()
        Image.fromarray(demo_result().scene.rgb[0]).save(folder / "00000.png")
    code, out, err = run(folder if case.isupper() else case)
    assert code == 1 and words in err and err.count("\n") == 1, (out, err)
