"""A scene as one HTML file that plays without a server or a network."""

from __future__ import annotations

import html
import os
import pathlib
from collections.abc import Sequence

from easi3r_jax.core.atomic import atomic_file, check_file
from easi3r_jax.core.types import Progress, Reconstruction, silent
from easi3r_jax.viewer import server
from easi3r_jax.viewer.clouds import static_cloud
from easi3r_jax.viewer.nodes import SceneNodes
from easi3r_jax.viewer.playback import Look, Playback, View
from easi3r_jax.viewer.surroundings import NODES, FirstView, add_surroundings
from easi3r_jax.viewer.viser_import import import_viser

#: Point limits at which a browser still opens the file without delay.
BUDGET = server.Budget(static=300_000, moving=1_000_000)


def export_html(
    saved: Sequence[Reconstruction],
    path: str | os.PathLike[str],
    *,
    color: str = "RGB",
    budget: server.Budget = BUDGET,
    progress: Progress = silent,
) -> pathlib.Path:
    """Writes one or two scenes, played in a loop, as a self-contained HTML file that includes viser's player.

    Args:
      saved: one result, or two of the same clip.
      path: of the file; an existing file is replaced.
      color: one of `colors.CHOICES`.
      budget: point limits.
      progress: called with progress.

    Raises:
      ConfigError: viser is missing.
      InputError: two results of different clips.
      OutputError: the file cannot be written.
    """
    viser = import_viser()
    target = pathlib.Path(path).expanduser().absolute()
    check_file(target)
    shown = server.scenes_shown(saved)
    count, rate = len(shown[0].scene.depth), server.frame_rate(saved[0].frames.time)
    view = View(Playback(count, rate=rate), Look(color=color))
    with server.without_stdout():  # its port is not announced: it only records what it would send
        collector = viser.ViserServer(host="127.0.0.1", port=0, verbose=False)
    try:
        add_surroundings(collector, shown, FirstView(shown))
        most_moving = budget.per_frame(count)
        pairs = zip(NODES, shown, strict=False)
        nodes = [SceneNodes(collector.scene, name, scene, most_moving) for name, scene in pairs]
        for scene, scene_nodes in zip(shown, nodes, strict=True):
            scene_nodes.set_background(static_cloud(scene.scene, scene.placement, budget.static))
            while scene_nodes.refine(view):
                pass
        recording = collector.get_scene_serializer()
        for t in range(count):
            progress("record", t, count, "")
            for scene_nodes in nodes:
                scene_nodes.show(View(view.playback.at_frame(t), view.look))
            recording.insert_sleep(1 / rate)
        progress("record", count, count, "")
        title = html.escape(" | ".join(scene.title for scene in shown))
        page = recording.as_html(dark_mode=True).replace("<title>Viser</title>", f"<title>{title}</title>", 1)
    finally:
        with server.without_stdout():
            collector.stop()
    with atomic_file(target) as new:
        new.write_text(page, encoding="utf-8")
    return target
