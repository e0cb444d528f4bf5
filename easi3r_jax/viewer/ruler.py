"""Distances between points that are pressed in the scene."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import viser

# A press within this angle of a point means it, radians: some ten pixels.
_REACH = 0.012
_COLOR = (255, 210, 60)
_NODE = "/ruler"


def pressed_point(points: np.ndarray, origin: np.ndarray, direction: np.ndarray) -> np.ndarray | None:
    """The nearest point along a ray.

    Args:
      points: (P, 3).
      origin, direction: (3,) each.

    Returns:
      (3,), or None if no point is near the ray.
    """
    offset = points.astype(np.float64) - origin
    along = offset @ (direction / np.linalg.norm(direction))
    aside = np.sqrt(np.maximum((offset**2).sum(axis=-1) - along**2, 0))
    near = (along > 0) & (aside <= _REACH * along)
    return points[near][np.argmin(along[near])] if near.any() else None


class Ruler:
    """Measures between two presses, within one scene; a third begins anew.

    Args:
      scene_api: of the server.
      drawn: points of each scene, (P, 3), as they are drawn.
      scales: of each scene, drawn units per unit of its world.
      unit: of the worlds, for example "m"; empty if it is unknown.
    """

    def __init__(
        self, scene_api: viser.SceneApi, drawn: Callable[[], Sequence[np.ndarray]], scales: Sequence[float], unit: str
    ):
        self._api, self._drawn, self._scales, self._unit = scene_api, drawn, scales, unit
        self._lock = threading.Lock()  # two browsers may press at once
        self._ends: list[np.ndarray] = []
        self._scene = 0
        self._handles: list[viser.SceneNodeHandle] = []

    def turn(self, on: bool) -> None:
        """Begins or ends to take presses. Ending removes what was measured."""
        if on:
            self._api.on_click()(self._clicked)
        else:
            self._api.remove_click_callback(self._clicked)
            with self._lock:
                self._clear()

    def _clicked(self, event: viser.SceneClickEvent) -> None:
        self.press(np.asarray(event.ray_origin), np.asarray(event.ray_direction))

    def press(self, origin: np.ndarray, direction: np.ndarray) -> float | None:
        """A press along a ray. Returns the distance in units of the world after the second of two."""
        found = [pressed_point(points, origin, direction) for points in self._drawn()]
        hits = [(float(np.linalg.norm(p - origin)), n, p) for n, p in enumerate(found) if p is not None]
        if not hits:
            return None
        _, scene, point = min(hits, key=lambda hit: hit[0])
        with self._lock:
            return self._add(scene, point)

    def _add(self, scene: int, point: np.ndarray) -> float | None:
        """A further end of what is measured."""
        if len(self._ends) != 1 or scene != self._scene:
            self._clear()
            self._ends, self._scene = [point], scene
            self._mark(point)
            return None
        self._ends.append(point)
        self._mark(point)
        distance = float(np.linalg.norm(self._ends[1] - self._ends[0])) / self._scales[scene]
        line = np.stack(self._ends)[None].astype(np.float32)
        text = f"{distance:.4g} {self._unit}".strip() if self._unit else f"{distance:.4g} (no unit is known)"
        self._handles += [
            self._api.add_line_segments(f"{_NODE}/line", line, _COLOR, thickness=3.0, thickness_units="screen"),
            self._api.add_label(f"{_NODE}/distance", text, position=line[0].mean(axis=0)),
        ]
        return distance

    def _mark(self, point: np.ndarray) -> None:
        name = f"{_NODE}/{len(self._handles)}"
        self._handles.append(
            self._api.add_point_cloud(
                name, point[None].astype(np.float32), _COLOR, point_size=0.012, point_shape="circle"
            )
        )

    def _clear(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles, self._ends = [], []
