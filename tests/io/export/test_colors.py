"""Colour scales."""

import numpy as np
import pytest
from matplotlib import colormaps

from easi3r_jax.io.pictures.colors import UNKNOWN, Scale, robust_scale, time_colors

#: The colour maps that pictures use.
USED = ("magma_r", "viridis", "inferno", "cividis")


def lightness(colors: np.ndarray) -> np.ndarray:
    """CIE L* of sRGB (..., 3) uint8: IEC 61966-2-1 and CIE 15."""
    x = np.asarray(colors) / 255
    linear = np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)
    y = linear @ [0.2126, 0.7152, 0.0722]
    return np.where(y > (6 / 29) ** 3, 116 * np.cbrt(y) - 16, (29 / 3) ** 3 * y)


def is_uniform(colors: np.ndarray) -> bool:
    """Whether lightness is monotonic over a wide range, in roughly even steps."""
    found = lightness(colors)
    steps = np.diff(found[:: len(found) // 16]) * np.sign(found[-1] - found[0])
    return bool(abs(found[-1] - found[0]) > 60 and (steps > 0).all() and steps.max() < 2 * steps.mean())


def test_lightness_of_known_colours():
    np.testing.assert_allclose(
        lightness(np.array([[0, 0, 0], [255, 255, 255], [119, 119, 119]])), [0, 100, 50.03], atol=0.1
    )


@pytest.mark.parametrize("colormap", USED)
def test_colour_maps_are_perceptually_uniform(colormap):
    assert is_uniform(Scale(colormap, 0, 1).colors(np.linspace(0, 1, 256)))


@pytest.mark.parametrize("colormap", ["turbo", "jet", "hsv"])
def test_the_check_rejects_maps_that_are_not_uniform(colormap):
    assert not is_uniform(colormaps[colormap](np.linspace(0, 1, 256), bytes=True)[:, :3])


@pytest.mark.parametrize("log", [False, True])
def test_numbers_and_colours_of_a_scale_agree(log):
    scale = Scale("viridis", 0.5, 32, log)
    positions = np.linspace(0, 1, 9)
    numbers = scale.numbers(positions)
    np.testing.assert_allclose(numbers[[0, -1]], [0.5, 32])
    steps = np.diff(np.log(numbers) if log else numbers)
    np.testing.assert_allclose(steps, steps[0])
    expected = colormaps["viridis"](positions, bytes=True)[:, :3].astype(int)
    np.testing.assert_allclose(scale.colors(numbers).astype(int), expected, atol=4)  # one of 256 steps


def test_numbers_outside_the_scale_are_clipped_and_missing_ones_are_grey():
    scale = Scale("magma_r", 1, 2, log=True)
    low, high = scale.colors(np.array([1, 2]))
    found = scale.colors(np.array([1e-9, 1e9, 0, -1, np.nan, np.inf]))
    np.testing.assert_array_equal(found, [low, high, UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN])
    np.testing.assert_array_equal(Scale("viridis", -1, 1).colors(np.array([np.nan])), [UNKNOWN])


def test_limits_are_robust_to_outliers():
    values = np.random.default_rng(0).uniform(2, 4, (5, 50, 60)).astype(np.float32)
    plain = robust_scale(values, "viridis")
    assert 2 < plain.low < 2.05 and 3.95 < plain.high < 4
    values[0, 0, :9] = [1e9, -1e9, np.inf, -np.inf, np.nan, 0, 1e30, 1e-30, -1]
    robust = robust_scale(values, "viridis", log=True)
    np.testing.assert_allclose([robust.low, robust.high], [plain.low, plain.high], rtol=0.01)


def test_limits_of_a_large_clip_include_all_its_columns():
    """They are from a sample, which must not be a single column of each frame."""
    values = np.broadcast_to(np.linspace(2, 4, 100, dtype=np.float32), (40, 500, 100))
    scale = robust_scale(values, "viridis")
    np.testing.assert_allclose([scale.low, scale.high], [2.02, 3.98], atol=0.03)


def test_time_goes_from_dark_to_bright():
    colors = time_colors(9)
    assert (np.diff(lightness(colors)) > 0).all() and len(colors) == 9


@pytest.mark.parametrize("value", [0.0, 1e-9, 3.0, -2.0, np.nan])
@pytest.mark.parametrize("log", [False, True])
def test_a_clip_of_one_number_has_a_scale(value, log):
    scale = robust_scale(np.full((2, 3, 4), value, np.float32), "viridis", log=log)
    assert scale.low < scale.high and (scale.low > 0 or not log)
    assert scale.colors(np.full(3, value)).shape == (3, 3)
