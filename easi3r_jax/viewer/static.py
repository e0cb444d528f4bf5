"""A scene that plays in one HTML file, without a server and without a network."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence

from easi3r_jax.core.atomic import atomic_file, check_file
from easi3r_jax.core.types import Observer, Reconstruction, silent
from easi3r_jax.viewer import server
from easi3r_jax.viewer.clouds import static_cloud
from easi3r_jax.viewer.library import library
from easi3r_jax.viewer.nodes import SceneNodes
from easi3r_jax.viewer.playback import Look, Playback, View

#: Most points of a file that a browser still opens at once.
BUDGET = server.Budget(static=300_000, moving=1_000_000)


def export_html(
    saved: Sequence[Reconstruction],
    path: str | os.PathLike[str],
    *,
    color: str = "RGB",
    budget: server.Budget = BUDGET,
    observer: Observer = silent,
) -> pathlib.Path:
    """Writes one or two scenes, played in a loop, as a file that holds all it needs: the player of viser too.

    Args:
      saved: one result, or two of one clip.
      path: of the file; an older one is replaced.
      color: one of `colors.CHOICES`.
      budget: most points.
      observer: told of progress.

    Raises:
      ConfigError: viser is missing.
      InputError: two results that are not of one clip.
      OutputError: it cannot be written.
    """
    viser = library()
    target = pathlib.Path(path).expanduser().absolute()
    check_file(target)
    shown = server.scenes_shown(saved)
    count, rate = len(shown[0].scene.depth), server.frame_rate(saved[0].frames.time)
    view = View(Playback(count, rate=rate), Look(color=color))
    with server.quiet():  # nobody is told of its port: it only collects what it would send
        collector = viser.ViserServer(host="127.0.0.1", port=0, verbose=False)
    try:
        server.add_surroundings(collector, shown)
        most_moving = budget.per_frame(count)
        pairs = zip(server.NODES, shown, strict=False)
        nodes = [SceneNodes(collector.scene, name, scene, most_moving) for name, scene in pairs]
        for scene, scene_nodes in zip(shown, nodes, strict=True):
            scene_nodes.set_background(static_cloud(scene.scene, scene.placement, budget.static))
            while scene_nodes.refine(view):
                pass
        recording = collector.get_scene_serializer()
        for t in range(count):
            observer("record", t, count, "")
            for scene_nodes in nodes:
                scene_nodes.show(View(view.playback.sought(t), view.look))
            recording.insert_sleep(1 / rate)
        observer("record", count, count, "")
        page = recording.as_html(dark_mode=True)
    finally:
        with server.quiet():
            collector.stop()
    with atomic_file(target) as new:
        new.write_text(page, encoding="utf-8")
    return target
