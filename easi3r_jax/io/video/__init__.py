"""Video file, folder of images or list of images → `Frames`.

    frames = load_frames("clip.mp4", FrameConfig(size=512, fps=8.0))

    clip      what a source yields: frames that are decoded only when they are taken
    images    folders and lists of images (Pillow)
    decode    video files (PyAV): strict, a cut or damaged file is an error that names the frame
    completeness, structure    what a video file declares and how it holds together, against what was read
    resize    the network's resize and crop, and the transform that known intrinsics, masks or depth follow

Frames are resized as they are decoded: the clip at its full size is never held in memory.
"""

from easi3r_jax.io.video.images import StoredImage
from easi3r_jax.io.video.load import load_frames, original_images
from easi3r_jax.io.video.resize import FrameGeometry, frame_geometry, resize_image

__all__ = ["FrameGeometry", "StoredImage", "frame_geometry", "load_frames", "original_images", "resize_image"]
