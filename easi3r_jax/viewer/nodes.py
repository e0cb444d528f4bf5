"""One scene on a server: what stands still in parts, what moves frame by frame, cameras.

Nothing is sent before it is to be seen (or is about to be). What was sent stays in the browser: to show another frame
that was shown before is to flip what is visible. Points are sent again only where their choice has changed; colours
and sizes alone where these have.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import numpy as np

from easi3r_jax.core.types import Scene4D
from easi3r_jax.io.export.pointcloud import camera_lines, camera_size
from easi3r_jax.io.pictures.colors import time_colors
from easi3r_jax.viewer.clouds import Cloud, Placement, middle_depth, moving_cloud, parts
from easi3r_jax.viewer.colors import Ranges, point_colors
from easi3r_jax.viewer.paths import quaternion
from easi3r_jax.viewer.pictures import frame_picture
from easi3r_jax.viewer.playback import Look, View

if TYPE_CHECKING:
    import viser

# The background is sent in so many messages, and its share of points chosen in so many steps.
_PARTS = 20
# Cameras that are drawn of a clip, at most: more would hide each other, and the scene.
_CAMERAS = 40
# Points of the background that are sent before frames have their turn again.
_AT_ONCE = 40_000


@dataclasses.dataclass(frozen=True, eq=False)
class Shown:
    """A scene and how it is shown.

    Attributes:
      title: what it is called.
      scene: host arrays.
      placement: among the others.
      ranges: of the colours.
    """

    title: str
    scene: Scene4D
    placement: Placement
    ranges: Ranges

    def poses(self) -> np.ndarray:
        """(T, 4, 4) float64 world_from_cam, as shown."""
        return self.placement.poses(np.asarray(self.scene.world_from_cam))

    def pixel_width(self) -> float:
        """What a pixel covers at the clip's middle depth, as shown."""
        focal = float(np.median(np.asarray(self.scene.intrinsics)[:, 0, 0]))
        return self.placement.scale * middle_depth(self.scene) / focal

    def picture(self, t: int) -> np.ndarray:
        """(H', W', 3) uint8: RGB, depth, dynamic score and mask of frame t."""
        return frame_picture(self.scene, t, self.ranges, self.placement.scale)

    def fov(self, t: int) -> float:
        """Vertical field of view of frame t, radians."""
        return 2 * float(np.arctan(self.scene.depth.shape[1] / 2 / self.scene.intrinsics[t, 1, 1]))

    def aspect(self, t: int) -> float:
        """Width of frame t over its height, as fields of view: pixels need not be square."""
        height, width = self.scene.depth.shape[1:]
        return float(width / self.scene.intrinsics[t, 0, 0] * self.scene.intrinsics[t, 1, 1] / height)


class _Points:
    """Points under one name, sent when they are first shown."""

    def __init__(self, scene_api: viser.SceneApi, name: str, cloud: Cloud, ranges: Ranges, pixel_width: float):
        self._api, self._name, self._cloud, self._ranges, self._width = scene_api, name, cloud, ranges, pixel_width
        self._handle: viser.PointCloudHandle | None = None
        self._look: Look | None = None
        self._chosen = cloud

    def __len__(self) -> int:
        return len(self._cloud)

    def show(self, look: Look) -> bool:
        """Makes them visible; whether anything but that had to be sent."""
        stale = look != self._look
        if stale:
            self._send(look)
        if self._handle is not None:
            self._handle.visible = True
        return stale

    def hide(self) -> None:
        if self._handle is not None:
            self._handle.visible = False

    def remove(self) -> None:
        if self._handle is not None:
            self._handle.remove()

    def _send(self, look: Look) -> None:
        before, self._look = self._look, look
        if before is None or (before.confidence, before.share) != (look.confidence, look.share):
            cloud = self._cloud[: round(look.share * len(self._cloud))]
            self._chosen = cloud[cloud.moving | (cloud.confidence >= look.confidence)]
            if not len(self._chosen):
                self.remove()
                self._handle = None
                return
            self._handle = self._api.add_point_cloud(
                self._name,
                self._chosen.xyz,
                point_colors(self._chosen, look.color, self._ranges),
                point_size=look.size * self._width / 2,  # viser's is a radius
                point_shape="circle",
                point_shading="flat",
                precision="float32",
            )
        elif self._handle is not None:
            if before.color != look.color:
                self._handle.colors = point_colors(self._chosen, look.color, self._ranges)
            self._handle.point_size = look.size * self._width / 2


class SceneNodes:
    """A scene's nodes on a server. Not for several threads at once.

    Args:
      scene_api: of the server.
      name: of the node above all of them, "/left" for instance.
      shown: the scene.
      most_moving: most moving points in a frame.
    """

    def __init__(self, scene_api: viser.SceneApi, name: str, shown: Shown, most_moving: int):
        self._api, self._name, self._shown = scene_api, name, shown
        self._most_moving = most_moving
        self._poses, self._width = shown.poses(), shown.pixel_width()
        self._background: list[_Points] = []
        self._next_background: list[_Points] = []
        self._generation = 0
        self._moving: dict[int, _Points] = {}
        self._moving_now: list[int] = []
        self._cameras: dict[int, viser.CameraFrustumHandle] = {}
        self._camera_now: viser.CameraFrustumHandle | None = None
        self._lines = self._add_lines()

    def set_background(self, cloud: Cloud) -> None:
        """Another background, in random order. It takes the old one's place when `refine` has sent it."""
        self._generation += 1
        for points in self._next_background:
            points.remove()
        names = (f"{self._name}/static/{self._generation}/{number:02d}" for number in range(_PARTS))
        # Fewer points than an image has pixels lie farther apart, and close their ranks by being larger.
        width = self._width * max(1.0, math.sqrt(self._shown.scene.depth[0].size / max(len(cloud), 1)))
        pieces = zip(names, parts(cloud, _PARTS), strict=True)
        self._next_background = [_Points(self._api, n, c, self._shown.ranges, width) for n, c in pieces]

    def show(self, view: View) -> None:
        """Brings frames and cameras to a view; the background is brought there by `refine`."""
        frames = [min(t, len(self._poses) - 1) for t in view.moving_frames()]
        for t in frames:
            self._points(t).show(view.look)
        for t in set(self._moving_now).difference(frames):
            self._moving[t].hide()
        self._moving_now = frames
        before = self._camera_now
        self._camera_now = self._camera(view.playback.frame) if view.shows_image else None
        if self._camera_now is not None:
            self._camera_now.visible = True
        if before is not None and before is not self._camera_now:
            before.visible = False
        for lines in self._lines:
            lines.visible = view.cameras
        if not view.background:
            for points in self._background:
                points.hide()

    def refine(self, view: View) -> bool:
        """Sends some of the background that is not yet as it should be; False when all of it is."""
        look = dataclasses.replace(view.look, share=1.0)
        count = -(-round(1000 * view.look.share) * _PARTS // 1000)
        if not view.background:
            return False
        coming = self._next_background
        sent = 0
        for points in (coming or self._background)[:count]:
            sent += len(points) if points.show(look) else 0
            if sent >= _AT_ONCE:
                return True
        if coming:
            for points in self._background:
                points.remove()
            self._background, self._next_background = coming, []
        for points in self._background[count:]:
            points.hide()
        return False

    def prepare(self, t: int, look: Look) -> bool:
        """Sends frame t, unseen, so that to show it is but a flip; whether it was not there yet."""
        if t in self._moving:
            return False
        points = self._points(t)
        points.show(look)
        points.hide()
        return True

    def _points(self, t: int) -> _Points:
        if t not in self._moving:
            cloud = moving_cloud(self._shown.scene, t, self._shown.placement, self._most_moving)
            name = f"{self._name}/moving/{t:05d}"
            self._moving[t] = _Points(self._api, name, cloud, self._shown.ranges, self._width)
        return self._moving[t]

    def _camera(self, t: int) -> viser.CameraFrustumHandle:
        if t not in self._cameras:
            scene = self._shown.scene
            self._cameras[t] = self._api.add_camera_frustum(
                f"{self._name}/camera/{t:05d}",
                fov=self._shown.fov(t),
                aspect=self._shown.aspect(t),
                scale=1.2 * self._shown.placement.scale * camera_size(scene),
                thickness=2.0,
                thickness_units="screen",
                color=tuple(time_colors(len(self._poses))[t].tolist()),
                image=np.asarray(scene.rgb[t]),
                jpeg_quality=80,
                wxyz=quaternion(self._poses[t, :3, :3]),
                position=self._poses[t, :3, 3],
                cast_shadow=False,
                receive_shadow=False,
            )
        return self._cameras[t]

    def _add_lines(self) -> list[viser.LineSegmentsHandle]:
        """The path and cameras on it, from violet to yellow in time."""
        scene, colors = self._shown.scene, time_colors(len(self._poses))
        step = -(-len(self._poses) // _CAMERAS)
        segments = self._shown.placement.points(camera_lines(scene, camera_size(scene))[::step])
        shades = np.broadcast_to(colors[::step, None, None], segments.shape).reshape(-1, 2, 3)
        flat = segments.reshape(-1, 2, 3).astype(np.float32)
        lines = [
            self._api.add_line_segments(f"{self._name}/cameras", flat, shades, thickness=1.0, thickness_units="screen")
        ]
        centres = self._poses[:, :3, 3].astype(np.float32)
        if len(centres) > 1:
            path, ends = np.stack([centres[:-1], centres[1:]], 1), np.stack([colors[:-1], colors[1:]], 1)
            lines.append(
                self._api.add_line_segments(f"{self._name}/path", path, ends, thickness=2.5, thickness_units="screen")
            )
        return lines
