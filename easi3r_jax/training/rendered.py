"""Training pairs rendered where they are trained on: the procedural scenes of `synthetic`."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from easi3r_jax.synthetic import MovingSampling, PairSampling, View, sample_moving_pair, sample_pair
from easi3r_jax.training.batch import ViewPairs

Array = jax.Array

#: Seed of the held-out pairs; those of training runs are below it.
HELD_OUT = 2**31 - 1
#: Folded into a seed: the trainer's scenes are not those of `experiments.synthesize`, which may serve as test data.
_TRAINING = 0x7261696E
#: Held-out pairs rendered at a time.
_TOGETHER = 8


def draw_static(sampling: PairSampling, seed: int, numbers: Array) -> ViewPairs:
    """The pairs with these numbers (B,) int32 of the endless sequence that a seed stands for; scenes at rest."""
    return _draw(lambda key: sample_pair(key, sampling), seed, numbers)


def draw_moving(sampling: MovingSampling, seed: int, numbers: Array) -> ViewPairs:
    """As `draw_static`, of scenes that move."""
    return _draw(lambda key: sample_moving_pair(key, sampling), seed, numbers)


def held_out_pairs(draw: Callable[[int, Array], ViewPairs], count: int) -> ViewPairs:
    """The first pairs of a sequence that no run trains on.

    Args:
      draw: `draw_static` or `draw_moving` with their sampling.
      count: how many.
    """
    render = jax.jit(lambda numbers: draw(HELD_OUT, numbers))
    starts = range(0, count, _TOGETHER)
    chunks = [render(jnp.arange(start, start + _TOGETHER, dtype=jnp.int32)) for start in starts]
    return jax.tree.map(lambda *parts: jnp.concatenate(parts)[:count], *chunks)


def _draw(sample: Callable[[Array], View], seed: int, numbers: Array) -> ViewPairs:
    key = jax.random.fold_in(jax.random.key(seed), _TRAINING)
    keys = jax.vmap(lambda n: jax.random.fold_in(key, n))(numbers)
    views = jax.vmap(sample)(keys)
    return ViewPairs(rgb=views.rgb, depth=views.depth, intrinsics=views.intrinsics, world_from_cam=views.world_from_cam)
