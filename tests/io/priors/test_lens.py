"""Distorted lenses. A rendered clip is warped by a known lens, and comes out as if it had been rendered without it."""

import dataclasses
import functools
import json

import cv2
import numpy as np
import pycolmap
import pytest
from PIL import Image

import easi3r_jax as e3r
from easi3r_jax.apps import export, reconstruct
from easi3r_jax.core.lens import MODELS, Lens, parse_lens
from easi3r_jax.io import results
from easi3r_jax.io.priors.cameras import load_cameras
from easi3r_jax.io.priors.depth import load_depth
from easi3r_jax.io.priors.lens import load_lens
from easi3r_jax.io.priors.masks import load_masks
from easi3r_jax.io.video import load_frames as read
from tests.rendered import CONFIG, rendered

TIMES, FRAMES = 3, 2
SIZE = (TIMES * CONFIG.size[1], TIMES * CONFIG.size[0])
#: Coefficients of strong lenses, by model.
STRONG = {
    "SIMPLE_RADIAL": (-0.22,),
    "RADIAL": (-0.25, 0.06),
    "OPENCV": (-0.25, 0.06, 0.004, -0.003),
    "FULL_OPENCV": (-0.25, 0.06, 0.004, -0.003, 0.01, 0.02, 0.005, 0.001),
    "SIMPLE_RADIAL_FISHEYE": (-0.05,),
    "RADIAL_FISHEYE": (-0.05, 0.01),
    "OPENCV_FISHEYE": (0.06, -0.02, 0.01, -0.002),
}


def true_camera() -> np.ndarray:
    return rendered(0, TIMES).views.intrinsics[0].astype(np.float64)


def lens(model: str) -> Lens:
    """A lens of a longer focal length, so that the pinhole image covers what it sees."""
    focal = 1.35 * true_camera()[0, 0]
    center = SIZE[0] / 2 + 3, SIZE[1] / 2 - 2
    focals = (focal,) if "f" in MODELS[model] else (focal, 1.01 * focal)
    return Lens(model, (*focals, *center, *STRONG[model]), SIZE)


@functools.cache
def seen_by(by: Lens) -> tuple[np.ndarray, np.ndarray]:
    """Where each pixel of the lens's image is in the pinhole image, found by iteration on OpenCV's projection."""
    matrix, coefficients = by.camera(SIZE)
    y, x = np.mgrid[: SIZE[1], : SIZE[0]].astype(np.float64)
    pixels = np.stack([x.ravel(), y.ravel()], -1)
    rays = (pixels - matrix[:2, 2]) / matrix[[0, 1], [0, 1]]
    for _ in range(30):
        if by.is_fisheye:
            found = cv2.fisheye.distortPoints(rays[:, None], matrix, coefficients)[:, 0]
        else:
            points = np.column_stack([rays, np.ones(len(rays))])
            found = cv2.projectPoints(points, np.zeros(3), np.zeros(3), matrix, coefficients)[0][:, 0]
        rays += (pixels - found) / matrix[[0, 1], [0, 1]]
    assert np.abs(pixels - found).max() < 1e-3
    there = rays @ true_camera()[:2, :2].T + true_camera()[:2, 2]
    x, y = there.reshape(SIZE[1], SIZE[0], 2).transpose(2, 0, 1).astype(np.float32)
    assert x.min() > 0 and y.min() > 0 and x.max() < SIZE[0] - 1 and y.max() < SIZE[1] - 1
    return x, y


def warped(image: np.ndarray, by: Lens) -> np.ndarray:
    """What the lens sees of a pinhole image."""
    return cv2.remap(image, *seen_by(by), cv2.INTER_CUBIC)


@pytest.fixture
def clip(tmp_path):
    """`clip(model)`: a folder of the distorted images."""

    def clip(model):
        folder = tmp_path / "clip"
        folder.mkdir()
        for t, image in enumerate(rendered(0, TIMES).views.rgb[:FRAMES]):
            Image.fromarray(warped(image, lens(model))).save(folder / f"{t:05d}.png")
        return folder

    return clip


def expected(camera: np.ndarray, size: tuple[int, int], t: int) -> np.ndarray:
    """The image that a camera without distortion takes: sampled from the pinhole image."""
    matrix = true_camera() @ np.linalg.inv(camera)
    return cv2.warpPerspective(
        rendered(0, TIMES).views.rgb[t], matrix, size, flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    )


@pytest.mark.parametrize("model", MODELS)
def test_frames_are_those_of_a_camera_without_distortion_whose_focal_length_is_known(clip, model):
    """To a level of 255 or two of the resampling; the distorted frames are ten times as far off."""
    folder, config = clip(model), e3r.FrameConfig(size=SIZE[0], patch_size=16, lens=lens(model))
    frames = e3r.load_frames(folder, config)
    cameras = load_cameras(frames)
    assert cameras.intrinsics_known.all()
    camera = np.eye(3)
    camera[[0, 1], [0, 1]] = cameras.focal[0]
    camera[:2, 2] = cameras.principal_point[0]
    height, width = frames.rgb.shape[1:3]
    distorted = e3r.load_frames(folder, dataclasses.replace(config, lens=None)).rgb
    for t in range(FRAMES):
        truth = expected(camera, (width, height), t).astype(np.float64)
        error = np.abs(frames.rgb[t] - truth).mean()
        assert error < 2.5
        assert np.abs(distorted[t] - truth).mean() > 4 * error
        # A focal length that is a hundredth off fits visibly worse.
        for factor in (0.98, 1.02):
            wrong = camera * [[factor], [factor], [1]] + [[0, 0, (1 - factor) * camera[0, 2]], [0, 0, 0], [0, 0, 0]]
            wrong[1, 2] = camera[1, 2]
            assert np.abs(frames.rgb[t] - expected(wrong, (width, height), t)).mean() > 1.3 * error


def test_the_program_reads_every_form_of_the_same_lens(tmp_path):
    one = lens("OPENCV")
    line = " ".join(f"{value:.12g}" for value in one.parameters)
    (tmp_path / "cameras.txt").write_text(f"# comment\n1 OPENCV {SIZE[0]} {SIZE[1]} {line}\n")
    names = ("fl_x", "fl_y", *MODELS["OPENCV"][2:])
    values = dict(zip(names, one.parameters, strict=True))
    meta = {"camera_model": "OPENCV", "w": SIZE[0], "h": SIZE[1], **values, "frames": []}
    (tmp_path / "transforms.json").write_text(json.dumps(meta))
    for text in (f"OPENCV:{line.replace(' ', ',')}", tmp_path / "cameras.txt", tmp_path / "transforms.json"):
        reconstruct.FLAGS.assign({"distortion": text})
        found = reconstruct.lens_of(reconstruct.DISTORTION)
        assert found is not None
        np.testing.assert_allclose(found.undistorted_camera(SIZE), one.undistorted_camera(SIZE), rtol=1e-9)
    assert parse_lens(str(one)).size == SIZE


def test_a_lens_scales_with_its_images():
    one = lens("OPENCV")
    large = one.undistorted_camera((2 * SIZE[0], 2 * SIZE[1]))
    np.testing.assert_allclose(large[0, 0], 2 * one.undistorted_camera(SIZE)[0, 0], rtol=0.01)
    with pytest.raises(e3r.InputError, match="of another shape"):
        one.undistorted_camera((SIZE[0], SIZE[0]))


def test_results_and_exports_have_the_undistorted_originals(clip, tmp_path, capsys):
    folder, one = clip("RADIAL"), lens("RADIAL")
    frames = read(folder, e3r.FrameConfig(size=96, patch_size=16, lens=one))
    count, height, width = frames.rgb.shape[:3]
    camera = frames.frame_from_source @ one.undistorted_camera(SIZE)
    still = np.ones((count, height, width), bool)
    scene = e3r.Scene4D(
        world_from_cam=np.tile(np.eye(4, dtype=np.float32), (count, 1, 1)),
        intrinsics=np.tile(camera.astype(np.float32), (count, 1, 1)),
        depth=np.full((count, height, width), 2, np.float32),
        confidence=np.full((count, height, width), 3, np.float32),
        dynamic_mask=~still,
        dynamic_score=np.zeros((count, height, width), np.float32),
        static_mask=still,
        rgb=frames.rgb,
    )
    record = {"options": {"seq": str(folder)}}
    saved = results.save_result(tmp_path / "result", e3r.Reconstruction(scene=scene, frames=frames, record=record))
    assert str(results.load_result(saved).frames.lens) == str(one)
    assert export.FLAGS.execute(export.main, ["", f"--scene={saved}", "--format=nerfstudio"]) == 0
    out = saved / "exports" / "nerfstudio"
    assert json.loads((out / "export.json").read_text())["undistorted"] == str(one)
    meta = json.loads((out / "transforms.json").read_text())
    found = np.array([[meta["fl_x"], 0, meta["cx"] - 0.5], [0, meta["fl_y"], meta["cy"] - 0.5], [0, 0, 1]])
    np.testing.assert_allclose(found, one.undistorted_camera(SIZE), rtol=1e-5)
    with Image.open(out / "images" / meta["frames"][0]["file_path"].split("/")[1]) as image:
        assert np.abs(np.asarray(image, np.float64) - expected(found, SIZE, 0)).mean() < 2.5
    assert "undistorted" not in capsys.readouterr().err


def test_masks_of_the_distorted_originals_are_undistorted(clip, tmp_path):
    frames = read(clip("RADIAL"), e3r.FrameConfig(size=2 * CONFIG.size[1], patch_size=16, lens=lens("RADIAL")))
    moving = rendered(0, TIMES).moving[:FRAMES]
    folder = tmp_path / "masks"
    folder.mkdir()
    for t, mask in enumerate(moving):
        seen = warped(np.where(mask, 255, 0).astype(np.uint8), lens("RADIAL")) > 127
        Image.fromarray(np.where(seen, 255, 0).astype(np.uint8)).save(folder / f"{t:05d}.png")
    found = load_masks(folder, frames)
    assert frames.rgb.shape[1:3] != SIZE[::-1]
    camera = frames.frame_from_source @ lens("RADIAL").undistorted_camera(SIZE)
    matrix = true_camera() @ np.linalg.inv(camera)
    size = frames.rgb.shape[2:0:-1]
    for t, mask in enumerate(moving):
        truth = cv2.warpPerspective(np.where(mask, 255, 0).astype(np.uint8), matrix, size, flags=cv2.WARP_INVERSE_MAP)
        assert (found[t] != (truth > 127)).mean() < 0.02


def test_masks_and_depth_of_the_frames_size_are_of_the_frames_even_if_it_is_the_originals(clip, tmp_path):
    frames = read(clip("RADIAL"), e3r.FrameConfig(size=SIZE[0], patch_size=8, lens=lens("RADIAL")))
    assert frames.rgb.shape[1:3] == frames.original_size
    mask = np.random.default_rng(0).random(frames.original_size) < 0.5
    for t in range(FRAMES):
        for name, values in (("masks", np.where(mask, 255, 0)), ("depth", np.where(mask, 2000, 1000))):
            (tmp_path / name).mkdir(exist_ok=True)
            Image.fromarray(values.astype(np.uint8 if name == "masks" else np.uint16)).save(
                tmp_path / name / f"{t:05d}.png"
            )
    np.testing.assert_array_equal(load_masks(tmp_path / "masks", frames)[0], mask)
    np.testing.assert_allclose(load_depth(tmp_path / "depth", frames)[0], np.where(mask, 2, 1))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("FOV:100,50,40,0.9", "is not a lens: give MODEL:PARAMETERS with a model of SIMPLE_RADIAL"),
        ("OPENCV:100,100,50,40,0.1", "OPENCV has 8 parameters, fx fy cx cy k1 k2 p1 p2; 5 were given"),
        ("OPENCV:a,b,c,d,e,f,g,h", "are not numbers"),
        ("SIMPLE_RADIAL:-100,50,40,0.1", "not a camera's"),
        ("PINHOLE:100,100,50,40", "has no distortion: give it as --intrinsics"),
        ("none.txt", "There is no file"),
        ("two.txt", "has 2 cameras"),
        ("old.txt", "'FISHEYE62' is unknown"),
        ("bad.json", "is unknown: it must be one of"),
        ("few.json", "has no number 'cx'"),
    ],
)
def test_what_is_no_lens_is_refused_in_one_line(tmp_path, monkeypatch, capsys, text, words):
    monkeypatch.chdir(tmp_path)
    camera = "SIMPLE_RADIAL 100 80 90 50 40 0.1"
    (tmp_path / "two.txt").write_text(f"1 {camera}\n2 {camera}1\n")
    (tmp_path / "old.txt").write_text("1 FISHEYE62 100 80 90 50 40 0.1\n")
    (tmp_path / "bad.json").write_text('{"camera_model": "EQUIRECTANGULAR", "fl_x": 9, "frames": []}')
    (tmp_path / "few.json").write_text('{"camera_model": "OPENCV", "fl_x": 90, "k1": 0.1, "frames": []}')
    code = reconstruct.FLAGS.execute(lambda: reconstruct.check_options(), ["", f"--distortion={text}"])
    err = capsys.readouterr().err
    assert code == 1 and words in err and err.count("\n") == 1


def test_parameters_that_fit_no_image_are_refused():
    with pytest.raises(e3r.InputError, match="outside of the image"):
        Lens("SIMPLE_RADIAL", (90, 500, 40, 0.1), (100, 80)).undistorted_camera((100, 80))
    with pytest.raises(e3r.InputError, match="No undistorted image fits"):
        Lens("SIMPLE_RADIAL", (90, 50, 40, 1e9), (100, 80)).undistorted_camera((100, 80))


@pytest.mark.parametrize("model", MODELS)
def test_undistorted_pixels_come_from_where_colmaps_camera_sees_them(model):
    camera = lens(model).undistorted_camera(SIZE)
    pixels = np.array([(x, y) for x in (1, SIZE[0] // 2, SIZE[0] - 2) for y in (1, SIZE[1] // 3, SIZE[1] - 2)], float)
    rays = (pixels - camera[:2, 2]) / camera[[0, 1], [0, 1]]
    own = pycolmap.Camera(model=model, width=SIZE[0], height=SIZE[1], params=list(lens(model).parameters))
    truth = np.asarray(own.img_from_cam(np.column_stack([rays, np.ones(len(rays))])), np.float64) - 0.5
    y, x = np.mgrid[: SIZE[1], : SIZE[0]].astype(np.float32)
    columns, rows = pixels.astype(int).T
    found = np.stack([lens(model).undistort(values)[rows, columns] for values in (x, y)], -1)
    np.testing.assert_allclose(found, truth, atol=0.1)


@pytest.mark.parametrize("model", MODELS)
def test_maps_run_forwards(model):
    y, x = np.mgrid[: SIZE[1], : SIZE[0]].astype(np.float32)
    assert (np.diff(lens(model).undistort(x)[:, 2:-2], axis=1) > 0).all()
    assert (np.diff(lens(model).undistort(y)[2:-2], axis=0) > 0).all()


@pytest.mark.parametrize("text", ["SIMPLE_RADIAL:900,960,540,-0.3", "OPENCV:900,900,960,540,-0.35,0.02,0,0"])
def test_a_lens_that_folds_is_refused(text):
    with pytest.raises(e3r.InputError, match="folds"):
        load_lens(text).undistorted_camera((1920, 1080))


def test_a_circular_fisheye_gives_its_middle(caplog):
    """180 degrees in a circle of 540 pixels: no pinhole image shows all of it."""
    focal, size = 540 / (np.pi / 2), (1080, 1080)
    one = Lens("OPENCV_FISHEYE", (focal, focal, 540, 540, 0, 0, 0, 0), size)
    camera = one.undistorted_camera(size)
    assert camera[0, 0] >= 0.5 * focal
    assert np.degrees(2 * np.arctan(np.hypot(*size) / 2 / camera[0, 0])) <= 120
    assert "its middle, with a field of view of" in caplog.text
    _, x = np.mgrid[: size[1], : size[0]].astype(np.float32)
    assert (np.diff(one.undistort(x)[:, 2:-2], axis=1) > 0).all()


def test_what_becomes_smaller_is_blurred_before():
    """Stripes of one pixel would become a false pattern in the middle, where three become two."""
    size = (1080, 1080)
    one = Lens("RADIAL", (677, 540, 540, -0.29, 0.04), size)
    assert one.undistorted_camera(size)[0, 0] / 677 < 0.7
    stripes = np.zeros((1080, 1080), np.uint8)
    stripes[:, ::2] = 255
    middle = one.undistort(stripes)[500:580, 480:600].astype(float)
    assert middle.std() < 40 and abs(middle.mean() - 127.5) < 5
