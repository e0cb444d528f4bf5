"""Properties of VGGT's parts: the cue's statistics, cameras, loops over layers, and what it refuses."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from easi3r_jax.core.errors import ConfigError, InputError
from easi3r_jax.models import parameters_of
from easi3r_jax.models.precision import POLICIES
from easi3r_jax.models.vggt import VGGTConfig, abstract_vggt, cameras_of, encoded_cameras, statistics
from easi3r_jax.models.vggt.track import sampled
from tests.networks import SMALL_VGGT, vggt


def maps(own, other, t, layers):
    """M(i, j) of a frame, from all products: (N, N) float64."""
    sources = [s for s in t + np.array(statistics.OFFSETS) if 0 <= s < own.shape[1]]
    products = [np.einsum("iad,jad->ij", own[n, t], other[n, s]) / own.shape[3] for n in layers for s in sources]
    return np.mean(products, axis=0)


def test_statistics_of_the_cue_are_those_of_the_full_maps():
    depth, frames, tokens, heads, dim = 2, 5, 7, 2, 4
    rng = np.random.default_rng(0)
    own, other = rng.standard_normal((2, depth, frames, tokens, heads, dim))
    deviations = statistics.band_deviations(own.astype(np.float32), other.astype(np.float32))
    means = [
        statistics.layer_means(x.astype(np.float32), y.astype(np.float32)) for x, y in zip(own, other, strict=True)
    ]
    for t in range(frames):
        whole = maps(own, other, t, range(depth))
        np.testing.assert_allclose(deviations[t], whole.std(axis=1, ddof=1), rtol=1e-5)
        np.testing.assert_allclose(np.mean(means, axis=0)[t], whole.mean(axis=1), atol=1e-6)


def test_a_frame_without_others_in_its_window_has_no_statistics():
    weights = statistics.window_weights(3)
    np.testing.assert_array_equal(weights, [[0, 0, 1], [0, 0, 0], [1, 0, 0]])
    assert statistics.window_weights(8)[3].nonzero()[0].tolist() == [1, 5, 7]


def equations(jaxpr):
    inner = [getattr(v, "jaxpr", v) for e in jaxpr.eqns for v in e.params.values()]
    return len(jaxpr.eqns) + sum(equations(x) for x in inner if hasattr(x, "eqns"))


def test_the_program_does_not_grow_with_the_depth():
    def size(depth, enc_depth):
        config = dataclasses.replace(VGGTConfig.tiny(), depth=depth, enc_depth=enc_depth, heads=("camera",))
        model, rgb = abstract_vggt(config), jax.ShapeDtypeStruct((2, 28, 28, 3), jnp.uint8)

        def run(model, rgb):
            return model.cameras(model.aggregate(model.encode(rgb), (2, 2)))

        return equations(jax.jit(run).trace(model, rgb).jaxpr.jaxpr)

    assert size(6, 3) == size(12, 9)


def test_bfloat16_keeps_tokens_and_heads_in_float32():
    model, rgb = abstract_vggt(SMALL_VGGT, precision=POLICIES["bf16"]), jax.ShapeDtypeStruct((3, 28, 28, 3), jnp.uint8)

    def run(model, rgb):
        found = model.aggregate(model.encode(rgb), (2, 2), bands=(("qq_std", 0, 2),))
        return found, model.cameras(found), model.depth(found, (2, 2))

    stored = parameters_of(model)
    assert stored["aggregator.global_blocks.mlp.fc1.kernel"].dtype == jnp.bfloat16
    assert stored["depth_head.conv1.kernel"].dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(jax.eval_shape(run, model, rgb))} == {np.dtype("float32")}


def test_cameras_survive_their_encoding():
    rng = np.random.default_rng(1)
    quaternion = rng.standard_normal((6, 4))
    quaternion *= np.sign(quaternion[:, 3:]) / np.linalg.norm(quaternion, axis=1, keepdims=True)
    encoding = np.concatenate([rng.standard_normal((6, 3)), quaternion, rng.uniform(0.3, 2, (6, 2))], axis=1)
    cam_from_world, intrinsics = cameras_of(jnp.asarray(encoding, jnp.float32), (28, 42))
    np.testing.assert_allclose(encoded_cameras(cam_from_world, intrinsics, (28, 42)), encoding, atol=2e-6)
    np.testing.assert_allclose(intrinsics[:, 1, 1], 14 / np.tan(encoding[:, 7] / 2), rtol=1e-5)
    np.testing.assert_array_equal(intrinsics[:, :2, 2], np.broadcast_to([21.0, 14.0], (6, 2)))


def test_samples_are_bilinear_and_end_at_the_border():
    image = jnp.arange(12.0).reshape(3, 4, 1)  # 4 y + x
    points = jnp.asarray([[1.5, 0.5], [3.0, 2.0], [3.5, 1.0], [-1.0, 5.0]])
    np.testing.assert_allclose(sampled(image, points)[:, 0], [3.5, 11, 3.5, 0])
    np.testing.assert_allclose(sampled(image, points, border=True)[:, 0], [3.5, 11, 7, 8])


def test_the_released_architecture_reads_the_released_layers():
    assert VGGTConfig.released().levels == (4, 11, 17, 23) and VGGTConfig.tiny().levels == (1, 2, 4, 5)


def test_what_is_missing_or_does_not_fit_is_said_in_a_line():
    model = vggt()
    with pytest.raises(ConfigError, match="no track head: its checkpoint came without one"):
        model.track(None, (2, 2), jnp.zeros((1, 2)))
    with pytest.raises(InputError, match=r"30x28 do not divide into VGGT's 14x14 patches.*multiples of 14"):
        model.encode(jnp.zeros((1, 28, 30, 3), jnp.uint8))
    with pytest.raises(ConfigError, match="not in float64"):
        model.with_precision(dataclasses.replace(POLICIES["exact"], layers="float64"))
    with pytest.raises(ConfigError, match=r"heads are some of camera.*'pose'"):
        dataclasses.replace(SMALL_VGGT, heads=("pose",))
    with pytest.raises(ConfigError, match="depth >= 4"):
        dataclasses.replace(SMALL_VGGT, depth=3)
    with pytest.raises(ConfigError, match="multiple of 4 channels"):
        dataclasses.replace(SMALL_VGGT, num_heads=8)
