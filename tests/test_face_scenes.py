"""What people do next with a scene, through the public face: metres, lenses, tracks, Gaussians, full resolution."""

import numpy as np
import pytest

import easi3r_jax as e3r
from tests.rendered import demo_result


def test_a_length_gives_metres():
    result = demo_result()
    centres = np.asarray(result.scene.world_from_cam)[:, :3, 3]
    factor = e3r.scale_from_length(result, 2 * float(np.linalg.norm(centres[-1] - centres[0])))
    assert factor == pytest.approx(2)
    metres = e3r.in_metres(result, factor)
    assert metres.unit == "metres" and result.unit == "arbitrary"
    np.testing.assert_allclose(metres.scene.depth, 2 * np.asarray(result.scene.depth), rtol=1e-6)
    found = e3r.scale_from_depth(result, 3 * np.asarray(result.scene.depth))
    assert isinstance(found, e3r.MetricScale) and found.factor == pytest.approx(3) and found.spread == pytest.approx(1)


def test_a_lens_by_its_parameters():
    lens = e3r.load_lens("SIMPLE_RADIAL:90,48,32,-0.1")
    assert isinstance(lens, e3r.Lens) and lens.parameters == (90, 48, 32, -0.1)
    image = np.random.default_rng(0).integers(0, 255, (64, 96, 3), np.uint8)
    straight = lens.undistort(image)
    assert straight.shape == image.shape and straight.dtype == np.uint8 and (straight != image).any()


def test_points_of_a_scene_in_other_forms():
    result = demo_result()
    tracks = e3r.track_points(result, 20)
    assert isinstance(tracks, e3r.Tracks) and tracks.xyz.shape == (len(result.scene.depth), 20, 3)
    gaussians = e3r.initial_gaussians(result.scene, max_points=500)
    assert isinstance(gaussians, e3r.Gaussians) and 100 < len(gaussians.xyz) <= 500 and (gaussians.scale > 0).all()
    image = np.asarray(result.scene.rgb[0])
    frame = e3r.full_resolution(result.scene, 0, image, np.eye(3))
    assert isinstance(frame, e3r.FullFrame) and frame.depth.shape == image.shape[:2]
    kept = e3r.keep_points(result, "dynamic")
    assert ((np.asarray(kept.scene.depth) > 0) <= np.asarray(result.scene.dynamic_mask)).all()
