"""Plots, checked by the data in their axes."""

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from scipy.spatial.transform import Rotation

from easi3r_jax.io.pictures.plots import loss_figure, score_figure, trajectory_figure


def drawn(figure):
    """The figure's only axes, after drawing, during which matplotlib may warn: warnings are errors."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    assert np.asarray(canvas.buffer_rgba())[..., :3].std() > 5
    (axes,) = figure.axes
    return axes


def test_the_loss_is_plotted_step_by_step():
    losses = np.array([0.5, 0.2, np.nan, 0.11, 0.1], np.float32)
    axes = drawn(loss_figure(losses))
    (line,) = axes.lines
    np.testing.assert_array_equal(line.get_xdata(), [1, 2, 3, 4, 5])
    np.testing.assert_allclose(line.get_ydata(), losses)
    assert axes.get_yscale() == "linear" and axes.get_xlabel() and axes.get_ylabel() == "loss"


@pytest.mark.parametrize(
    ("losses", "scale"), [([9, 1, 0.1], "log"), ([9, 1, 0], "linear"), ([np.nan, np.nan], "linear"), ([1.0], "linear")]
)
def test_losses_of_any_size_can_be_plotted(losses, scale):
    assert drawn(loss_figure(np.array(losses))).get_yscale() == scale


def path(count=6):
    """A path, 2 forward and 0.5 to the right per frame, in a world rotated and shifted against the first camera."""
    ahead = np.arange(count)
    in_first = np.stack([0.5 * ahead, 0.1 * ahead**2, 2.0 * ahead], axis=1)
    turn, shift = Rotation.from_rotvec([0.3, -1.2, 0.5]).as_matrix(), np.array([4, -5, 6])
    world_from_cam = np.tile(np.eye(4), (count, 1, 1))
    world_from_cam[:, :3, :3] = turn
    world_from_cam[:, :3, 3] = in_first @ turn.T + shift
    return world_from_cam.astype(np.float32), in_first


def test_the_path_is_shown_from_above_in_the_first_cameras_axes():
    world_from_cam, in_first = path()
    axes = drawn(trajectory_figure(world_from_cam))
    (line,) = axes.lines
    np.testing.assert_allclose(line.get_xydata(), in_first[:, [0, 2]], atol=1e-5)
    assert axes.get_aspect() == 1
    assert "world units" in axes.get_xlabel() and "world units" in axes.get_ylabel()
    start = next(c for c in axes.collections if c.get_label() == "start")
    np.testing.assert_allclose(start.get_offsets(), [[0, 0]], atol=1e-5)
    for limits, values in ((axes.get_xlim(), in_first[:, 0]), (axes.get_ylim(), in_first[:, 2])):
        assert limits[0] < values.min() and values.max() < limits[1]


def test_the_true_path_is_shown_and_connected_frame_by_frame():
    world_from_cam, in_first = path()
    true = in_first + np.array([0.2, 0.0, -0.3])
    centres = true @ world_from_cam[0, :3, :3].T.astype(np.float64) + world_from_cam[0, :3, 3]
    axes = drawn(trajectory_figure(world_from_cam, centres))
    lines = {line.get_label(): line for line in axes.lines}
    (truth,) = (line for label, line in lines.items() if "truth" in label)
    np.testing.assert_allclose(truth.get_xydata(), true[:, [0, 2]], atol=1e-5)
    between = [line.get_xydata() for line in axes.lines if line.get_label().startswith("_")]
    np.testing.assert_allclose(between, np.stack([in_first, true], axis=1)[:, :, [0, 2]], atol=1e-5)


@pytest.mark.parametrize("count", [1, 3])
def test_a_camera_that_stands_still_can_be_plotted(count):
    """About the size of the world, whose unit it is: not a billionth of it."""
    axes = drawn(trajectory_figure(np.tile(np.eye(4, dtype=np.float32), (count, 1, 1))))
    assert np.ptp(axes.get_xlim()) > 0.5 and not axes.xaxis.get_offset_text().get_text()


def test_the_path_goes_from_violet_to_yellow():
    axes = drawn(trajectory_figure(path()[0]))
    (dots,) = (c for c in axes.collections if c.get_label() != "start")
    first, last = dots.get_facecolors()[[0, -1], :3]
    assert first[2] > max(first[:2]) and min(last[:2]) > last[2]


def test_a_score_equal_to_the_threshold_is_static():
    score = np.array([0.25, 0.5, 0.5, 0.75], np.float32).reshape(1, 2, 2)
    assert "25.0 % above" in drawn(score_figure(score, 0.5)).lines[0].get_label()


def test_the_histogram_is_that_of_the_score_with_its_threshold():
    score = np.random.default_rng(0).beta(2, 5, (3, 20, 30)).astype(np.float32)
    axes = drawn(score_figure(score, 0.4))
    (stairs,) = axes.patches
    values, edges, _ = stairs.get_data()
    assert (edges[0], edges[-1]) == (0, 1)
    np.testing.assert_allclose(values.sum(), 100)
    k = np.searchsorted(edges, 0.4)
    np.testing.assert_allclose(edges[k], 0.4)
    percentage = 100 * (score > 0.4).mean()
    np.testing.assert_allclose(values[k:].sum(), percentage)
    (line,) = axes.lines
    assert set(line.get_xdata()) == {0.4}
    assert f"{percentage:.1f} %" in line.get_label()


def test_a_score_without_a_threshold_and_a_constant_one():
    assert not drawn(score_figure(np.zeros((2, 3, 4), np.float32), None)).lines
