"""The smallest network that has every part, for tests to change where they need."""

import dataclasses
from typing import Any

from easi3r_jax.config import DUSt3RConfig

_SMALL = DUSt3RConfig(
    image_size=(32, 48),
    patch_size=8,
    enc_dim=16,
    enc_depth=1,
    enc_heads=2,
    dec_dim=16,
    dec_depth=2,
    dec_heads=2,
    mlp_ratio=2.0,
    head="linear",
)


def small_network(**changes: Any) -> DUSt3RConfig:
    """Its configuration, with these fields changed."""
    return dataclasses.replace(_SMALL, **changes)


def small_released(head: str) -> DUSt3RConfig:
    """As narrow, with the patches and the decoder's depth that the DPT head needs."""
    return small_network(patch_size=16, enc_depth=2, dec_dim=24, dec_depth=4, head=head)
