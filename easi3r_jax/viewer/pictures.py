"""The current frame as an image (RGB, depth, dynamic score and mask, two by two), and images as a video."""

from __future__ import annotations

import fractions
import io
from collections.abc import Iterable

import av
import numpy as np
from PIL import Image, ImageDraw

from easi3r_jax.core.types import Scene4D
from easi3r_jax.viewer.colors import Ranges, mask_overlay, shades

# Pixels: the largest width of a tile, and the gap between tiles.
_TILE_WIDTH, _GAP = 240, 4


def frame_picture(scene: Scene4D, t: int, ranges: Ranges, scale: float = 1.0) -> np.ndarray:
    """Four tiles of frame t, at most 484 pixels wide: RGB and depth above dynamic score and mask.

    Args:
      scene: host arrays.
      t: frame number.
      ranges: the colour maps' ranges.
      scale: of the scene's placement, the one for which `ranges` was measured.

    Returns:
      (H', W', 3) uint8.
    """
    step = -(-scene.depth.shape[2] // _TILE_WIDTH)
    rgb = np.asarray(scene.rgb[t])[::step, ::step]
    depth = np.asarray(scene.depth[t])[::step, ::step]
    depth = scale * np.where(np.isfinite(depth) & (depth > 0), depth, np.nan)
    tiles = {
        "RGB": rgb,
        "depth": shades(depth, "depth", ranges),
        "score": shades(np.asarray(scene.dynamic_score[t])[::step, ::step], "dynamic score", ranges),
        "mask": mask_overlay(rgb, np.asarray(scene.dynamic_mask[t])[::step, ::step]),
    }
    larger = max(1, _TILE_WIDTH // rgb.shape[1])
    height, width = larger * rgb.shape[0], larger * rgb.shape[1]
    picture = Image.new("RGB", (2 * width + _GAP, 2 * height + _GAP), (36, 36, 36))
    for number, (name, tile) in enumerate(tiles.items()):
        x, y = (width + _GAP) * (number % 2), (height + _GAP) * (number // 2)
        picture.paste(Image.fromarray(np.repeat(np.repeat(tile, larger, axis=0), larger, axis=1)), (x, y))
        ImageDraw.Draw(picture).text((x + 4, y + 2), name, fill="white", stroke_width=1, stroke_fill="black")
    return np.asarray(picture)


def video(pictures: Iterable[np.ndarray], rate: float) -> bytes:
    """An MP4 file (H.264) of images, (H, W, 3) uint8, all of one size; an odd last row or column is cropped.

    Args:
      pictures: consumed one at a time, while encoding.
      rate: frames per second.
    """
    frame_rate = fractions.Fraction(rate).limit_denominator(1000)
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = None
        for picture in pictures:
            height, width = (side // 2 * 2 for side in picture.shape[:2])
            if stream is None:
                stream = container.add_stream("libx264", rate=frame_rate, options={"crf": "20"})
                stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture[:height, :width, :3]), format="rgb24")
            container.mux(stream.encode(frame))
        if stream is not None:
            container.mux(stream.encode())
    return file.getvalue()
