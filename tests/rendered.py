"""Rendered clips as results: the exact cameras, depth and motion in place of estimates."""

import dataclasses
import functools
import pathlib

import jax
import numpy as np

from easi3r_jax.core.types import Frames, Reconstruction, Scene4D
from easi3r_jax.io.sequences import CLIPS
from easi3r_jax.io.video.folders import list_images
from easi3r_jax.io.video.images import read_image
from easi3r_jax.synthetic.clips import ClipConfig, ClipPlan, RenderedClip, plan_clip, render_clip

DEMO = CLIPS / "demo"
#: All clips that are rendered in tests have this shape, so that it is compiled once.
CONFIG = ClipConfig(size=(48, 72), num_frames=6, num_objects=8, num_moving=4, speed=(0.03, 0.06))


@functools.cache
def demo_truth() -> dict[str, np.ndarray]:
    """The arrays of the bundled clip's ground truth."""
    with np.load(DEMO / "ground_truth.npz") as file:
        return dict(file)


@functools.cache
def demo_result() -> Reconstruction:
    """The bundled clip's ground truth as a result."""
    truth = demo_truth()
    paths = list_images(DEMO / "frames")
    rgb = np.stack([np.asarray(read_image(path)) for path in paths])
    masks = truth["masks"]
    return exact_result(rgb, truth["depth"], masks, truth["world_from_cam"], truth["intrinsics"], paths)


def exact_result(rgb, depth, masks, world_from_cam, intrinsics, paths=None) -> Reconstruction:
    """A result of exact arrays, with a confidence of 3 everywhere. The originals are as large as the frames."""
    count, height, width = depth.shape
    scene = Scene4D(
        world_from_cam=world_from_cam,
        intrinsics=np.broadcast_to(intrinsics, (count, 3, 3)).astype(np.float32),
        depth=depth,
        confidence=np.full((count, height, width), 3, np.float32),
        dynamic_mask=masks,
        dynamic_score=masks.astype(np.float32),
        static_mask=~masks,
        rgb=rgb,
    )
    frames = Frames(
        rgb=rgb,
        source_index=np.arange(count, dtype=np.int32),
        time=np.arange(count) / 8,
        frame_from_source=np.eye(3),
        source_size=np.array([height, width], np.int32),
        names=None if paths is None else tuple(pathlib.Path(path).name for path in paths),
    )
    return Reconstruction(scene=scene, frames=frames)


@functools.cache
def plan(seed: int = 0, times: int = 1) -> ClipPlan:
    """A clip without a sensor's noise; its images are `times` as large as `CONFIG` says, of the same views."""
    made = jax.tree.map(np.asarray, jax.jit(plan_clip, static_argnums=1)(jax.random.key(seed), CONFIG))
    # Edges are mapped to edges.
    larger = np.array([[times, 0, times / 2 - 0.5], [0, times, times / 2 - 0.5], [0, 0, 1]], np.float32)
    return dataclasses.replace(made, intrinsics=(larger @ made.intrinsics).astype(np.float32), sensor=None)


@functools.cache
def rendered(seed: int = 0, times: int = 1) -> RenderedClip:
    """The plan's clip, as NumPy arrays."""
    size = (CONFIG.size[0] * times, CONFIG.size[1] * times)
    return jax.tree.map(
        np.asarray, jax.jit(render_clip, static_argnums=2)(jax.random.key(seed), plan(seed, times), size)
    )


def rendered_result(seed: int = 0) -> Reconstruction:
    """That clip's ground truth as a result."""
    clip = rendered(seed)
    views = clip.views
    return exact_result(views.rgb, views.depth, clip.moving, views.world_from_cam, views.intrinsics)
