"""The flow stage: the network's inputs, the handling of its output, and forward-backward consistency."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from scipy.ndimage import map_coordinates

from easi3r_jax.core.errors import InputError
from easi3r_jax.core.geometry import camera
from easi3r_jax.core.pairs import make_edges
from easi3r_jax.inference.flow import consistent_flow, estimate_flow, pad_images
from easi3r_jax.models import model_from, parameter_shapes
from easi3r_jax.models.config import FlowConfig


def echo(rgb_i, rgb_j, iterations):
    """Red of frame i and green of frame j as flow."""
    return jnp.stack([rgb_i[..., 0], rgb_j[..., 1]], axis=-1), {}


def frames(*shape):
    return np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)


@pytest.mark.parametrize("batch", [0, 1, 2, 3, 7, 50])
def test_every_pair_gets_its_own_flow_whatever_the_batch(batch):
    rgb = frames(5, 131, 150)  # padded to 136 x 152
    edges = make_edges(5, "swin-2-noncyclic")[::-1][:7]
    flow = estimate_flow(Partial(echo), rgb, edges, batch=batch)
    assert flow.dtype == jnp.float32
    np.testing.assert_array_equal(flow, np.stack([rgb[edges[:, 0], ..., 0], rgb[edges[:, 1], ..., 1]], axis=-1))


@pytest.mark.parametrize(
    ("size", "seen"),
    [
        ((128, 160), (128, 160)),
        ((121, 300), (128, 304)),  # its padded side suffices
        ((120, 300), (240, 600)),
        ((64, 96), (128, 192)),
        ((63, 500), (128, 1000)),
        ((50, 41), (152, 128)),
    ],
)
def test_small_frames_are_enlarged_and_all_batches_have_one_shape(size, seen):
    shapes = []

    def network(rgb_i, rgb_j, iterations):
        shapes.append((rgb_i.shape, rgb_j.shape, iterations))
        return jnp.zeros((*rgb_i.shape[:3], 2)), {}

    flow = estimate_flow(Partial(network), frames(3, *size), make_edges(3, "complete"), batch=4, iterations=6)
    assert flow.shape == (6, *size, 2)
    assert shapes == [((4, *seen, 3), (4, *seen, 3), 6)]  # traced once


@pytest.mark.parametrize("size", [(136, 144), (61, 90), (33, 47)])
def test_flow_is_in_pixels_of_the_frames_however_much_they_are_enlarged(size):
    """A slope of brightness that slides: difference over slope is the flow, in pixels of what the network sees."""
    height, width = size
    y, x = np.mgrid[:height, :width]
    slide = np.array([[0, 0], [3, -2], [5, 4]])  # of frame t, (x, y)
    rgb = np.stack([np.stack([x - dx + 20, y - dy + 20, 0 * x], axis=-1) for dx, dy in slide]).astype(np.uint8)

    def network(rgb_i, rgb_j, iterations):
        slope = jnp.stack([jnp.gradient(rgb_i[..., 0], axis=2), jnp.gradient(rgb_i[..., 1], axis=1)], axis=-1)
        return (rgb_i - rgb_j)[..., :2] / jnp.where(slope > 0, slope, 1), {}  # no slope in the padding

    edges = make_edges(3, "complete")
    flow = np.asarray(estimate_flow(Partial(network), rgb, edges))[:, 1:-1, 1:-1]
    expected = (slide[edges[:, 1]] - slide[edges[:, 0]])[:, None, None, :]
    np.testing.assert_allclose(flow, np.broadcast_to(expected, flow.shape), atol=1e-3)


def test_a_released_network_runs_in_batches():
    config, rng = FlowConfig("raft-small"), np.random.default_rng(0)
    weights = {  # drawn by NumPy: the network's own initialisation takes fifteen seconds
        path: jnp.asarray(rng.normal(size=shape, scale=np.prod(shape[:-1]) ** -0.5), jnp.float32)
        for path, shape in parameter_shapes(config).items()
    }
    network = model_from(config, weights)
    rgb = frames(3, 125, 132)
    edges = np.array([[0, 1], [2, 1], [1, 0]])
    flow = estimate_flow(network, rgb, edges, batch=2, iterations=1)
    padded, (row, column) = pad_images(jnp.asarray(rgb[[2, 1]]))
    alone = jax.jit(lambda n, i, j: n(i, j, 1)[0])(network, padded[:1], padded[1:])
    alone = alone[0, row : row + 125, column : column + 132]
    np.testing.assert_allclose(flow[1], alone, atol=1e-4 * float(jnp.abs(alone).max()))
    assert float(jnp.abs(flow[0] - flow[2]).max()) > 1e-2 * float(jnp.abs(alone).max()) > 0


def test_progress_is_reported_from_start_to_end():
    told = []
    estimate_flow(
        Partial(echo), frames(3, 128, 128), make_edges(3, "complete"), batch=4, progress=lambda *a: told.append(a)
    )
    assert told == [("flow", 0, 6, ""), ("flow", 4, 6, ""), ("flow", 6, 6, "")]


def test_no_pairs_no_flow():
    assert estimate_flow(Partial(echo), frames(3, 128, 136), np.zeros((0, 2), int)).shape == (0, 128, 136, 2)


@pytest.mark.parametrize("edges", [[[0, 3]], [[0, 1], [-1, 0]]])
def test_frames_that_do_not_exist_are_refused(edges):
    with pytest.raises(InputError, match=r"there are 0\.\.2"):
        estimate_flow(Partial(echo), frames(3, 128, 128), np.array(edges))


def test_flow_that_is_not_finite_is_refused():
    def network(rgb_i, rgb_j, iterations):
        return jnp.full((*rgb_i.shape[:3], 2), jnp.nan), {}

    with pytest.raises(InputError, match="wrong weights"):
        estimate_flow(Partial(network), frames(2, 128, 128), np.array([[0, 1]]))


# --- there and back ---------------------------------------------------------------------------------------------------


def test_the_check_is_the_published_one(golden):
    """Every pixel but those that rounding decides: within 1e-3 of the tolerance, or of the image's edge."""
    with np.load(golden / "alignment" / "primitives.npz") as arrays:
        flow = np.moveaxis(np.stack([arrays["occ_flow12"], arrays["occ_flow21"]]), 1, -1)
        expected = np.stack([arrays["occ_valid12"], arrays["occ_valid21"]])
    _, height, width = expected.shape
    aim = flow.astype(np.float64) + np.asarray(camera.pixel_grid(height, width))
    back = np.stack(
        [map_coordinates(f.sum(-1), [a[..., 1], a[..., 0]], order=1) for f, a in zip(flow[::-1], aim, strict=True)]
    )
    unsure = np.abs(np.abs(flow.sum(-1) + back) - 3) < 1e-3
    unsure |= (np.abs(aim) < 2e-3).any(-1) | (np.abs(aim - (width - 1, height - 1)) < 2e-3).any(-1)
    found = np.asarray(consistent_flow(jnp.asarray(flow), jnp.asarray(flow[::-1])))
    np.testing.assert_array_equal(found[~unsure], expected[~unsure])
    assert unsure.mean() < 0.002 and 0.7 < expected.mean() < 0.9


def constant(*values):
    return jnp.stack([jnp.broadcast_to(jnp.asarray(v, jnp.float32), (6, 9, 2)) for v in values])


def test_the_sum_over_x_and_y_counts():
    forward = constant((0, 0), (0, 0), (0, 0), (0, 0))
    backward = constant((2.9, 0), (1.5, 1.6), (20, -20), (-1.6, -1.5))
    np.testing.assert_array_equal(consistent_flow(forward, backward).all((1, 2)), [True, False, True, False])
    assert consistent_flow(forward, backward, 3.2).all()


def test_what_points_outside_is_not_consistent_but_rounding_does_not_decide():
    found = np.asarray(consistent_flow(constant((2, 0), (0, -1.5), (1e-5, -1e-5)), constant((-2, 0), (0, 1.5), (0, 0))))
    assert found[0, :, :7].all() and not found[0, :, 7:].any()
    assert found[1, 2:].all() and not found[1, :2].any()
    assert found[2].all()


def test_backward_flow_is_read_where_forward_flow_points():
    """Of a scene that stretches by a factor, the way back is known at every point."""
    x = camera.pixel_grid(12, 20)
    forward, backward = 0.5 * x, -x / 3
    inside = ((1.5 * x) <= jnp.asarray([19.0, 11.0]).reshape(1, 1, 2)).all(-1)
    np.testing.assert_array_equal(consistent_flow(forward[None], backward[None], 1e-3)[0], inside)
    assert not consistent_flow(forward[None], -forward[None], 1e-3)[0, 4:].any()


def test_wild_flow_is_not_consistent():
    wild = constant((jnp.nan, 0), (jnp.inf, -jnp.inf), (1e30, 0))
    assert not consistent_flow(wild, jnp.zeros_like(wild)).any()
    assert not consistent_flow(jnp.zeros_like(wild[:1]), wild[:1]).any()
