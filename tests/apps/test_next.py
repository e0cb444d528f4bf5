"""What people do next with a scene, by the program that reconstructs it, on the bundled clip and network."""

import json

import numpy as np
import pytest
from PIL import Image

import easi3r_jax as e3r
from easi3r_jax.apps import reconstruct, result_flags
from easi3r_jax.apps.exporting import exports_of_new
from easi3r_jax.apps.given import GivenFlags
from easi3r_jax.io import results
from tests.rendered import demo_result, demo_truth

QUICK = {"seq": "demo", "first": 3, "graph": "complete", "iterations": 20, "compare_plain": False}


@pytest.fixture
def run(reconstruct_here):
    return lambda **values: reconstruct_here(**{**QUICK, **values})


def of_a_network(frames, edges, **_):
    """Flow that is used everywhere, as of a network."""
    return e3r.dense_flow(frames, edges)[0], None


@pytest.fixture
def network(monkeypatch):
    monkeypatch.setattr(GivenFlags, "flow_source", lambda *_: (of_a_network, {}))


def test_everything_in_one_run(run, network, tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(reconstruct, "serve", lambda saved, **_: shown.extend(saved))
    monkeypatch.setattr(reconstruct.viewer, "import_viser", lambda: None)
    depth = tmp_path / "depth"
    depth.mkdir()
    for t in (0, 2):
        millimetres = np.rint(1000 * demo_truth()["depth"][t]).astype(np.uint16)
        Image.fromarray(millimetres).save(depth / f"{t:05d}.png")
    code, out, err = run(tracks=50, scale_from=depth, full_resolution=True, keep="static", view=True)
    assert (code, err) == (0, "")
    assert "in metres: 1 unit was" in out and "by the depth of 2 frames" in out and "no tracks" not in out
    saved = results.load_result(tmp_path / "out")
    assert saved.unit == "metres"
    np.testing.assert_array_equal(shown[0].scene.depth > 0, (saved.scene.depth > 0) & ~saved.scene.dynamic_mask)
    assert np.median(saved.scene.depth / demo_truth()["depth"][:3]) == pytest.approx(1, abs=0.2)
    with np.load(tmp_path / "out" / "tracks.npz") as file:
        assert file["tracks_XYZ"].shape == (3, 50, 3) and str(file["unit"]) == "metres"
        start = file["queries_xyt"][:, 2].astype(int)
        x, y = (file["queries_xyt"][:, :2] - 0.5).round().astype(int).T
        np.testing.assert_allclose(
            file["tracks_XYZ"][start, np.arange(50), 2], saved.scene.depth[start, y, x], rtol=1e-4
        )
    full = tmp_path / "out" / "exports" / "full"
    record = json.loads((full / "export.json").read_text())
    assert record["restricted"] is True and record["unit"] == "metres" and record["frames"] == [0, 1, 2]


def test_a_result_is_kept_without_its_tracks(run, network, tmp_path, monkeypatch):
    def fails(*_, **__):
        raise e3r.InputError("the flow is not finite.")

    monkeypatch.setattr(result_flags, "track_points", fails)
    code, out, err = run(tracks=50)
    assert (code, err) == (0, "") and "  no tracks: the flow is not finite." in out
    assert results.load_result(tmp_path / "out").scene.depth.shape[0] == 3
    assert not (tmp_path / "out" / "tracks.npz").exists()


def test_an_export_that_fails_is_a_line_and_the_clip_of_an_address_is_known(tmp_path):
    """What a result says of its clip is not followed to an address; the program knows the clip on this machine."""
    saved = results.save_result(tmp_path / "out", demo_result(), record={"options": {"seq": "s3://bucket/clip"}})
    options = {"min_confidence": 1.0, "max_points": 100, "progress": lambda *_: None}
    (line,) = exports_of_new(saved, ("full",), source="auto", **options)
    assert line.startswith("  not exported: Full resolution needs the original images")
    (line,) = exports_of_new(saved, ("full",), source="demo", **options)
    assert line.startswith("  full: ") and (saved / "exports" / "full").is_dir()


def test_tracks_of_a_clip_without_motion_are_said_to_rest(run, tmp_path):
    code, out, err = run(
        tracks=20,
        mode="feedforward",
        graph=e3r.PipelineConfig().graph,
        iterations=e3r.AlignConfig().iterations,
        distortion="SIMPLE_RADIAL:90,48,32,-0.05",
    )
    assert (code, err) == (0, "") and "tracks: no motion was detected" in out
    assert "their focal length is the network's" in out
    with np.load(tmp_path / "out" / "tracks.npz") as file:
        assert file["visibility"].shape == (3, 20)
