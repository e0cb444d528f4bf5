"""The smallest network with all parts, for tests to modify."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from easi3r_jax.models import DUSt3R, random_model
from easi3r_jax.models.config import DUSt3RConfig, FlowConfig
from easi3r_jax.models.parameters import FlowNetwork, model_from, parameter_shapes

_SMALL = dataclasses.replace(DUSt3RConfig.thumbnail(), enc_dim=16, enc_depth=1, dec_dim=16)


def small_network(**changes: Any) -> DUSt3RConfig:
    """Its configuration, with these fields changed."""
    return dataclasses.replace(_SMALL, **changes)


def small_released(head: str) -> DUSt3RConfig:
    """As narrow, with the patches and the decoder's depth that the DPT head needs."""
    return small_network(patch_size=16, enc_depth=2, dec_dim=24, dec_depth=4, head=head)


def network(config: DUSt3RConfig, precision: str = "exact") -> DUSt3R:
    """`random_model` of a policy, drawn once: two DPT heads have 36 million parameters, which take seconds."""
    return jax.tree.map(lambda leaf: leaf, _drawn(config, precision))  # modules of its own: a test may change them


_drawn = functools.cache(lambda config, precision: random_model(config, precision=precision))


@functools.cache
def of_any_weights(config: DUSt3RConfig | FlowConfig) -> DUSt3R | FlowNetwork:
    """A network drawn by NumPy: the initialisers are a program for every shape, and slow where there are many weights.

    Not to be changed: it is drawn once.
    """
    rng, shapes = np.random.default_rng(0), parameter_shapes(config)
    bounds = {name: (3 / np.prod(shape[:-1])) ** 0.5 if len(shape) > 1 else 1 for name, shape in shapes.items()}
    drawn = {name: bounds[name] * (2 * rng.random(shape, np.float32) - 1) for name, shape in shapes.items()}
    return model_from(config, {name: jnp.asarray(value, jnp.float32) for name, value in drawn.items()})
