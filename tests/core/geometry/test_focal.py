"""Focal length from a point map: exact cameras, outliers, scales, maps that show no camera, the reference's numbers."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from easi3r_jax.core.geometry import camera
from easi3r_jax.core.geometry.focal import weiszfeld_focal

H, W = 12, 16
FOCALS = pytest.mark.parametrize("focal", [3.0, 17.3, 200.0])


def pinhole_points(rng, focal, point):
    depth = jnp.asarray(rng.uniform(0.5, 5, (H, W)))
    return camera.unproject(depth, camera.intrinsics(jnp.asarray(focal), jnp.asarray(point)))


@FOCALS
@pytest.mark.parametrize("point", [(8.0, 6.0), (2.5, 9.1)])
def test_exact_camera_is_recovered(focal, point, rng):
    found = weiszfeld_focal(pinhole_points(rng, focal, point), jnp.asarray(point))
    assert found.shape == () and found.dtype == jnp.float64
    np.testing.assert_allclose(found, focal, rtol=1e-10)


def test_the_scale_of_the_points_does_not_matter(rng):
    points = pinhole_points(rng, 20.0, (8.0, 6.0)) + 0.05 * rng.standard_normal((H, W, 3))
    centre = camera.centre(H, W, jnp.float64)
    reference = weiszfeld_focal(points, centre)
    np.testing.assert_allclose([weiszfeld_focal(s * points, centre) for s in (1e-4, 1e4)], [reference] * 2, rtol=1e-10)


@FOCALS
def test_a_fifth_of_the_pixels_may_have_anothers_point(focal, rng):
    points = np.array(pinhole_points(rng, focal, (8.0, 6.0))).reshape(-1, 3)
    wrong = rng.permutation(H * W)[: H * W // 5]
    points[wrong] = points[np.roll(wrong, 1)]
    found = weiszfeld_focal(jnp.asarray(points.reshape(H, W, 3)), camera.centre(H, W, jnp.float64))
    np.testing.assert_allclose(found, focal, rtol=0.01)


def test_every_iteration_comes_nearer(rng):
    points = pinhole_points(rng, 20.0, (8.0, 6.0)) + 0.3 * rng.standard_normal((H, W, 3))
    centre = camera.centre(H, W, jnp.float64)

    def cost(focal):
        offset = camera.pixel_grid(H, W, jnp.float64) - centre[None, None] - focal * points[..., :2] / points[..., 2:]
        return float(jnp.linalg.norm(offset, axis=-1).sum())

    costs = [cost(weiszfeld_focal(points, centre, iterations=n)) for n in (0, 1, 2, 5, 10)]
    assert all(b < a for a, b in itertools.pairwise(costs))
    best = weiszfeld_focal(points, centre, iterations=500)
    assert cost(best) <= min(cost(best * 0.999), cost(best * 1.001))


def test_pixels_without_a_point_do_not_matter(rng):
    points = pinhole_points(rng, 20.0, (8.0, 6.0)).at[:3].set(0)
    np.testing.assert_allclose(weiszfeld_focal(points, camera.centre(H, W, jnp.float64)), 20, rtol=1e-10)


def test_maps_that_show_no_camera_give_a_sixty_degree_view(rng):
    seen = pinhole_points(rng, 20.0, (8.0, 6.0))
    nothing = {
        "all zero": jnp.zeros((H, W, 3)),
        "all on the axis": jnp.zeros((H, W, 3)).at[..., 2].set(jnp.asarray(rng.uniform(1, 2, (H, W)))),
        "all one point": jnp.ones((H, W, 3)),
        "behind the camera": seen.at[..., 2].multiply(-1),
        "too long a focal length": seen.at[..., 2].multiply(1e4),
        "undefined": jnp.full((H, W, 3), jnp.nan),
    }
    found = {name: float(weiszfeld_focal(p, camera.centre(H, W, jnp.float64))) for name, p in nothing.items()}
    assert found == dict.fromkeys(nothing, camera.default_focal(H, W))


def test_a_map_over_frames(rng):
    focals = [10.0, 20.0, 40.0]
    points = jnp.stack([pinhole_points(rng, f, (8.0, 6.0)) for f in focals])
    centres = jnp.tile(camera.centre(H, W, jnp.float64)[None], (3, 1))
    np.testing.assert_allclose(jax.jit(jax.vmap(weiszfeld_focal))(points, centres), focals, rtol=1e-10)


def test_reference_numbers(golden):
    with np.load(golden / "alignment" / "primitives.npz") as g:
        points, centres, expected = (jnp.asarray(g[name]) for name in ("focal_pts3d", "focal_pp", "focal_weiszfeld"))
    ours = jax.vmap(weiszfeld_focal)(points, centres)
    assert ours.dtype == jnp.float32
    np.testing.assert_allclose(ours, expected, rtol=1e-5)
