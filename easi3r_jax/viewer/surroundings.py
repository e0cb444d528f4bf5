"""What surrounds the scenes: the up direction, the theme, the first view, titles."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from easi3r_jax.io.export.pointcloud import empty_because, median_depth
from easi3r_jax.viewer.clouds import MIN_NETWORK_CONFIDENCE, preview_cloud
from easi3r_jax.viewer.nodes import Shown
from easi3r_jax.viewer.paths import up_direction
from easi3r_jax.viewer.viser_import import import_viser

if TYPE_CHECKING:
    import viser

#: Parent node of each scene.
NODES = ("/left", "/right")
# The first view contains this share of the points, with a margin of their radius, from this angle above the first
# camera's axis, radians; of the vertical field of view at most so much, radians. It is made for a window of this aspect
# where the window is unknown.
_SHARE, _MARGIN, _ANGLE, _WIDEST, _USUAL_ASPECT = 0.9, 1.1, 0.3, 1.2, 1.3

# Browsers narrower than this, in pixels, begin with the panel folded: it would cover the scene.
_NARROW = 640
# There the panel is a sheet that a press on its title folds. It is drawn a moment after the page has connected.
_PREPARE = """(title, narrow) => {
  document.title = title;
  if (window.innerWidth >= narrow || window.easi3rFolded) return;
  window.easi3rFolded = true;
  let tries = 0;
  const timer = setInterval(() => {
    const bar = [...document.querySelectorAll("div")].find((element) => !element.childElementCount &&
      element.textContent === title && element.parentElement.style.cursor === "pointer");
    if (bar) bar.click();
    if (bar || ++tries > 50) clearInterval(timer);
  }, 100);
}"""


class FirstView:
    """A view that frames the scenes: from behind the first camera, a little above it.

    Args:
      shown: the scenes.

    Attributes:
      fov: vertical field of view, radians.
      target: (3,), in the middle.
    """

    def __init__(self, shown: Sequence[Shown]):
        poses = [scene.poses() for scene in shown]
        clouds = [preview_cloud(scene.scene, scene.placement).xyz for scene in shown]
        points = np.concatenate([*clouds, *(p[:, :3, 3] for p in poses)]).astype(np.float64)
        self.fov = min(shown[0].fov(0), _WIDEST)
        self.target = np.median(points, axis=0)
        self._radius = _MARGIN * max(float(np.quantile(np.linalg.norm(points - self.target, axis=-1), _SHARE)), 1e-3)
        away = -np.cos(_ANGLE) * poses[0][0, :3, 2] + np.sin(_ANGLE) * up_direction(poses[0])
        self._away = away / np.linalg.norm(away)

    def position(self, aspect: float) -> np.ndarray:
        """(3,) position of the viewer's camera, for a window of width / height `aspect`."""
        half = np.arctan(np.tan(self.fov / 2) * min(1.0, max(aspect, 0.1)))
        return self.target + self._radius / np.sin(half) * self._away


def add_surroundings(server: viser.ViserServer, shown: Sequence[Shown], view: FirstView) -> None:
    """Sets the up direction, the theme, the initial view; titles above the scenes if there are two or one is empty."""
    first = shown[0]
    depth = first.placement.scale * median_depth(first.scene)
    up = up_direction(first.poses())
    server.scene.set_up_direction(up)
    server.gui.set_panel_label(" | ".join(scene.title for scene in shown))
    server.gui.configure_theme(dark_mode=True, show_logo=False, show_share_button=False)
    start = server.initial_camera
    start.fov = view.fov
    start.position, start.look_at, start.up = view.position(_USUAL_ASPECT), view.target, up
    start.near, start.far = 0.01 * depth, 1000 * depth
    for name, scene in zip(NODES, shown, strict=False):
        words = [scene.title] if len(shown) > 1 else []
        if reason := empty_because(scene.scene, MIN_NETWORK_CONFIDENCE):
            words.append(f"nothing to show, because {reason}")
        if words:
            above = scene.poses()[0, :3, 3] + 0.3 * depth * up
            server.scene.add_label(f"{name}/title", ": ".join(words), position=above)


def prepare_page(client: viser.ClientHandle, title: str) -> None:
    """Names a browser's tab, and folds the panel of a narrow one. viser has no functions for these, but a message."""
    source = f"({_PREPARE})({json.dumps(title)}, {_NARROW});"
    client._websock_connection.queue_message(import_viser()._messages.RunJavascriptMessage(source))
