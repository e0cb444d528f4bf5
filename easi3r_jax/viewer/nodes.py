"""One scene on a server: static points in parts, dynamic points frame by frame, and cameras.

Nothing is sent before it is visible (or about to be). What was sent stays in the browser, so showing a frame again only
switches visibility. Points are sent again only when their selection has changed; when colours or sizes have changed,
only those are sent.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import numpy as np

from easi3r_jax.core.types import Scene4D
from easi3r_jax.io.export.pointcloud import camera_lines, camera_size, median_depth
from easi3r_jax.io.pictures.colors import time_colors
from easi3r_jax.viewer.clouds import Cloud, Placement, moving_cloud, parts
from easi3r_jax.viewer.colors import Ranges, point_colors
from easi3r_jax.viewer.paths import quaternion
from easi3r_jax.viewer.pictures import frame_picture
from easi3r_jax.viewer.playback import Look, View

if TYPE_CHECKING:
    import viser

# Parts of the background: each is one message, and the fraction of points shown changes in steps of one part.
_BACKGROUND_PARTS = 20
# Most cameras drawn of a clip: more would hide each other, and the scene.
_MAX_CAMERAS = 40
# Points of the background sent before the frames get their turn again.
_POINTS_PER_STEP = 40_000


@dataclasses.dataclass(frozen=True, eq=False)
class Shown:
    """A scene and how it is shown.

    Attributes:
      title: its name.
      scene: host arrays.
      placement: of the scene in the viewer.
      ranges: the colour maps' ranges.
    """

    title: str
    scene: Scene4D
    placement: Placement
    ranges: Ranges

    def poses(self) -> np.ndarray:
        """(T, 4, 4) float64 world_from_cam, after placement."""
        return self.placement.poses(np.asarray(self.scene.world_from_cam))

    def pixel_width(self) -> float:
        """Width of a pixel at the clip's median depth, after placement."""
        focal = float(np.median(np.asarray(self.scene.intrinsics)[:, 0, 0]))
        return self.placement.scale * median_depth(self.scene) / focal

    def picture(self, t: int) -> np.ndarray:
        """(H', W', 3) uint8: RGB, depth, dynamic score and mask of frame t."""
        return frame_picture(self.scene, t, self.ranges, self.placement.scale)

    def fov(self, t: int) -> float:
        """Vertical field of view of frame t, radians."""
        return 2 * float(np.arctan(self.scene.depth.shape[1] / 2 / self.scene.intrinsics[t, 1, 1]))

    def aspect(self, t: int) -> float:
        """Aspect of frame t's field of view, tan(horizontal / 2) / tan(vertical / 2): pixels need not be square."""
        height, width = self.scene.depth.shape[1:]
        return float(width / self.scene.intrinsics[t, 0, 0] * self.scene.intrinsics[t, 1, 1] / height)


class _Points:
    """A point cloud under one name, sent when it is first shown."""

    def __init__(self, scene_api: viser.SceneApi, name: str, cloud: Cloud, ranges: Ranges, pixel_width: float):
        self._api, self._name, self._cloud, self._ranges, self._width = scene_api, name, cloud, ranges, pixel_width
        self._handle: viser.PointCloudHandle | None = None
        self._look: Look | None = None
        self._chosen = cloud

    def __len__(self) -> int:
        return len(self._cloud)

    def show(self, look: Look) -> bool:
        """Makes the points visible. Returns whether anything besides visibility had to be sent."""
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

    @property
    def drawn(self) -> np.ndarray:
        """(P, 3) the points that were sent."""
        is_drawn = self._handle is not None and self._handle.visible
        return self._chosen.xyz if is_drawn else self._cloud.xyz[:0]

    def _send(self, look: Look) -> None:
        before, self._look = self._look, look
        if before is None or (before.confidence, before.fraction) != (look.confidence, look.fraction):
            cloud = self._cloud[: round(look.fraction * len(self._cloud))]
            self._chosen = cloud[cloud.moving | (cloud.confidence >= look.confidence)]
            if not len(self._chosen):
                self.remove()
                self._handle = None
                return
            self._handle = self._api.add_point_cloud(
                self._name,
                self._chosen.xyz,
                point_colors(self._chosen, look.color, self._ranges),
                point_size=look.size * self._width / 2,  # a radius in viser
                point_shape="circle",
                point_shading="flat",
                precision="float32",
            )
        elif self._handle is not None:
            if before.color != look.color:
                self._handle.colors = point_colors(self._chosen, look.color, self._ranges)
            self._handle.point_size = look.size * self._width / 2


class SceneNodes:
    """A scene's nodes on a server. Not thread-safe.

    Args:
      scene_api: of the server.
      name: of the parent node, "/left" for instance.
      shown: the scene.
      most_moving: most dynamic points of a frame.
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

    def drawn(self, view: View) -> np.ndarray:
        """(P, 3) the points of a view that have been sent. May be called from any thread."""
        static = self._background or self._next_background if view.background else []
        moving = [self._moving[t] for t in self._moving_now]
        return np.concatenate([np.zeros((0, 3), np.float32), *(points.drawn for points in (*static, *moving))])

    def set_background(self, cloud: Cloud) -> None:
        """Sets another background, in random order. It replaces the old one when `refine` has sent it."""
        self._generation += 1
        for points in self._next_background:
            points.remove()
        names = (f"{self._name}/static/{self._generation}/{number:02d}" for number in range(_BACKGROUND_PARTS))
        # Fewer points than an image has pixels lie farther apart: they are drawn larger, to close the gaps.
        width = self._width * max(1.0, math.sqrt(self._shown.scene.depth[0].size / max(len(cloud), 1)))
        pieces = zip(names, parts(cloud, _BACKGROUND_PARTS), strict=True)
        self._next_background = [_Points(self._api, n, c, self._shown.ranges, width) for n, c in pieces]

    def show(self, view: View) -> None:
        """Shows frames and cameras as the view says; the background follows by `refine`."""
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
        """Sends some of the background that is out of date. Returns False when all of it is up to date."""
        look = dataclasses.replace(view.look, fraction=1.0)
        count = -(-round(1000 * view.look.fraction) * _BACKGROUND_PARTS // 1000)
        if not view.background:
            return False
        coming = self._next_background
        sent = 0
        for points in (coming or self._background)[:count]:
            sent += len(points) if points.show(look) else 0
            if sent >= _POINTS_PER_STEP:
                return True
        if coming:
            for points in self._background:
                points.remove()
            self._background, self._next_background = coming, []
        for points in self._background[count:]:
            points.hide()
        return False

    def prepare(self, t: int, look: Look) -> bool:
        """Sends frame t, hidden, so that showing it only switches visibility. Returns whether it had to be sent."""
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
        """The camera path and the cameras on it, coloured from violet to yellow over time."""
        scene, colors = self._shown.scene, time_colors(len(self._poses))
        step = -(-len(self._poses) // _MAX_CAMERAS)
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
