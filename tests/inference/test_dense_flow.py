"""Flow without weights: exact shifts, the forward-backward check, rendered clips with exact flow, refusals."""

import numpy as np
import pytest
from scipy import ndimage

import easi3r_jax as e3r
from easi3r_jax.core.errors import ConfigError, InputError
from easi3r_jax.core.pairs import make_edges
from easi3r_jax.core.types import Frames
from easi3r_jax.inference import dense_flow as module
from easi3r_jax.inference.dense_flow import SHORTER_SIDE, dense_flow, enlargement, returns

EDGES = make_edges(3, "complete")


def frames_of(rgb):
    count, height, width = rgb.shape[:3]
    return Frames(rgb, np.arange(count), np.arange(count) / 24.0, np.eye(3), np.array([height, width]))


def shifted(shifts, size=(48, 64), seed=0):
    """A smooth texture, displaced by whole pixels (x, y): what is at p in frame 0 is at p + shift in frame t."""
    rng = np.random.default_rng(seed)
    margin = 16
    texture = rng.uniform(size=(size[0] + 2 * margin, size[1] + 2 * margin, 3))
    texture = ndimage.gaussian_filter(texture, (1.5, 1.5, 0))
    texture = np.uint8(255 * (texture - texture.min()) / np.ptp(texture))
    rows, columns = (margin - np.asarray(shifts)[:, axis] for axis in (1, 0))
    return np.stack([texture[y : y + size[0], x : x + size[1]] for y, x in zip(rows, columns, strict=True)])


def inner(x, border=8):
    return x[:, border:-border, border:-border]


@pytest.mark.parametrize("enlarge", [0, 2])
def test_a_texture_that_slides(enlarge):
    shifts = np.array([(0, 0), (4, -2), (-3, 5)])
    flow, known = dense_flow(frames_of(shifted(shifts, size=(96, 128))), EDGES, enlarge=enlarge)
    assert flow.dtype == np.float32 and known.dtype == bool and flow.shape == (6, 96, 128, 2)
    for (i, j), found, holds in zip(EDGES.tolist(), flow, known, strict=True):
        expected = shifts[j] - shifts[i]
        error = np.abs(inner(found[None]) - expected)
        assert np.median(error) < 0.1 and np.mean(error < 0.5) > 0.95
        assert holds[16:-16, 16:-16].mean() > 0.95
        # What leaves the image has no target in it: the band at the side that it leaves through.
        if expected[0] > 0:
            assert not holds[:, -expected[0] + 1 :].any()


def test_flow_is_checked_in_pixels_of_the_frames_and_both_ways():
    forward = np.zeros((8, 8, 2), np.float32)
    forward[..., 0] = 2
    backward = np.zeros_like(forward)
    backward[..., 0] = -2
    everywhere = np.zeros((8, 8), bool)
    everywhere[:, :6] = True  # the last two columns leave the image
    np.testing.assert_array_equal(returns(forward, backward, 1.0), everywhere)
    backward[2, 4] = (-2, 1.5)  # sampled by (row 2, column 2) only: errors of x and y do not cancel
    everywhere[2, 2] = False
    np.testing.assert_array_equal(returns(forward, backward, 1.0), everywhere)
    assert returns(forward, backward, 1.6)[2, 2]
    assert not returns(forward, -forward - 5, 1.0).any()
    assert not returns(np.full_like(forward, 1e6), backward, 1.0).any()


def test_what_is_covered_does_not_hold():
    """A square that moves by 8 pixels covers what lay before it: there, flow has no target."""
    first, second = shifted([(0, 0), (0, 0)], size=(96, 128))
    patch = shifted([(0, 0)], size=(48, 48), seed=1)[0]
    first[20:68, 30:78], second[20:68, 38:86] = patch, patch
    flow, known = dense_flow(frames_of(np.stack([first, second])), np.array([[0, 1], [1, 0]]))
    square, covered, rest = np.s_[28:60, 38:70], np.s_[24:64, 79:85], np.s_[76:]
    assert np.median(np.abs(flow[0][square] - [8, 0])) < 0.2 and known[0][square].mean() > 0.9
    assert np.median(np.abs(flow[0][rest])) < 0.1 and known[0][rest].mean() > 0.9
    assert known[0][covered].mean() < 0.5 * known[0][square].mean()


def test_each_pair_is_computed_once_and_directions_do_not_need_each_other():
    frames = frames_of(shifted([(0, 0), (3, 1), (5, -2)]))
    flow, known = dense_flow(frames, EDGES)
    heard = []
    repeated = np.array([[2, 0], [0, 1], [0, 1]])
    again, holds = dense_flow(frames, repeated, progress=lambda *told: heard.append(told))
    rows = [EDGES.tolist().index(edge) for edge in repeated.tolist()]
    np.testing.assert_array_equal(again, flow[rows])
    np.testing.assert_array_equal(holds, known[rows])
    assert heard == [("flow", 0, 2, ""), ("flow", 1, 2, ""), ("flow", 2, 2, "")]


def test_frames_that_are_all_the_same_or_blank():
    still = frames_of(shifted([(0, 0)] * 3))
    flow, known = dense_flow(still, EDGES)
    assert np.abs(flow).max() < 1e-3 and inner(known).all()
    flow, _ = dense_flow(frames_of(np.zeros((3, 16, 16, 3), np.uint8)), EDGES)
    assert np.isfinite(flow).all()


def test_small_frames_are_enlarged_enough():
    assert [enlargement(*size) for size in ((64, 96), (144, 256), (288, 512), (16, 48))] == [4, 2, 1, 16]
    assert all(min(h, w) * enlargement(h, w) >= SHORTER_SIDE for h, w in ((64, 96), (90, 50), (300, 200)))


def test_refusals():
    frames = frames_of(shifted([(0, 0)] * 3))
    with pytest.raises(InputError, match=r"between frames 0\.\.3; there are 0\.\.2"):
        dense_flow(frames, np.array([[0, 3]]))
    for wrong in ({"preset": "slow"}, {"enlarge": -1}, {"tolerance": 0.0}, {"tolerance": float("nan")}):
        with pytest.raises(ConfigError, match="the preset must be one of ultrafast, fast, medium"):
            dense_flow(frames, EDGES, **wrong)
    with pytest.raises(InputError, match="8x8, enlarged 1 times, are too small for optical flow"):
        dense_flow(frames_of(np.zeros((2, 8, 8, 3), np.uint8)), np.array([[0, 1]]), enlarge=1)
    flow, known = dense_flow(frames, np.zeros((0, 2), int))
    assert flow.shape == (0, 48, 64, 2) and known.shape == (0, 48, 64)


def test_an_interruption_is_not_waited_out(monkeypatch):
    """Ctrl-C arrives in the main thread, between two pairs: pairs that have not begun are left."""
    frames, begun = frames_of(shifted([(0, 0)] * 12)), []
    search = module._search
    monkeypatch.setattr(module, "_search", lambda *inputs: begun.append(None) or search(*inputs))

    def interrupted(stage, done, total, note):
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        dense_flow(frames, make_edges(12, "complete"), progress=interrupted)
    assert len(begun) < 2 * 66  # a pair has two directions


def test_flow_that_no_camera_explains_is_not_used():
    """Flow of 40 pixels everywhere: the alignment and the static regions are those without flow."""
    model = e3r.load_model("embedded", "exact")
    frames = e3r.load_frames("demo", e3r.FrameConfig.for_model(model, first=4))
    config = e3r.PipelineConfig(graph="complete", cue="none", masks=(), alignment=e3r.AlignConfig(iterations=20))

    def wrong(frames, edges, *, progress):
        return np.full((len(edges), *frames.rgb.shape[1:3], 2), 40, np.float32), None

    without, misled, helped = (e3r.reconstruct(model, frames, config, flow=f).scene for f in (None, wrong, dense_flow))
    np.testing.assert_allclose(misled.world_from_cam, without.world_from_cam, atol=1e-5)
    np.testing.assert_array_equal(misled.static_mask, without.static_mask)
    assert np.abs(helped.world_from_cam - without.world_from_cam).max() > 1e-4
    assert 0.2 < helped.static_mask.mean() < 1
