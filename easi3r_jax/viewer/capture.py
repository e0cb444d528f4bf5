"""Screenshots and videos, drawn by the browser that asks for them and handed to it as a download."""

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

#: Camera paths of videos.
PATHS = ("orbit", "camera path")
# Largest side of a picture. Seconds to wait for one (a browser may draw on a CPU), and those of a swing that stands for
# a clip of a single frame.
_LARGEST, _PATIENCE, _ONE_FRAME = 1920, 60.0, 4.0
# Seconds between a change of the scene and the request for a picture of it. viser sends the two apart, and the page
# applies the one a moment after it has it: without a pause a picture can show the frame before.
_PAUSE = 0.05
# What is behind the scene, as in the page. A picture has nothing there.
_GROUND = np.array([20, 20, 20])


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

    def update(self, function: Callable[[View], View]) -> None:
        """Replaces the view by a function of it."""

    def show_frame(self, t: int) -> None:
        """Pauses at a frame, and returns when browsers are told."""

    def poses(self) -> np.ndarray:
        """(T, 4, 4) world_from_cam."""
        ...

    def fov(self, t: int) -> float:
        """Vertical field of view of frame t, radians."""
        ...

    def aspect(self) -> float:
        """Width of the clip's images over their height, as fields of view."""
        ...


def screenshot(client: viser.ClientHandle, stage: Stage) -> None:
    """Hands the browser what it shows, without the panel, as a PNG."""
    file = io.BytesIO()
    Image.fromarray(_render(client, _size(client), {})).save(file, "PNG")
    client.send_file_download(f"frame_{stage.view.playback.frame:05d}.png", file.getvalue(), save_immediately=True)


def record(client: viser.ClientHandle, stage: Stage, path: str, degrees: float) -> None:
    """Hands the browser a video of the clip, played once (a single frame: looked at for a few seconds).

    Args:
      client: the browser.
      stage: what is filmed. Afterwards it is where it was, and plays on if it did.
      path: one of `PATHS`. An orbit starts from where the browser looks, in the size of its window; along the camera's
        path the pictures are as wide as the clip's, and what it saw is left out, or it would hide the points.
      degrees: of an orbit, see `paths.orbit`.
    """
    before = stage.view
    began = before.playback
    count = began.num_frames if began.num_frames > 1 else round(_ONE_FRAME * began.rate)
    numbers = range(0, count, began.stride)
    camera = client.camera
    fov_before = camera.fov
    if path == "orbit":
        poses = paths.orbit(camera.position, camera.look_at, camera.up_direction, len(numbers), degrees)
        fovs, size = [fov_before] * len(numbers), _size(client)
    else:
        all_poses = stage.poses()
        poses = all_poses[[t % len(all_poses) for t in numbers]]
        fovs, size = [stage.fov(t % len(all_poses)) for t in numbers], _size(client, stage.aspect())
    notice = client.add_notification("Video", "begins", loading=True, with_close_button=False)

    def frames() -> Iterator[np.ndarray]:
        for done, (t, pose, fov) in enumerate(zip(numbers, poses, fovs, strict=True)):
            stage.show_frame(t % began.num_frames)
            notice.body = f"frame {done + 1} of {len(numbers)}"
            camera.fov = fov  # the page draws points as large as its own view has them
            time.sleep(_PAUSE)
            yield _render(client, size, {"wxyz": paths.quaternion(pose[:3, :3]), "position": pose[:3, 3], "fov": fov})

    stage.update(lambda view: dataclasses.replace(view, filmed=path != "orbit"))
    is_there = True
    try:
        file = pictures.video(frames(), began.rate)
    except GoneError:
        is_there = False
        raise
    finally:
        stage.update(lambda view: view.resumed(before))
        if is_there:
            notice.remove()
            camera.fov = fov_before
    client.send_file_download(f"{path.replace(' ', '_')}.mp4", file, save_immediately=True)


def _size(client: viser.ClientHandle, aspect: float | None = None) -> tuple[int, int]:
    """(height, width) of pictures: those of the browser's window, or as high and of another width.

    The page draws points as large as a picture of the window's height has them.
    """
    height = client.camera.image_height
    return height, client.camera.image_width if aspect is None else max(2, round(aspect * height))


def _render(client: viser.ClientHandle, size: tuple[int, int], camera: dict) -> np.ndarray:
    """(H, W, 3) uint8: the scene as the browser draws it, made smaller where it is too large."""
    try:
        drawn = client.get_render(*size, transport_format="png", timeout=_PATIENCE, **camera)
    except TimeoutError as error:
        raise NoPictureError("The browser does not draw: bring its tab to the front, and try again.") from error
    except RuntimeError as error:
        if "disconnected" in str(error):
            raise GoneError from error
        raise NoPictureError("The browser could not draw the picture.") from error
    share = drawn[..., 3:] / 255.0
    picture = (share * drawn[..., :3] + (1 - share) * _GROUND).round().astype(np.uint8)
    small = Image.fromarray(picture)
    small.thumbnail((_LARGEST, _LARGEST))
    return np.asarray(small)
