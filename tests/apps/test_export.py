"""`python -m experiments.export`, and where the images of an export come from. Results are made by hand."""

import json
import pathlib
import shutil

import av
import numpy as np
import PIL.Image
import PIL.ImageOps
import pycolmap
import pytest
import trimesh

from easi3r_jax.apps import export
from easi3r_jax.apps.originals import _difference, without_white_space
from easi3r_jax.core.config import FrameConfig
from easi3r_jax.core.types import Scene4D
from easi3r_jax.io import results
from easi3r_jax.io.video import load_frames, original_images
from tests.results import write_result

WIDTH, HEIGHT = 110, 70
TAKEN = FrameConfig(size=48, patch_size=16, every=2)


def pictures(count: int = 5) -> list[np.ndarray]:
    """Smooth, and each another."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    rng = np.random.default_rng(0)
    waves = rng.uniform(0.03, 0.12, (count, 3, 2)) * rng.choice([-1, 1], (count, 3, 2))
    phase = waves[..., 0, None, None] * x + waves[..., 1, None, None] * y
    return list((127 + 120 * np.sin(phase)).astype(np.uint8).transpose(0, 2, 3, 1))


@pytest.fixture
def folder_of_images(tmp_path) -> pathlib.Path:
    """Images of every kind that must not be copied as they are, and of those that may."""
    folder = tmp_path / "clip"
    folder.mkdir()
    first, second, third, fourth, fifth = (PIL.Image.fromarray(p) for p in pictures())
    first.save(folder / "shot 1.png")
    second.save(folder / "shot 2.jpg", quality=95)
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # stored lying on its side
    third.transpose(PIL.Image.Transpose.ROTATE_90).save(folder / "shot 3.jpg", quality=95, exif=exif)
    fourth.save(folder / "shot 4.png")
    fifth.convert("RGBA").save(folder / "shot 5.png")
    return folder


@pytest.fixture
def video(tmp_path) -> pathlib.Path:
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = WIDTH, HEIGHT, "yuv420p", 8_000_000
        for picture in pictures():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def result_of(source: pathlib.Path, folder: pathlib.Path, seq: str | None = None) -> pathlib.Path:
    """A result with a wall 4 units away."""
    frames = load_frames(source, TAKEN)
    count, height, width = frames.rgb.shape[:3]
    moving = np.zeros((count, height, width), bool)
    moving[:, 5:9, 20:30] = True
    world_from_cam = np.tile(np.eye(4, dtype=np.float32), (count, 1, 1))
    world_from_cam[:, 0, 3] = 0.1 * np.arange(count)
    scene = Scene4D(
        world_from_cam=world_from_cam,
        intrinsics=np.tile(np.array([[50, 0, width / 2], [0, 50, height / 2], [0, 0, 1]], np.float32), (count, 1, 1)),
        depth=np.full((count, height, width), 4, np.float32),
        confidence=np.full((count, height, width), 3, np.float32),
        dynamic_mask=moving,
        dynamic_score=moving.astype(np.float32),
        static_mask=~moving,
        rgb=frames.rgb,
    )
    config = {"options": {"seq": seq or str(source)}}
    return write_result(folder, scene, frames=frames, source_names=frames.names, config=config)


@pytest.fixture
def run(capsys):
    """`run(scene=…, format=…)`: exit code, stdout, stderr."""

    def run(**values):
        code = export.FLAGS.execute(export.main, ["", *(f"--{k}={v}" for k, v in values.items())])
        return code, *capsys.readouterr()

    return run


def sees_its_points(folder: pathlib.Path, result: pathlib.Path, *, original: bool) -> dict[str, PIL.Image.Image]:
    """Checks the model against the result's cameras; the images by name."""
    read = pycolmap.Reconstruction(folder / "sparse" / "0")
    saved = results.load_result(result)
    frame_from_image = saved.frames.frame_from_source if original else np.eye(3)
    for t, image in enumerate(sorted(read.images.values(), key=lambda image: image.name)):
        for row, column in ((0, 0), (11, 30), (31, 47)):
            ray = np.linalg.inv(saved.scene.intrinsics[t].astype(np.float64)) @ [column, row, 1]
            point = 4 * ray + saved.scene.world_from_cam[t, :3, 3]
            found = np.append(image.project_point(point) - 0.5, 1)
            np.testing.assert_allclose((frame_from_image @ found)[:2], [column, row], atol=1e-3)
    images = {}
    for path in sorted((folder / "images").iterdir()):
        with PIL.Image.open(path) as image:
            image.load()
            images[path.name] = image
    assert images.keys() == {image.name for image in read.images.values()}
    sizes = {image.size for image in images.values()}
    assert sizes == {(camera.width, camera.height) for camera in read.cameras.values()}
    assert sizes == {(WIDTH, HEIGHT) if original else saved.scene.rgb.shape[2:0:-1]}
    return images


def difference(image: PIL.Image.Image, picture: np.ndarray) -> float:
    return float(np.abs(np.asarray(image, np.float32) - picture).mean())


def test_images_of_a_folder_are_kept_as_they_are_where_every_program_reads_them_so(folder_of_images, tmp_path, run):
    result = result_of(folder_of_images, tmp_path / "result")
    code, out, err = run(scene=result, format="colmap,nerfstudio")
    assert (code, err) == (0, "")
    assert f"{WIDTH}x{HEIGHT} pixels: originals from {folder_of_images}\n" in out
    exports = result / "exports"
    images = sees_its_points(exports / "colmap", result, original=True)
    assert list(images) == ["shot_1.png", "shot_3.jpg.png", "shot_5.png.png"]
    for image, picture in zip(images.values(), pictures()[::2], strict=True):
        assert image.mode == "RGB" and not image.getexif()
        assert difference(image, picture) < 2
    copied = exports / "colmap" / "images" / "shot_1.png"
    assert copied.read_bytes() == (folder_of_images / "shot 1.png").read_bytes()
    meta = json.loads((exports / "nerfstudio" / "transforms.json").read_text())
    assert [frame["file_path"] for frame in meta["frames"]] == [f"images/{name}" for name in images]


def test_empty_clouds_are_reported(video, tmp_path, run):
    result = result_of(video, tmp_path / "result")
    for confidence, formats, told in ((3, "ply,png", False), (3.01, "ply,png", True), (3.01, "png,exr", False)):
        output = tmp_path / f"{confidence} {formats}"
        code, out, err = run(scene=result, format=formats, cloud_confidence=confidence, output=output)
        assert (code, err) == (0, "")
        assert (f"no static pixel has a confidence of at least {confidence:g}" in out) == told


def test_frames_of_a_video_are_decoded_again(video, tmp_path, run):
    result = result_of(video, tmp_path / "result")
    code, _, err = run(scene=result, format="colmap,npz", output=tmp_path / "out")
    assert (code, err) == (0, "")
    assert not (result / "exports").exists()
    images = sees_its_points(tmp_path / "out" / "colmap", result, original=True)
    assert list(images) == ["00000.jpg", "00002.jpg", "00004.jpg"]  # numbers in the video
    for image, original in zip(images.values(), original_images(video, [0, 2, 4]), strict=True):
        assert difference(image, np.asarray(original, np.float32)) < 3


def test_the_networks_frames_are_taken_where_asked_for_or_the_clip_has_moved(folder_of_images, tmp_path, run):
    result = result_of(folder_of_images, tmp_path / "result", seq=str(tmp_path / "gone"))
    for source in ("auto", "frames"):
        code, out, err = run(scene=result, format="colmap", source=source)
        assert (code, err) == (0, "")
        assert "48x16 pixels: the network's frames" in out
        assert ("is no longer at" in out and "give it as --source" in out) == (source == "auto")
        images = sees_its_points(result / "exports" / "colmap", result, original=False)
        rgb = results.load_result(result).scene.rgb
        np.testing.assert_array_equal(list(map(np.asarray, images.values())), rgb)
    moved = shutil.copytree(folder_of_images, tmp_path / "moved")
    (moved / "shot 0.png").write_bytes((moved / "shot 4.png").read_bytes())  # one more, in front
    assert run(scene=result, format="colmap", source=moved)[0] == 0
    assert len(sees_its_points(result / "exports" / "colmap", result, original=True)) == 3


def test_every_nth_frame(folder_of_images, tmp_path, run):
    result = result_of(folder_of_images, tmp_path / "result")
    assert run(scene=result, format="easi3r,png,colmap", every=2)[0] == 0
    exports = result / "exports"
    assert sorted(p.name for p in (exports / "png").iterdir()) == ["00000.png", "00002.png", "export.json", "scale.txt"]
    assert len(np.loadtxt(exports / "easi3r" / "pred_traj.txt")) == 2
    assert [p.name for p in sorted((exports / "colmap" / "images").iterdir())] == ["shot_1.png", "shot_5.png.png"]
    assert json.loads((exports / "colmap" / "export.json").read_text())["frames"] == [0, 2]


def test_points_are_chosen_by_confidence_and_number(folder_of_images, tmp_path, run):
    result = result_of(folder_of_images, tmp_path / "result")  # of confidence 3 everywhere
    for values, most, least in (({}, 2000, 500), ({"cloud_points": 100}, 100, 50), ({"cloud_confidence": 3.5}, 0, 0)):
        assert run(scene=result, format="colmap,ply", **values)[0] == 0
        read = pycolmap.Reconstruction(result / "exports" / "colmap" / "sparse" / "0")
        assert least <= len(read.points3D) <= most
        vertices = trimesh.load(result / "exports" / "ply" / "background.ply").vertices if most else []
        assert least <= len(vertices) <= most
        record = json.loads((result / "exports" / "colmap" / "export.json").read_text())
        assert record["max_points"] == values.get("cloud_points", 200_000)
        assert record["min_confidence"] == values.get("cloud_confidence", 1.1)


def test_the_printed_size_is_that_of_the_files(folder_of_images, tmp_path, run):
    result = result_of(folder_of_images, tmp_path / "result")
    _, out, _ = run(scene=result, format="exr")
    folder = result / "exports" / "exr"
    size = sum(p.stat().st_size for p in folder.iterdir())
    assert f"exr: {folder}, {size / 1e6:.2f} MB" in out


def test_a_frame_made_again_differs_by_less_than_two_levels(folder_of_images):
    frames = load_frames(folder_of_images, TAKEN)
    for frame, picture in zip(frames.rgb, pictures()[::2], strict=True):
        original, image_from_frame = PIL.Image.fromarray(picture), np.linalg.inv(frames.frame_from_source)
        assert _difference(original, image_from_frame, frame) < 2
        aside = np.add(image_from_frame, [[0, 0, 1.5], [0, 0, 1.5], [0, 0, 0]])
        assert _difference(original, aside, frame) > 3


def test_another_clip_is_refused_and_nothing_is_left(folder_of_images, video, tmp_path, run):
    result = result_of(folder_of_images, tmp_path / "result")
    before = {p: p.read_bytes() for p in result.rglob("*") if p.is_file()}
    other = tmp_path / "other"
    other.mkdir()
    for number, picture in enumerate(pictures(), 1):
        PIL.Image.fromarray(picture[::-1]).save(other / f"shot {number}.png")
    PIL.Image.fromarray(pictures()[2]).resize((220, 140)).save(other / "shot 3.jpg")
    framed = tmp_path / "framed"
    framed.mkdir()
    for path in folder_of_images.iterdir():
        with PIL.Image.open(path) as image:
            PIL.ImageOps.exif_transpose(image).crop((0, 0, WIDTH + 9, HEIGHT + 9)).save(framed / path.name)
    empty = tmp_path / "one"
    empty.mkdir()
    PIL.Image.fromarray(pictures()[0]).save(empty / "shot 1.png")
    for source, words in (
        (other, "is not the source of frame 0"),
        (framed, "is not the source of frame 0"),  # the same pictures, with a border to the right and below
        (empty, "has no image shot 3.jpg"),
        (tmp_path / "nowhere", "no video, image or folder"),
    ):
        code, _, err = run(scene=result, format="exr,colmap", source=source)
        assert code == 1 and words in err and err.count("\n") == 1
    assert not (result / "exports" / "colmap").exists()
    assert {p: p.read_bytes() for p in before} == before


def test_a_video_that_is_too_short_is_refused(video, tmp_path, run):
    result = result_of(video, tmp_path / "result")
    short = tmp_path / "short.mp4"
    with av.open(str(short), "w") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = WIDTH, HEIGHT, "yuv420p", 8_000_000
        for picture in pictures()[:3]:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    code, _, err = run(scene=result, format="colmap", source=short)
    assert code == 1 and "has no frame 4" in err


def test_an_older_result_has_no_originals(folder_of_images, tmp_path, run):
    result = result_of(folder_of_images, tmp_path / "result")
    with np.load(result / "scene.npz") as file:
        kept = {k: v for k, v in file.items() if k in ("images", *Scene4D.__dataclass_fields__)}
    np.savez(result / "scene.npz", **kept)
    code, out, err = run(scene=result, format="colmap")
    assert (code, err) == (0, "")
    assert "the network's frames (a result of an older version" in out
    code, _, err = run(scene=result, format="colmap", source=folder_of_images)
    assert code == 1 and "older version" in err and "--source=frames" in err


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"format": ""}, "--format is required"),
        ({"format": "colmap,fbx"}, "'fbx'"),
        ({"scene": ""}, "--scene is required"),
        ({"scene": "/nowhere"}, "No scene at /nowhere"),
    ],
)
def test_a_wrong_command_is_refused_in_one_line(folder_of_images, tmp_path, run, values, words):
    result = result_of(folder_of_images, tmp_path / "result")
    code, _, err = run(**({"scene": result, "format": "npz"} | values))
    assert code == 1 and words in err and err.count("\n") == 1
    assert not (result / "exports").exists()


def test_another_folder_is_not_replaced(folder_of_images, tmp_path, run):
    result = result_of(folder_of_images, tmp_path / "result")
    (tmp_path / "out" / "exr").mkdir(parents=True)
    (tmp_path / "out" / "exr" / "notes.txt").write_text("mine")
    code, _, err = run(scene=result, format="npz,exr", output=tmp_path / "out")
    assert code == 1 and "not empty" in err
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["exr"]


def test_names_without_white_space_stay_different():
    names = ["a b.png", "a_b.png", "a \t b.png", "c.png"]
    short = without_white_space(names)
    assert short == ["a_b.png", "00001_a_b.png", "00002_a_b.png", "c.png"]
    for others in (["00002_a_b", "a b", "a_b"], ["00002_a_b", "a_b", "a b", "a  b"]):
        assert len(set(without_white_space(others))) == len(others)
