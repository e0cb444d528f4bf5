"""Procedural scenes with ground truth, rendered on the device that trains.

`scenes` says what is in a room, `cameras` where it is seen from, `cast` what a ray meets, `texture` and `render` what
it looks like; `pairs` draws training pairs of chosen overlap, `clips` lets objects move, `moving` takes pairs of their
frames, and `flow` knows where every point is seen next. Everything is a pure function of a random key: `jax.jit` and
`jax.vmap` take it, the same key gives the same pixels.

World: the room's centre is the origin, y points *down* (OpenCV), the floor is the plane y = +half height. Units: a room
is 5 to 9 wide. Pixels are integers at pixel centres, the principal point is (W/2, H/2) (see geometry/camera.py).
"""

from easi3r_jax.synthetic.clips import Clip, ClipConfig, pair_as_clip, sample_clip
from easi3r_jax.synthetic.moving import MovingSampling, sample_moving_pair
from easi3r_jax.synthetic.pairs import PairSampling, sample_pair
from easi3r_jax.synthetic.render import View, render
from easi3r_jax.synthetic.scenes import Scene, random_scene

__all__ = [
    "Clip",
    "ClipConfig",
    "MovingSampling",
    "PairSampling",
    "Scene",
    "View",
    "pair_as_clip",
    "random_scene",
    "render",
    "sample_clip",
    "sample_moving_pair",
    "sample_pair",
]
