"""An interactive view of a result in the browser. Needs viser (`pip install -e '.[viewer]'`).

    with Viewer([load_result("results/my_video")], port=8080) as viewer:
        viewer.wait()

    clouds        a scene as point clouds
    colors        colour maps of points, and legends
    playback      the player's state: a pure state machine
    paths         camera paths for videos
    pictures      the current frame as an image; images as a video
    nodes         a scene on a viser server, sent on demand
    panel, capture    controls; screenshots and videos
    server        the viewer itself
    viser_import  viser, or an error that says what to install
    static        an HTML file that plays without a server

The first five do not need viser, and viser is imported only when a viewer is made.
"""

from easi3r_jax.viewer.colors import CHOICES
from easi3r_jax.viewer.server import Budget, Viewer
from easi3r_jax.viewer.static import BUDGET as HTML_BUDGET
from easi3r_jax.viewer.static import export_html
from easi3r_jax.viewer.viser_import import import_viser

__all__ = ["CHOICES", "HTML_BUDGET", "Budget", "Viewer", "export_html", "import_viser"]
