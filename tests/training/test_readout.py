"""Fitting a read-out: known solutions, the weight of hard tokens, refusals."""

import numpy as np
import pytest

from easi3r_jax.core.errors import ConfigError, InputError
from easi3r_jax.training.readout import Tokens, fit_readout, joined


def tokens(count=4000, seed=0):
    """Two channels respond to motion, one to the objects; the fourth is noise. Units differ."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, 3, count)  # 0: static, 1: dynamic object, 2: static object
    moments = rng.normal(size=(count, 4)).astype(np.float32)
    moments[:, 0] += 1.5 * (kind == 1)
    moments[:, 1] -= 1.0 * (kind == 1)
    moments[:, 2] += 2.0 * (kind > 0)
    moments *= np.float32([1, 100, 0.01, 10])
    return Tokens(moments, kind == 1, kind == 2)


def test_unregularised_it_is_the_maximum_of_the_likelihood():
    """Without hard tokens: the gradient of the weighted likelihood vanishes."""
    part = tokens()
    part = Tokens(part.moments, part.dynamic, np.zeros(len(part.dynamic), bool))
    weights, bias = fit_readout(part, regularisation=0.0)
    probability = 1 / (1 + np.exp(-(part.moments.astype(np.float64) @ weights + bias)))
    share = np.where(part.dynamic, 0.5 / part.dynamic.sum(), 0.5 / (~part.dynamic).sum())
    gradient = (share * (probability - part.dynamic)) @ (part.moments / part.moments.std(0))
    assert np.abs(gradient).max() < 1e-4
    assert abs(np.sum(share * (probability - part.dynamic))) < 1e-4


def test_hard_tokens_turn_the_fit_from_objects_to_motion():
    part = tokens()
    scaled = [fit_readout(part, hard_weight=h)[0] * part.moments.std(0) for h in (0.05, 0.4, 0.7)]
    reliance = [abs(w[2]) / abs(w[0]) for w in scaled]
    assert reliance[0] > 2 * reliance[2] and reliance[1] > reliance[2]
    assert all(w[0] > 0 > w[1] and abs(w[3]) < 0.1 * w[0] for w in scaled)


def test_regularisation_shrinks_and_units_do_not_matter():
    part = tokens()
    weak, strong = (fit_readout(part, regularisation=r)[0] for r in (1e-4, 1e-1))
    assert np.linalg.norm(strong * part.moments.std(0)) < 0.8 * np.linalg.norm(weak * part.moments.std(0))
    units = np.float32([8, 1 / 4, 2, 1])
    other = Tokens(part.moments * units, part.dynamic, part.hard)
    np.testing.assert_allclose(fit_readout(other)[0] * units, fit_readout(part)[0], rtol=1e-3, atol=1e-6)


def test_clips_are_joined_and_needed():
    part = tokens(30)
    both = joined([part, part])
    assert both.moments.shape == (60, 4) and both.dynamic.sum() == 2 * part.dynamic.sum()
    nothing, everything = np.zeros(30, bool), np.ones(30, bool)
    with pytest.raises(InputError, match="Nothing moves in the clips"):
        fit_readout(Tokens(part.moments, nothing, nothing))
    for wrong in ({"hard_weight": 1.0}, {"hard_weight": float("nan")}, {"regularisation": -1.0}):
        with pytest.raises(ConfigError, match="out of range"):
            fit_readout(part, **wrong)
    with pytest.raises(InputError, match="Nothing is static in the clips"):
        fit_readout(Tokens(part.moments, everything, nothing))
