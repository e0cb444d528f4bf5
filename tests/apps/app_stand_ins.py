"""Shared by the tests of the web app: the demo's first frames, and a stand-in for the reconstruction."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence

import av
import numpy as np
from PIL import Image

from easi3r_jax.core.types import Frames, MotionMaps, Progress, Reconstruction, Scene4D, TemporalMaps, silent
from easi3r_jax.io.sequences import CLIPS

FRAMES = sorted((CLIPS / "demo" / "frames").glob("*.png"))


def write_video(path: pathlib.Path, images: Sequence[pathlib.Path]) -> pathlib.Path:
    """The images as an MP4."""
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", 10)
        pictures = [Image.open(image).convert("RGB") for image in images]
        (stream.width, stream.height), stream.pix_fmt = pictures[0].size, "yuv420p"
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_image(picture)))
        container.mux(stream.encode())
    return path


def quick_reconstruction(
    before: Callable[[Progress], None] = lambda progress: None,
) -> Callable[..., Reconstruction]:
    """Stands in for `pipeline.reconstruct`: a wall that a camera passes, and a square that moves.

    Args:
      before: called with progress, in the place of the work.
    """

    def reconstruct(model, frames: Frames, config, *, progress: Progress = silent, **options) -> Reconstruction:
        before(progress)
        length, height, width = frames.rgb.shape[:3]
        poses = np.tile(np.eye(4, dtype=np.float32), (length, 1, 1))
        poses[:, 0, 3] = 0.1 * np.arange(length)
        intrinsics = np.array([[width, 0, width / 2], [0, width, height / 2], [0, 0, 1]], np.float32)
        masks = np.zeros((length, height, width), bool)
        masks[:, :8, :8] = True
        tokens = np.linspace(0, 1, length * 8 * 12, dtype=np.float32).reshape(length, 8, 12)
        scene = Scene4D(
            world_from_cam=poses,
            intrinsics=np.tile(intrinsics, (length, 1, 1)),
            depth=np.linspace(2, 3, masks.size, dtype=np.float32).reshape(masks.shape),
            confidence=np.full(masks.shape, 5, np.float32),
            dynamic_mask=masks,
            dynamic_score=masks.astype(np.float32),
            static_mask=~masks,
            rgb=frames.rgb,
        )
        maps = MotionMaps(
            TemporalMaps(tokens, tokens, tokens, tokens), tokens, np.zeros(tokens.shape, np.int32), tokens
        )
        losses = np.linspace(1, 0.1, 10, dtype=np.float32)
        return Reconstruction(scene, frames, motion=maps, threshold=np.float32(0.5), losses=losses)

    return reconstruct
