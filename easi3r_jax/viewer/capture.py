"""Screenshots and videos: rendered by the browser that asks for them, and sent to it as a download."""

from __future__ import annotations

import dataclasses
import io
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Protocol

import numpy as np
from PIL import Image

from easi3r_jax.viewer import paths, pictures
from easi3r_jax.viewer.playback import View

if TYPE_CHECKING:
    import viser

#: Camera paths for videos.
PATHS = ("orbit", "camera path")
# Pixels: the longer side of an image is scaled down to this.
_MAX_SIDE = 1920
# Seconds to wait for an image: a browser may render on a CPU.
_RENDER_TIMEOUT = 60.0
# Seconds of the video of a clip that has a single frame.
_SINGLE_FRAME_DURATION = 4.0
# Seconds between a change of the scene and the request to render it. viser sends the two separately, and the page
# applies a change a moment after it arrives: without the delay an image can show the previous frame.
_RENDER_DELAY = 0.05
# The page's background colour; rendered images are transparent there.
_BACKGROUND_RGB = np.array([20, 20, 20])


class BrowserClosedError(Exception):
    """The browser has been closed."""


class RenderError(Exception):
    """The browser did not return an image."""


class Player(Protocol):
    """What screenshots and videos are taken of."""

    @property
    def view(self) -> View:
        """What is displayed."""
        ...

    def update(self, function: Callable[[View], View]) -> None:
        """Replaces the view by a function of it."""

    def show_frame(self, t: int) -> None:
        """Pauses at a frame. Returns when browsers have been told."""

    def measure(self, on: bool) -> None:
        """Begins or ends to measure between pressed points."""

    def poses(self) -> np.ndarray:
        """(T, 4, 4) world_from_cam."""
        ...

    def fov(self, t: int) -> float:
        """Vertical field of view of frame t, radians."""
        ...

    def aspect(self) -> float:
        """Aspect of the clip's field of view, tan(horizontal / 2) / tan(vertical / 2)."""
        ...


def screenshot(client: viser.ClientHandle, player: Player) -> None:
    """Sends the browser its current view, without the panel, as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(_render(client, _size(client), {})).save(file, "PNG")
    client.send_file_download(f"frame_{player.view.playback.frame:05d}.png", file.getvalue(), save_immediately=True)


def record(client: viser.ClientHandle, player: Player, path: str, degrees: float) -> None:
    """Sends the browser a video of the clip, played once. A clip of a single frame is shown for a few seconds.

    Args:
      client: the browser.
      player: what is recorded. Afterwards it returns to its frame, and resumes if it was playing.
      path: one of `PATHS`. An orbit starts from the browser's view and has the size of its window. Along the camera's
        path the video has the aspect ratio of the clip, and the current camera's image is omitted, since it would hide
        the points.
      degrees: angle of an orbit, see `paths.orbit`.
    """
    before = player.view
    began = before.playback
    count = began.num_frames if began.num_frames > 1 else round(_SINGLE_FRAME_DURATION * began.rate)
    numbers = range(0, count, began.stride)
    camera = client.camera
    fov_before = camera.fov
    if path == "orbit":
        poses = paths.orbit(camera.position, camera.look_at, camera.up_direction, len(numbers), degrees)
        fovs, size = [fov_before] * len(numbers), _size(client)
    else:
        all_poses = player.poses()
        poses = all_poses[[t % len(all_poses) for t in numbers]]
        fovs, size = [player.fov(t % len(all_poses)) for t in numbers], _size(client, player.aspect())
    notice = client.add_notification("Video", "starting", loading=True, with_close_button=False)

    def frames() -> Iterator[np.ndarray]:
        for done, (t, pose, fov) in enumerate(zip(numbers, poses, fovs, strict=True)):
            player.show_frame(t % began.num_frames)
            notice.body = f"frame {done + 1} of {len(numbers)}"
            camera.fov = fov  # the page sizes points by its own view, not by the requested one
            time.sleep(_RENDER_DELAY)
            yield _render(client, size, {"wxyz": paths.quaternion(pose[:3, :3]), "position": pose[:3, 3], "fov": fov})

    player.update(lambda view: dataclasses.replace(view, recording_camera=path != "orbit"))
    connected = True
    try:
        file = pictures.video(frames(), began.rate)
    except BrowserClosedError:
        connected = False
        raise
    finally:
        player.update(lambda view: view.resumed(before))
        if connected:
            notice.remove()
            camera.fov = fov_before
    client.send_file_download(f"{path.replace(' ', '_')}.mp4", file, save_immediately=True)


def _size(client: viser.ClientHandle, aspect: float | None = None) -> tuple[int, int]:
    """(height, width) of images: those of the browser's window, or its height and the width for another aspect.

    The height is always the window's, since the page sizes points for an image of that height.
    """
    height = client.camera.image_height
    return height, client.camera.image_width if aspect is None else max(2, round(aspect * height))


def _render(client: viser.ClientHandle, size: tuple[int, int], camera: dict) -> np.ndarray:
    """(H, W, 3) uint8: the scene as the browser renders it, scaled down to `_MAX_SIDE` where it is larger."""
    try:
        rendered = client.get_render(*size, transport_format="png", timeout=_RENDER_TIMEOUT, **camera)
    except TimeoutError as error:
        raise RenderError("The browser does not render: bring its tab to the front and try again.") from error
    except RuntimeError as error:
        if "disconnected" in str(error):
            raise BrowserClosedError from error
        raise RenderError("The browser could not render the image.") from error
    alpha = rendered[..., 3:] / 255.0
    picture = (alpha * rendered[..., :3] + (1 - alpha) * _BACKGROUND_RGB).round().astype(np.uint8)
    small = Image.fromarray(picture)
    small.thumbnail((_MAX_SIDE, _MAX_SIDE))
    return np.asarray(small)
