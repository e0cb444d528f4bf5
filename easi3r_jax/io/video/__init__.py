"""A video file, a folder of images or a list of images → `Frames`.

    frames = load_frames("clip.mp4", FrameConfig(size=512, fps=8.0))

    clip      a source's frames, decoded only when they are selected
    images    folders and lists of images (Pillow)
    decode    video files (PyAV); strict: a truncated or damaged file is an error that names the frame
    completeness, structure    checks of what was read against what the file declares, and of the file's structure
    resize    the network's resize and crop, and the transform that known intrinsics, masks or depth follow
    multiview unordered images of any sizes, for a multi-view network

Frames are resized as they are decoded: the clip at its full size is never held in memory.
"""

from easi3r_jax.io.video.images import StoredImage
from easi3r_jax.io.video.load import load_frames, original_images
from easi3r_jax.io.video.multiview import multiview_images
from easi3r_jax.io.video.resize import FrameGeometry, frame_geometry, resize_image

__all__ = [
    "FrameGeometry",
    "StoredImage",
    "frame_geometry",
    "load_frames",
    "multiview_images",
    "original_images",
    "resize_image",
]
