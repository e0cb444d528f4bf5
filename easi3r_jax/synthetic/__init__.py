"""Procedural scenes with ground truth, rendered on the device that trains.

`scenes` samples rooms, `cameras` viewpoints. `cast` intersects rays with a scene, `texture` and `render` compute
colours. `pairs` samples training pairs with a chosen overlap, `clips` dynamic clips, `moving` pairs of their frames,
and `flow` computes exact optical flow. Everything is a pure function of a random key: it works under `jax.jit` and
`jax.vmap`, and the same key gives the same pixels.

World: the origin is the room's centre, y points *down* (OpenCV), the floor is the plane y = +half height. A room is 5
to 9 units wide. Pixel coordinates are integers at pixel centres, and the principal point is (W/2, H/2) (see
geometry/camera.py).
"""

from easi3r_jax.synthetic.clips import ClipConfig, RenderedClip, pair_as_clip, sample_clip
from easi3r_jax.synthetic.moving import MovingSampling, sample_moving_pair
from easi3r_jax.synthetic.pairs import PairSampling, sample_pair
from easi3r_jax.synthetic.render import View, render
from easi3r_jax.synthetic.scenes import Scene, random_scene

__all__ = [
    "ClipConfig",
    "MovingSampling",
    "PairSampling",
    "RenderedClip",
    "Scene",
    "View",
    "pair_as_clip",
    "random_scene",
    "render",
    "sample_clip",
    "sample_moving_pair",
    "sample_pair",
]
