"""Shows a result in the browser, with playback, colour maps and free viewpoints.

    python -m experiments.view --scene=results/demo
    python -m experiments.view --scene=results/plain,results/full        # two results of one clip, side by side
    python -m experiments.view --scene=results/demo --export-html=demo.html

It needs viser (pip install -e '.[viewer]') and listens on this machine only. Ctrl-C stops it. For access from another
machine and the panel's controls, see docs/viewer.md.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence

from easi3r_jax import viewer
from easi3r_jax.apps import cli
from easi3r_jax.apps.progress import Stages
from easi3r_jax.apps.result_flags import KeepFlag
from easi3r_jax.core import interrupt
from easi3r_jax.core.errors import ConfigError
from easi3r_jax.core.types import Reconstruction
from easi3r_jax.io import results
from easi3r_jax.io.export.selection import only
from easi3r_jax.viewer.listening import check_address, connection_hint

_HOST, _PORT = "127.0.0.1", 8080

FLAGS = cli.Flags(__doc__)

_INPUT = FLAGS.group("What is shown")
SCENE = _INPUT.string(
    "scene",
    "",
    "A result's folder or address, as reconstruct writes it; or two of one clip, separated by a comma, side by side.",
)
STATIC_POINTS = _INPUT.integer(
    "static_points", viewer.Budget.static, "Maximum number of static points.", at_least=1, at_most=10**9
)
MOVING_POINTS = _INPUT.integer(
    "moving_points",
    viewer.Budget.moving,
    "Maximum number of dynamic points, in all frames together.",
    at_least=1,
    at_most=10**9,
)
KEEP = KeepFlag(_INPUT)

_WHERE = FLAGS.group("Where")
PORT = _WHERE.integer("port", _PORT, "Port of the server (0: any free port).", at_most=65535)
HOST = _WHERE.string("host", _HOST, "Address to listen on; 0.0.0.0: also accept connections from other machines.")
EXPORT_HTML = _WHERE.output_file(
    "export_html",
    "Write one HTML file that plays without a server instead; with fewer points, unless their number is given.",
)
COLOR = _WHERE.choice("color", "RGB", viewer.CHOICES, "Colours of the points in that file.")


def main() -> None:
    names = (
        [SCENE.value] if os.path.exists(os.path.expanduser(SCENE.value)) else SCENE.value.split(",")
    )  # a name may contain a comma
    folders = [name for name in names if name]
    if not 1 <= len(folders) <= 2:
        given = f" ({len(folders)} were given)" if folders else ""
        raise ConfigError(
            f"--scene is required: the result to show, e.g. results/demo, or two separated by a comma{given}."
        )
    viewer.import_viser()
    if not EXPORT_HTML.value:
        check_address(HOST.value, PORT.value)
    KEEP.check()
    saved = [results.load_result(folder) for folder in folders]
    saved = [dataclasses.replace(one, scene=only(one.scene, KEEP.pixels(one))) for one in saved]
    if EXPORT_HTML.value:
        stages = Stages()
        path = viewer.export_html(
            saved, EXPORT_HTML.value, color=COLOR.value, budget=budget(viewer.HTML_BUDGET), progress=stages
        )
        stages.close()
        print(f"  {path}: {path.stat().st_size / 1e6:.1f} MB, opens in any browser")
    else:
        serve(saved, HOST.value, PORT.value, budget(viewer.Budget()))


def budget(default: viewer.Budget) -> viewer.Budget:
    """Maximum numbers of points, with the given flags."""
    static = STATIC_POINTS.value if STATIC_POINTS.present else default.static
    return viewer.Budget(static, MOVING_POINTS.value if MOVING_POINTS.present else default.moving)


def usual_port() -> int:
    """The default of `--port`, or any free port if that is in use: for programs without the flag."""
    try:
        check_address(_HOST, _PORT)
    except ConfigError:
        return 0
    return _PORT


def serve(
    saved: Sequence[Reconstruction],
    host: str = _HOST,
    port: int = _PORT,
    most: viewer.Budget = viewer.Budget(),
) -> None:
    """Shows results until the program is stopped."""
    with viewer.Viewer(saved, host=host, port=port, budget=most) as running:
        print(connection_hint(host, running.port), flush=True)
        with interrupt.serving():
            running.wait()
