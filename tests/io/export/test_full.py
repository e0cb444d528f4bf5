"""Depth at the originals' size, on rendered clips: their truth at the frames' size is enlarged three times."""

import dataclasses

import cv2
import numpy as np
import pytest
from PIL import Image

import easi3r_jax as e3r
from easi3r_jax.apps import export
from easi3r_jax.io import results
from tests.rendered import CONFIG, rendered, rendered_result

TIMES = 3
IMAGE_FROM_FRAME = np.array([[TIMES, 0, 1], [0, TIMES, 1], [0, 0, 1.0]])  # edges to edges


def small(seed: int) -> e3r.Reconstruction:
    """The exact result, whose frames are the large images reduced."""
    result, large = rendered_result(seed), rendered(seed, TIMES).views.rgb
    height, width = CONFIG.size
    rgb = np.stack([cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA) for image in large])
    frames = dataclasses.replace(
        result.frames,
        rgb=rgb,
        frame_from_source=np.linalg.inv(IMAGE_FROM_FRAME),
        source_size=np.array(large.shape[1:3], np.int32),
        names=tuple(f"{t:05d}.png" for t in range(len(rgb))),
    )
    return dataclasses.replace(result, scene=dataclasses.replace(result.scene, rgb=rgb), frames=frames)


def near_edges(depth: np.ndarray) -> np.ndarray:
    """(h, w): within four pixels of a step of a tenth."""
    logs, square = np.log(depth), np.ones((3, 3), np.uint8)
    step = cv2.dilate(logs, square) - cv2.erode(logs, square) > 0.1
    return cv2.dilate(step.astype(np.uint8), np.ones((7, 7), np.uint8)) > 0


def bilinear(values: np.ndarray) -> np.ndarray:
    height, width = CONFIG.size
    return cv2.resize(values.astype(np.float32), (TIMES * width, TIMES * height), interpolation=cv2.INTER_LINEAR)


def errors(seed: int) -> dict[str, np.ndarray]:
    """Means over a clip near edges, over all pixels, share of mixed depths near edges, share of wrong mask pixels."""
    result, truth = small(seed), rendered(seed, TIMES)
    found = {"bilinear": [], "full": []}
    for t, (depth, image) in enumerate(zip(truth.views.depth, truth.views.rgb, strict=True)):
        full = e3r.full_resolution(result.scene, t, image, IMAGE_FROM_FRAME)
        edges, masks = near_edges(depth), result.scene.dynamic_mask[t]
        for name, values, mask in (
            ("full", full.depth, full.dynamic),
            ("bilinear", 1 / bilinear(1 / result.scene.depth[t]), bilinear(masks) > 0.5),
        ):
            error = np.abs(values / depth - 1)
            wrong = (mask != truth.moving[t]).mean()
            found[name].append((error[edges].mean(), error.mean(), (error[edges] > 0.1).mean(), wrong))
    return {name: np.mean(rows, axis=0) for name, rows in found.items()}


def test_it_is_better_than_bilinear_near_edges_and_in_all():
    for seed in (0, 1):
        found = errors(seed)
        assert found["full"][0] < 0.35 * found["bilinear"][0]
        assert found["full"][1] < 0.7 * found["bilinear"][1]
        assert found["full"][2] < 0.1 * found["bilinear"][2]
        assert found["full"][3] < 0.7 * found["bilinear"][3]


def test_inside_a_slanted_plane_it_is_exact():
    scene = rendered_result().scene
    height, width = CONFIG.size
    y, x = np.mgrid[:height, :width]
    flat = dataclasses.replace(scene, depth=np.stack([1 / (0.2 + 0.0005 * x + 0.001 * y)] * 6).astype(np.float32))
    image = np.zeros((TIMES * height, TIMES * width, 3), np.uint8)
    depth = e3r.full_resolution(flat, 2, image, IMAGE_FROM_FRAME).depth
    y, x = (np.mgrid[: TIMES * height, : TIMES * width] - 1) / TIMES
    inner = np.s_[2:-2, 2:-2]
    np.testing.assert_allclose(1 / depth[inner], (0.2 + 0.0005 * x + 0.001 * y)[inner], rtol=2e-4)


def test_unknown_depth_and_what_the_crop_cut_off_stay_unknown():
    result = small(0)
    depth = result.scene.depth.copy()
    depth[0, 10:20, 30:40] = 0
    image = rendered(0, TIMES).views.rgb[0]
    wider = np.pad(image, ((0, 0), (30, 0), (0, 0)))
    moved = np.array([[1, 0, 30], [0, 1, 0], [0, 0, 1]]) @ IMAGE_FROM_FRAME
    full = e3r.full_resolution(dataclasses.replace(result.scene, depth=depth), 0, wider, moved)
    known = np.ones(image.shape[:2], bool)
    known[30:60, 90:120] = False
    np.testing.assert_array_equal(full.depth[:, 30:] > 0, known)
    assert (
        not full.depth[:, :30].any() and not full.dynamic[:, :30].any() and not full.confidence[~(full.depth > 0)].any()
    )


@pytest.fixture
def saved(tmp_path):
    """A result beside its originals."""
    clip = tmp_path / "clip"
    clip.mkdir()
    for t, image in enumerate(rendered(0, TIMES).views.rgb):
        Image.fromarray(image).save(clip / f"{t:05d}.png")
    return results.save_result(tmp_path / "result", small(0), record={"options": {"seq": str(clip)}})


def run(capsys, **values):
    code = export.FLAGS.execute(export.main, ["", *(f"--{k}={v}" for k, v in values.items())])
    return code, *capsys.readouterr()


def test_the_files_have_the_originals_size_and_are_read_back(saved, capsys):
    code, out, err = run(capsys, scene=saved, format="ply", full_resolution="true")
    assert (code, err) == (0, "") and "full: " in out
    folder, truth = saved / "exports" / "full", rendered(0, TIMES)
    assert sorted(p.name for p in folder.iterdir()) == ["confidence", "depth", "export.json", "intrinsics.txt", "masks"]
    scale = float((folder / "depth" / "scale.txt").read_text().split()[0])
    for t in (0, 5):
        with Image.open(folder / "depth" / f"{t:05d}.png") as image:
            depth = np.asarray(image) * scale
        assert depth.shape == truth.views.depth[t].shape
        assert np.abs(depth / truth.views.depth[t] - 1).mean() < 0.006
        with Image.open(folder / "masks" / f"{t:05d}.png") as image:
            assert ((np.asarray(image) > 0) != truth.moving[t]).mean() < 0.02
        with Image.open(folder / "confidence" / f"{t:05d}.png") as image:
            step = float((folder / "confidence" / "scale.txt").read_text().split()[0])
            np.testing.assert_allclose(np.asarray(image) * step, 3, atol=1e-3)
    found = np.loadtxt(folder / "intrinsics.txt").reshape(-1, 3, 3)
    np.testing.assert_allclose(found, truth.views.intrinsics, rtol=1e-5)


def test_without_the_originals_it_is_refused_in_one_line(saved, capsys):
    code, _, err = run(capsys, scene=saved, format="full", source="frames")
    assert code == 1 and "needs the original images" in err and err.count("\n") == 1
    with pytest.raises(e3r.InputError, match="8-bit RGB"):
        e3r.full_resolution(small(0).scene, 0, np.zeros((9, 9), np.uint8), IMAGE_FROM_FRAME)
