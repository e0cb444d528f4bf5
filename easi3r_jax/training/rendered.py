"""Training pairs from the procedural scenes of `synthetic`, rendered on the device that trains on them."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from easi3r_jax.core.arrays import Array, Int, Key
from easi3r_jax.synthetic import MovingSampling, PairSampling, View, sample_moving_pair, sample_pair
from easi3r_jax.training.batch import ViewPairs

#: Seed of the held-out pairs. Seeds of training runs are smaller.
HELD_OUT_SEED = 2**31 - 1
#: Folded into every seed: scenes differ from those of `experiments.synthesize`, which may serve as test data.
_TRAINING_STREAM = 0x7261696E
#: Number of held-out pairs that are rendered at once.
_HELD_OUT_BATCH = 8


def draw_static(sampling: PairSampling, seed: int, numbers: Int[Array, "B"]) -> ViewPairs:
    """Pairs of static scenes. A seed defines an endless sequence of pairs; `numbers` (B,) int32 selects from it."""
    return _draw(lambda key: sample_pair(key, sampling), seed, numbers)


def draw_moving(sampling: MovingSampling, seed: int, numbers: Int[Array, "B"]) -> ViewPairs:
    """As `draw_static`, of dynamic scenes."""
    return _draw(lambda key: sample_moving_pair(key, sampling), seed, numbers)


def held_out_pairs(draw: Callable[[int, Int[Array, "B"]], ViewPairs], count: int) -> ViewPairs:
    """The first `count` pairs of a sequence that no run trains on.

    Args:
      draw: `draw_static` or `draw_moving`, with their sampling bound.
      count: number of pairs.
    """
    render = jax.jit(lambda numbers: draw(HELD_OUT_SEED, numbers))
    starts = range(0, count, _HELD_OUT_BATCH)
    chunks = [render(jnp.arange(start, start + _HELD_OUT_BATCH, dtype=jnp.int32)) for start in starts]
    return jax.tree.map(lambda *parts: jnp.concatenate(parts)[:count], *chunks)


def _draw(sample: Callable[[Key[Array, ""]], View], seed: int, numbers: Int[Array, "B"]) -> ViewPairs:
    key = jax.random.fold_in(jax.random.key(seed), _TRAINING_STREAM)
    keys = jax.vmap(lambda n: jax.random.fold_in(key, n))(numbers)
    views = jax.vmap(sample)(keys)
    return ViewPairs(rgb=views.rgb, depth=views.depth, intrinsics=views.intrinsics, world_from_cam=views.world_from_cam)
