"""The smallest network with all parts, for tests to modify."""

import dataclasses
import functools
from typing import Any

import jax

from easi3r_jax.models import DUSt3R, random_model
from easi3r_jax.models.config import DUSt3RConfig

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
