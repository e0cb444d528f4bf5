"""MASt3R: DUSt3R with descriptors, against the reference's arrays, and its configuration."""

import functools
import json

import jax
import numpy as np
import pytest

import easi3r_jax as e3r
from easi3r_jax import motion
from easi3r_jax.apps.parity.weights import golden_config, golden_model
from easi3r_jax.models import abstract_model
from easi3r_jax.models.config import PRESETS
from tests.networks import network, small_released

NAMES = ("pts3d_1", "conf_1", "pts3d_2", "conf_2", "desc_1", "desc_conf_1", "desc_2", "desc_conf_2")


@functools.partial(jax.jit, static_argnums=2)
def both_views(model, rgb, grid, masks):
    """Everything that the two heads give for the pair (0, 1), and its decoder's last tokens."""
    features = model.encode(rgb)
    one, two = features[:1], features[1:]
    decoded = model.decode(one, two, grid, (masks[:1], masks[1:]))
    tokens = (decoded.tokens_i[-1, 0], decoded.tokens_j[-1, 0])
    return features, tokens, (*model.predict(one, two, decoded, grid), *model.describe(one, two, decoded, grid))


def test_both_passes_give_the_references_arrays(golden):
    """Errors are relative to an array's largest magnitude (points: 4 to 18). All stages: `make parity`."""
    folder = golden / "mast3r_tiny"
    entry = json.loads((folder / "config.json").read_text())["files"]["catmlpdpt_128x80.npz"]
    config = golden_config(folder, None, (entry["H"], entry["W"]))
    model = golden_model(config, entry["weight_seed"], entry["gains"])
    with np.load(folder / "catmlpdpt_128x80.npz") as file:
        arrays = dict(file)
    grid = model.grid((entry["H"], entry["W"]))
    dynamic = np.asarray(motion.token_masks(arrays["atten_mask_full"], config.patch_size))
    np.testing.assert_array_equal(dynamic, [arrays["token_mask1"], arrays["token_mask2"]])
    for mode, masks in (("plain", np.zeros_like(dynamic)), ("masked", dynamic)):
        features, tokens, found = both_views(model, arrays["frames_u8"], grid, masks)
        compared = {"enc_tokens": (features, arrays["enc_tokens"])}
        compared |= {f"dec_norm_b{n + 1}": (x, arrays[f"{mode}_dec_norm_b{n + 1}"]) for n, x in enumerate(tokens)}
        for name, ours in zip(NAMES, found, strict=True):
            whole = arrays.get(f"{mode}_{name}")
            theirs = arrays[f"{mode}_{name}_stride2"] if whole is None else whole
            compared[name] = (ours[0] if whole is not None else ours[0, ::2, ::2], theirs)
        for name, (ours, theirs) in compared.items():
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max(), err_msg=f"{mode} {name}")


def test_the_configuration_says_what_the_network_gives():
    config = PRESETS["mast3r-512"]()
    assert config.metric and config.descriptor_dim == 24 and config.is_dpt
    parameters = sum(x.size for x in jax.tree.leaves(abstract_model(config)))
    unused = config.dec_dim + 2 * 2 * (256 * 256 * 9 + 256)  # mask_token, refinenet4.resConfUnit1 of both heads
    assert parameters + unused == 688638856
    assert not any(PRESETS[name]().metric for name in ("512-dpt", "512-linear", "224-linear"))


@pytest.mark.parametrize(("head", "dim"), [("dpt", 24), ("linear", 8), ("catmlp+dpt", 0)])
def test_descriptors_need_their_head(head, dim):
    with pytest.raises(e3r.ConfigError, match="go together"):
        e3r.DUSt3RConfig(head=head, descriptor_dim=dim)


def test_a_network_without_descriptors_says_so():
    model = network(small_released("linear"))
    with pytest.raises(e3r.ConfigError, match="no descriptors; MASt3R's has"):
        model.describe(None, None, None, (2, 3))
