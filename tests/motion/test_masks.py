"""Upsampling against its formula, and token masks against loops."""

import jax.numpy as jnp
import numpy as np
import pytest

from easi3r_jax.core.errors import InputError
from easi3r_jax.motion.masks import token_masks, upsample


def bilinear(x, size):
    """Pixel by pixel, in float64: half-pixel centres, clamped at the border."""
    out = np.zeros((len(x), *size))
    for y, column in np.ndindex(*size):
        sy = np.clip((y + 0.5) * x.shape[1] / size[0] - 0.5, 0, x.shape[1] - 1)
        sx = np.clip((column + 0.5) * x.shape[2] / size[1] - 0.5, 0, x.shape[2] - 1)
        y0, x0 = int(sy), int(sx)
        y1, x1 = min(y0 + 1, x.shape[1] - 1), min(x0 + 1, x.shape[2] - 1)
        fy, fx = sy - y0, sx - x0
        top = (1 - fx) * x[:, y0, x0] + fx * x[:, y0, x1]
        bottom = (1 - fx) * x[:, y1, x0] + fx * x[:, y1, x1]
        out[:, y, column] = (1 - fy) * top + fy * bottom
    return out


@pytest.mark.parametrize(
    ("grid", "size"), [((3, 4), (48, 64)), ((5, 2), (35, 14)), ((1, 1), (16, 16)), ((1, 6), (9, 13)), ((4, 4), (4, 4))]
)
def test_upsampling_formula(grid, size):
    x = np.random.default_rng(0).random((2, *grid)).astype(np.float32)
    np.testing.assert_allclose(upsample(jnp.asarray(x), size), bilinear(x, size), atol=3e-7)


def test_upsampling_keeps_linear_ramps_inside():
    ramp = jnp.broadcast_to(jnp.arange(8.0), (1, 4, 8))
    out = upsample(ramp, (64, 128))
    np.testing.assert_allclose(out[0, 30, 8:-8], (np.arange(128) + 0.5)[8:-8] / 16 - 0.5, atol=1e-5)
    np.testing.assert_array_equal(out[0, :, :8], 0)


@pytest.mark.parametrize("patch", [1, 4, 16])
def test_a_token_is_dynamic_if_any_of_its_pixels_is(patch):
    masks = np.random.default_rng(1).random((2, 32, 48)) > 0.99
    found = token_masks(jnp.asarray(masks), patch)
    rows, columns = 32 // patch, 48 // patch
    assert found.shape == (2, rows * columns) and found.dtype == bool
    for t, y, x in np.ndindex(2, rows, columns):
        expected = masks[t, y * patch : (y + 1) * patch, x * patch : (x + 1) * patch].any()
        assert bool(found[t, y * columns + x]) == expected


def test_masks_that_do_not_divide_into_patches_are_refused():
    with pytest.raises(InputError, match="patches of 16"):
        token_masks(jnp.zeros((1, 32, 40), bool), 16)
