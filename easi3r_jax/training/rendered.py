"""Training pairs rendered where they are trained on: the procedural scenes of `synthetic`."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from easi3r_jax.synthetic import PairSampling, sample_pair
from easi3r_jax.training.batch import ViewPairs

Array = jax.Array


def rendered_pairs(seed: int, sampling: PairSampling, numbers: Array) -> ViewPairs:
    """The pairs with these numbers (B,) int32 of the endless sequence that a seed stands for."""
    keys = jax.vmap(lambda n: jax.random.fold_in(jax.random.key(seed), n))(numbers)
    views = jax.vmap(lambda key: sample_pair(key, sampling))(keys)
    return ViewPairs(rgb=views.rgb, depth=views.depth, intrinsics=views.intrinsics, world_from_cam=views.world_from_cam)


#: Seeds of training runs are below it, so held-out pairs are never trained on.
HELD_OUT = 2**31 - 1


def held_out_pairs(count: int, sampling: PairSampling) -> ViewPairs:
    """The first pairs of a sequence that no run trains on."""
    return jax.jit(lambda: rendered_pairs(HELD_OUT, sampling, jnp.arange(count, dtype=jnp.int32)))()
