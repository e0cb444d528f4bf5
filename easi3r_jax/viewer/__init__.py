"""A result in the browser: played, coloured, looked at from everywhere. Needs viser (`pip install -e '.[viewer]'`).

    with Viewer([load_result("results/my_video")], port=8080) as viewer:
        viewer.wait()

    clouds      what is shown, as points
    colors      what they are coloured by, and legends
    playback    where the player stands: a pure state machine
    paths       camera paths of videos
    pictures    the current frame as pictures; pictures as a video
    nodes       a scene on a viser server, sent as it is needed
    panel, capture    controls; screenshots and videos
    server      the viewer itself
    library     viser, or what to install
    static      a file that plays without a server

The first five need no viser. None is imported before a viewer is made.
"""

from easi3r_jax.viewer.colors import CHOICES
from easi3r_jax.viewer.library import library
from easi3r_jax.viewer.server import Budget, Viewer
from easi3r_jax.viewer.static import BUDGET as HTML_BUDGET
from easi3r_jax.viewer.static import export_html

__all__ = ["CHOICES", "HTML_BUDGET", "Budget", "Viewer", "export_html", "library"]
