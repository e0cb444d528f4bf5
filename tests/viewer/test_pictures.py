"""The panel's image, and videos, which are read back by FFmpeg."""

import io

import av
import numpy as np
import pytest

from easi3r_jax.viewer import colors, pictures
from tests.viewer.conftest import make_scene


@pytest.mark.parametrize("size", [(24, 32), (288, 512), (70, 241)])
def test_the_picture_shows_four_views_and_fits_the_panel(size):
    scene = make_scene(2, *size)
    ranges = colors.measure(scene, np.arange(2.0))
    picture = pictures.frame_picture(scene, 1, ranges)
    height, width = picture.shape[:2]
    assert width <= 484 and picture.dtype == np.uint8
    assert width / height == pytest.approx(size[1] / size[0], rel=0.06)
    tile = picture[height // 2 + 4 :, width // 2 + 4 :]  # the mask
    rows, columns = np.linspace(0, 0.999, 40) * tile.shape[0], np.linspace(0, 0.999, 40) * tile.shape[1]
    sampled = tile[np.ix_(rows.astype(int), columns.astype(int))].astype(int)
    mask = scene.dynamic_mask[1][
        np.ix_((rows / tile.shape[0] * size[0]).astype(int), (columns / tile.shape[1] * size[1]).astype(int))
    ]
    red = sampled[..., 0] > sampled[..., 2] + 60
    assert (red == mask).mean() > 0.93  # except for the title, and half a pixel at the edges
    step = -(-size[1] // 240)
    expected = [
        scene.rgb[1],
        colors.shades(scene.depth[1], "depth", ranges),
        colors.shades(scene.dynamic_score[1], "dynamic score", ranges),
        colors.mask_overlay(scene.rgb[1], scene.dynamic_mask[1]),
    ]
    for number, values in enumerate(expected):
        tile = values[::step, ::step]
        larger = height // 2 // len(tile)
        tile = np.repeat(np.repeat(tile, larger, axis=0), larger, axis=1)
        y, x = (height // 2 + 2) * (number // 2), (width // 2 + 2) * (number % 2)
        shown = picture[y : y + len(tile), x : x + tile.shape[1]]
        np.testing.assert_array_equal(shown[16:], tile[16:])  # below the title
        assert (shown[:16] != tile[:16]).any()


def test_a_picture_of_a_scene_without_depth(scene):
    """It is black, its range is of numbers all the same, and the pictures beside it are what they would be."""
    times = np.arange(6.0)
    usual = colors.measure(scene, times)
    expected = pictures.frame_picture(scene, 0, usual)
    scene.depth[:] = np.nan
    picture = pictures.frame_picture(scene, 0, usual)
    changed = np.argwhere((picture != expected).any(axis=-1))
    height, width = ((side - 4) // 2 for side in picture.shape[:2])  # of each of the four
    assert changed.min(axis=0).tolist() == [0, width + 4]
    assert changed.max(axis=0).tolist() == [height - 1, 2 * width + 3]
    assert not picture[16:height, width + 4 :].any()  # below the name
    unknown = colors.measure(scene, times)
    assert all(np.isfinite(limits).all() and limits[0] < limits[1] for limits in unknown.limits.values())


def test_a_video_can_be_read_back():
    shades = [20, 120, 220]
    file = pictures.video((np.full((51, 80, 3), shade, np.uint8) for shade in shades), 12.5)
    with av.open(io.BytesIO(file)) as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        assert stream.average_rate == 12.5
    assert [frame.shape for frame in frames] == [(50, 80, 3)] * 3
    assert [float(frame.mean()) for frame in frames] == pytest.approx(shades, abs=4)
