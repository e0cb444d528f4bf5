"""Colours of the viewer's points, and their legend."""

import dataclasses

import numpy as np
import pytest

from easi3r_jax.io.pictures.colors import time_colors
from easi3r_jax.viewer import colors
from easi3r_jax.viewer.clouds import Placement, moving_cloud, static_cloud


@pytest.fixture
def ranges(scene):
    return colors.measure(scene, np.arange(6) / 20)


def test_ranges_span_most_of_the_values(scene, ranges):
    low, high = ranges.limits["depth"]
    inside = (scene.depth >= low) & (scene.depth <= high)
    assert inside.mean() > 0.9 and low < high
    assert ranges.limits["dynamic score"] == (0.0, pytest.approx(0.9))
    assert ranges.seconds == (0.0, 0.25)
    scaled = colors.measure(scene, np.arange(6) / 20, scale=10.0)
    assert scaled.limits["depth"] == pytest.approx((10 * low, 10 * high))
    assert scaled.limits["confidence"] == ranges.limits["confidence"]


def test_outliers_do_not_spoil_a_range(scene, ranges):
    outliers = dataclasses.replace(scene, depth=scene.depth.copy())
    outliers.depth[:, 0, :8] = 1e9
    outliers.depth[:, 1, :8] = np.inf
    outliers.depth[:, 2, :8] = np.nan
    low, high = colors.measure(outliers, np.zeros(6)).limits["depth"]
    assert low >= 1.9 and np.isfinite(high)


def test_confidence_zeroed_by_the_clean_up_does_not_enter_the_range(scene, ranges):
    mostly = np.where(np.arange(scene.depth.shape[2]) % 5 == 0, scene.confidence, 0).astype(np.float32)
    low, _ = colors.measure(dataclasses.replace(scene, confidence=mostly), np.zeros(6)).limits["confidence"]
    assert low >= scene.confidence.min() > 0


def test_a_constant_or_missing_quantity_has_a_range(scene):
    flat = dataclasses.replace(scene, depth=np.full_like(scene.depth, 2), dynamic_score=np.zeros_like(scene.depth))
    nothing = dataclasses.replace(scene, depth=np.full_like(scene.depth, np.nan))
    for limits in (colors.measure(s, np.zeros(6)).limits for s in (flat, nothing)):
        assert all(low < high for low, high in limits.values())


@pytest.mark.parametrize("quantity", ["depth", "confidence", "dynamic score"])
def test_lightness_follows_the_quantity(ranges, quantity):
    """The maps are perceptually uniform: luma is strictly monotonic."""
    low, high = ranges.limits[quantity]
    shades = colors.shades(np.linspace(low, high, 32), quantity, ranges).astype(np.float64)
    luma = np.diff(shades @ [0.2126, 0.7152, 0.0722])
    assert (luma > 0).all() or (luma < 0).all()
    np.testing.assert_array_equal(colors.shades(np.array([low - 5, high + 5]), quantity, ranges), shades[[0, -1]])


def test_values_that_are_not_finite_are_black(ranges):
    assert not colors.shades(np.array([np.nan, np.inf]), "depth", ranges).any()


def test_points_have_the_colours_of_their_attributes(scene, ranges):
    moving, static = moving_cloud(scene, 4, Placement(), 50), static_cloud(scene, Placement(), 50)
    np.testing.assert_array_equal(colors.point_colors(moving, "RGB", ranges), moving.rgb)
    np.testing.assert_array_equal(
        colors.point_colors(moving, "time", ranges), np.tile(time_colors(6)[4], (len(moving), 1))
    )
    values = colors.point_colors(static, "confidence", ranges)
    np.testing.assert_array_equal(values, colors.shades(static.confidence, "confidence", ranges))
    marked, plain = (colors.point_colors(cloud, "mask", ranges).astype(int) for cloud in (moving, static))
    assert (marked[:, 0] > marked[:, 1] + 40).all()  # red
    assert (plain.max(axis=1) == plain.min(axis=1)).all()  # grey


@pytest.mark.parametrize("choice", colors.CHOICES)
def test_every_choice_colours_every_cloud_and_has_a_legend(scene, ranges, choice):
    for cloud in (
        moving_cloud(scene, 0, Placement(), 20),
        static_cloud(scene, Placement(), 20),
        static_cloud(scene, Placement(), 1)[:0],
    ):
        shades = colors.point_colors(cloud, choice, ranges)
        assert shades.shape == (len(cloud), 3) and shades.dtype == np.uint8
    legend = colors.legend(choice, ranges)
    if choice in ranges.limits:
        low, high = ranges.limits[choice]
        assert f"{low:.3g}" in legend and f"{high:.3g}" in legend
        first = colors.shades(np.array([low]), choice, ranges)[0]
        assert "linear-gradient(to right, rgb({}, {}, {})".format(*first) in legend
    elif choice == "time":
        assert "0 s" in legend and "0.25 s" in legend
    else:
        assert (legend == "") == (choice == "RGB")


def test_the_legend_is_in_the_scenes_own_units(scene, ranges):
    scaled = colors.measure(scene, np.arange(6) / 20, scale=0.01)
    assert colors.legend("depth", scaled) == colors.legend("depth", ranges)


def test_near_is_bright(ranges):
    near, far = (colors.shades(np.array([v]), "depth", ranges).sum() for v in ranges.limits["depth"])
    assert near > far
