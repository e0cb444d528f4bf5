"""Recordings for Rerun, read back by its own reader."""

import dataclasses
import io
import sys

import numpy as np
import pytest
from PIL import Image

import easi3r_jax as e3r
from easi3r_jax.apps import export
from easi3r_jax.io import results
from easi3r_jax.io.export import point_cloud
from tests.rendered import CONFIG, rendered_result

rerun_chunk = pytest.importorskip("rerun.chunk")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    result = rendered_result()
    folder = tmp_path_factory.mktemp("rerun") / "result"
    return results.save_result(folder, result, record={"options": {}}, tracks=e3r.track_points(result, 100))


def exported(saved, capsys, **values):
    arguments = {"scene": saved, "format": "rerun", "source": "frames"} | values
    code = export.FLAGS.execute(export.main, ["", *(f"--{k}={v}" for k, v in arguments.items())])
    assert (code, capsys.readouterr().err) == (0, "")
    return read(saved / "exports" / "rerun" / "scene.rrd")


def read(path) -> dict[str, dict]:
    """Entities: component -> {frame number, or None if static: its flat values}."""
    reader = rerun_chunk.RrdReader(path)
    (entry,) = reader.recordings()
    assert entry.application_id == "easi3r_jax"
    found: dict[str, dict] = {}
    for chunk in reader.stream():
        table = chunk.to_record_batch()
        names = table.schema.names
        frames = [None] * chunk.num_rows if chunk.is_static else table.column(names.index("frame")).to_pylist()
        for index, name in enumerate(names):
            if ":" in name:
                values = found.setdefault(chunk.entity_path, {}).setdefault(name.split(":")[1], {})
                for row, frame in zip(table.column(index), frames, strict=True):
                    if row.is_valid:
                        values[frame] = row.values
    return found


def numbers(values, width: int) -> np.ndarray:
    return np.asarray(values.flatten(), np.float64).reshape(-1, width)


def test_the_recording_holds_cameras_images_depth_masks_points_and_tracks(saved, capsys):
    found, scene = exported(saved, capsys), rendered_result().scene
    count, (height, width) = CONFIG.num_frames, CONFIG.size
    camera = found["/world/camera"]
    cloud = point_cloud(scene, max_points=200_000)
    static = numbers(found["/world/static"]["positions"][None], 3)
    np.testing.assert_allclose(static, cloud.background.xyz, atol=1e-6)
    assert sorted(camera["translation"]) == list(range(count))
    tracks = e3r.track_points(rendered_result(), 100)
    for t in range(count):
        np.testing.assert_allclose(numbers(camera["translation"][t], 3)[0], scene.world_from_cam[t, :3, 3], atol=1e-6)
        turned = numbers(camera["mat3x3"][t], 9)[0].reshape(3, 3).T  # by columns
        np.testing.assert_allclose(turned, scene.world_from_cam[t, :3, :3], atol=1e-6)
        matrix = numbers(camera["image_from_camera"][t], 9)[0].reshape(3, 3).T
        np.testing.assert_allclose(matrix - [[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]], scene.intrinsics[t], atol=1e-4)
        depth = np.frombuffer(bytes(numbers(found["/world/camera/depth"]["buffer"][t], 1).astype(np.uint8)), "<f4")
        np.testing.assert_array_equal(depth.reshape(height, width), scene.depth[t])
        mask = numbers(found["/world/camera/dynamic"]["buffer"][t], 1).reshape(height, width)
        np.testing.assert_array_equal(mask, scene.dynamic_mask[t])
        with Image.open(
            io.BytesIO(bytes(numbers(found["/world/camera/image"]["blob"][t], 1).astype(np.uint8)))
        ) as image:
            assert image.size == (width, height)
            assert np.abs(np.asarray(image, np.float64) - scene.rgb[t]).mean() < 12  # noise, and halved colours
        np.testing.assert_allclose(
            numbers(found["/world/dynamic"]["positions"][t], 3), cloud.foreground[t].xyz, atol=1e-6
        )
        seen = numbers(found["/world/tracks"]["positions"][t], 3)
        np.testing.assert_allclose(seen, tracks.xyz[t][tracks.visible[t]], atol=1e-3)


def test_metres_apply_to_the_tracks_too(saved, capsys):
    scene = rendered_result().scene
    centres = scene.world_from_cam[:, :3, 3].astype(np.float64)
    length = 3 * np.linalg.norm(centres[-1] - centres[0])
    found = exported(saved, capsys, scale_from=f"{length:.8f}", every=2)
    tracks = e3r.track_points(rendered_result(), 100)
    assert sorted(found["/world/camera"]["translation"]) == [0, 2, 4]
    np.testing.assert_allclose(numbers(found["/world/camera"]["translation"][4], 3)[0], 3 * centres[4], rtol=1e-4)
    seen = numbers(found["/world/tracks"]["positions"][4], 3)
    np.testing.assert_allclose(seen, 3 * tracks.xyz[4][tracks.visible[4]], atol=3e-3)
    text = bytes(found["/world/unit"]["text"][None].to_pylist()[0], "utf-8")
    assert text == b"Lengths: metres"


def test_without_the_library_it_is_refused_in_one_line(saved, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "rerun", None)
    code = export.FLAGS.execute(export.main, ["", f"--scene={saved}", "--format=rerun"])
    err = capsys.readouterr().err
    assert code == 1 and "pip install 'easi3r_jax[rerun]'" in err and err.count("\n") == 1


def test_tracks_are_kept_by_where_they_start_and_scaled_without_depth(saved, capsys, tmp_path):
    tracks = e3r.track_points(rendered_result(), 100)
    assert 0 < tracks.dynamic.sum() < 100
    found = exported(saved, capsys, keep="dynamic")["/world/tracks"]["positions"]
    for t, values in found.items():
        assert len(numbers(values, 3)) == (tracks.visible[t] & tracks.dynamic).sum()
    scene = rendered_result().scene
    holes = dataclasses.replace(scene, depth=np.concatenate([0 * scene.depth[:1], scene.depth[1:]]))
    result = dataclasses.replace(rendered_result(), scene=holes)
    folder = results.save_result(tmp_path / "holes", result, record={"options": {}}, tracks=tracks)
    between = np.linalg.norm(scene.world_from_cam[-1, :3, 3] - scene.world_from_cam[0, :3, 3])
    found = exported(folder, capsys, scale_from=2 * between)["/world/tracks"]["positions"]
    np.testing.assert_allclose(numbers(found[0], 3), 2 * tracks.xyz[0][tracks.visible[0]], rtol=1e-3, atol=1e-3)
