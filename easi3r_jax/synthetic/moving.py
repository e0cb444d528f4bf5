"""Training pairs of dynamic scenes: two frames of a clip, a stride apart."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from easi3r_jax.core.arrays import Array, Key
from easi3r_jax.synthetic.clips import ClipConfig, plan_clip
from easi3r_jax.synthetic.draws import uniforms
from easi3r_jax.synthetic.render import View, render


@dataclasses.dataclass(frozen=True)
class MovingSampling:
    """How pairs of frames are sampled from clips.

    Attributes:
      clip: how clips are sampled.
      max_stride: largest distance in time of the two frames. The probability of a stride is proportional to it
        (MonST3R, arXiv 2410.03825, sec. 4).
    """

    clip: ClipConfig = ClipConfig()
    max_stride: int = 9


def sample_moving_pair(key: Key[Array, ""], sampling: MovingSampling) -> View:
    """Two frames of a new random clip, in random order.

    Args:
      key: determines everything.
      sampling: how pairs are sampled; static under `jit`.

    Returns:
      A `View` whose leaves have a leading axis of 2.
    """
    plan_key, frames_key, noise_key = jax.random.split(key, 3)
    u = uniforms(frames_key, stride=(), start=(), order=())
    plan = plan_clip(plan_key, sampling.clip)
    num_frames = sampling.clip.num_frames
    strides = np.arange(1, min(sampling.max_stride, num_frames - 1) + 1)
    most = np.cumsum(strides / strides.sum())[:-1]
    stride = 1 + jnp.sum((u["stride"] >= jnp.asarray(most, jnp.float32)).astype(jnp.int32))
    starts = num_frames - stride
    start = jnp.minimum((u["start"] * starts.astype(jnp.float32)).astype(jnp.int32), starts - 1)
    frames = jnp.stack([start, start + stride])
    frames = jnp.where(u["order"] < 0.5, frames, frames[::-1])
    objects, poses, intrinsics, sensor = jax.tree.map(
        lambda a: a[frames], (plan.world_from_object, plan.world_from_cam, plan.intrinsics, plan.sensor)
    )

    def view(noise_key, world_from_object, world_from_cam, cam_intrinsics, one_sensor) -> View:
        scene = dataclasses.replace(plan.scene, world_from_object=world_from_object)
        return render(noise_key, scene, world_from_cam, cam_intrinsics, sampling.clip.size, one_sensor)

    return jax.vmap(view)(jax.random.split(noise_key), objects, poses, intrinsics, sensor)
