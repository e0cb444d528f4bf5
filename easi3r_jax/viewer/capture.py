"""Screenshots and videos, drawn by the browser that asks for them and handed to it as a download."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

import numpy as np
from PIL import Image

from easi3r_jax.viewer import paths, pictures
from easi3r_jax.viewer.playback import View

if TYPE_CHECKING:
    import viser

#: Camera paths of videos.
PATHS = ("orbit", "camera path")
# Largest side of a picture. Seconds to wait for one (a browser may draw on a CPU), and those of a swing that stands for
# a clip of a single frame.
_LARGEST, _PATIENCE, _ONE_FRAME = 1920, 60.0, 4.0


class GoneError(Exception):
    """The browser has been closed."""


class NoPictureError(Exception):
    """The browser does not draw."""


class Stage(Protocol):
    """What is filmed."""

    @property
    def view(self) -> View:
        """What is to be seen."""
        ...

    def show_frame(self, t: int) -> None:
        """Pauses at a frame, and returns when it is shown."""

    def poses(self) -> np.ndarray:
        """(T, 4, 4) world_from_cam."""
        ...

    def fov(self, t: int) -> float:
        """Vertical field of view of frame t, radians."""
        ...


def screenshot(client: viser.ClientHandle, stage: Stage) -> None:
    """Hands the browser what it shows, without the panel, as a PNG."""
    file = io.BytesIO()
    Image.fromarray(_render(client, {})).save(file, "PNG")
    client.send_file_download(f"frame_{stage.view.playback.frame:05d}.png", file.getvalue(), save_immediately=True)


def record(client: viser.ClientHandle, stage: Stage, path: str, degrees: float) -> None:
    """Hands the browser a video of the clip, played once (a single frame: looked at for a few seconds).

    Args:
      client: the browser.
      stage: what is filmed; it plays on afterwards if it did before.
      path: one of `PATHS`. An orbit starts from where the browser looks.
      degrees: of an orbit, see `paths.orbit`.
    """
    began = stage.view.playback
    count = began.num_frames if began.num_frames > 1 else round(_ONE_FRAME * began.rate)
    numbers = range(0, count, began.stride)
    if path == "orbit":
        camera = client.camera
        poses = paths.orbit(camera.position, camera.look_at, camera.up_direction, len(numbers), degrees)
        fovs = [camera.fov] * len(numbers)
    else:
        all_poses = stage.poses()
        poses = all_poses[[t % len(all_poses) for t in numbers]]
        fovs = [stage.fov(t % len(all_poses)) for t in numbers]
    notice = client.add_notification("Video", "begins", loading=True, with_close_button=False)

    def frames() -> Iterator[np.ndarray]:
        for done, (t, pose, fov) in enumerate(zip(numbers, poses, fovs, strict=True)):
            stage.show_frame(t % began.num_frames)
            notice.body = f"frame {done + 1} of {len(numbers)}"
            yield _render(client, {"wxyz": paths.quaternion(pose[:3, :3]), "position": pose[:3, 3], "fov": fov})

    try:
        file = pictures.video(frames(), began.rate)
    finally:
        notice.remove()
    client.send_file_download(f"{path.replace(' ', '_')}.mp4", file, save_immediately=True)


def _render(client: viser.ClientHandle, camera: dict) -> np.ndarray:
    """(H, W, 3) uint8: the scene as the browser draws it, in the size of its window."""
    height, width = client.camera.image_height, client.camera.image_width
    scale = min(1.0, _LARGEST / max(height, width))
    size = (max(2, round(scale * height)), max(2, round(scale * width)))
    try:
        return client.get_render(*size, transport_format="jpeg", timeout=_PATIENCE, **camera)[..., :3]
    except TimeoutError as error:
        raise NoPictureError("The browser does not draw: bring its tab to the front, and try again.") from error
    except RuntimeError as error:
        if "disconnected" in str(error):
            raise GoneError from error
        raise NoPictureError("The browser could not draw the picture.") from error
