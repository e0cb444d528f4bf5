"""Rendered clips: planned by one compiled program, rendered by another.

As a single program the two take half as long again to compile; and clips and their twins, and all programs that render
clips of a size, share both.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from easi3r_jax.core.arrays import Array
from easi3r_jax.synthetic.clips import ClipConfig, ClipPlan, RenderedClip, plan_clip, render_clip


def planned(key: Array, config: ClipConfig, *, moving: bool = True) -> ClipPlan:
    """A clip before it is rendered, or its motionless twin; see `synthetic.clips.plan_clip`."""
    return _plan(key, jnp.asarray(moving), config)


@partial(jax.jit, static_argnames=("size",))
def render(key: Array, plan: ClipPlan, size: tuple[int, int]) -> RenderedClip:
    """The plan's frames, (H, W) pixels each; see `synthetic.clips.render_clip`."""
    return render_clip(key, plan, size)


def sampled(key: Array, config: ClipConfig, *, moving: bool = True) -> RenderedClip:
    """The clip that `synthetic.sample_clip` samples with the same key."""
    plan_key, noise_key = jax.random.split(key)
    return render(noise_key, planned(plan_key, config, moving=moving), config.size)


@partial(jax.jit, static_argnames=("config",))
def _plan(key: Array, moving: Array, config: ClipConfig) -> ClipPlan:
    return plan_clip(key, config, moving)
