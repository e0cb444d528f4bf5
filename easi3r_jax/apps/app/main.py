"""A web page: drop a video or images, get the scene, its videos and its files.

    python -m experiments.app --port=7860
    python -m experiments.app --checkpoints=embedded,Junyi42/MonST3R_PO-TA-S-W_ViTLarge_BaseDecoder_512_dpt

It needs gradio and viser (pip install -e '.[app]') and listens on this machine only. From another machine, open a
tunnel,

    ssh -L 7860:127.0.0.1:7860 THIS_MACHINE

and then http://localhost:7860 there. One job runs at a time, the others wait in a queue. Options on the page are
reconstruct's flags, in words. For the lifetime of files and the limits of users, see docs/app.md. Ctrl-C stops the
program and removes all of its files.
"""

from __future__ import annotations

import logging
import os
import threading

from easi3r_jax import viewer
from easi3r_jax.apps import cli
from easi3r_jax.apps.app.gate import PublicAddress
from easi3r_jax.apps.app.job import Jobs, Limits, Networks
from easi3r_jax.apps.app.store import Store
from easi3r_jax.apps.method_flags import precision_flag
from easi3r_jax.core import interrupt
from easi3r_jax.core.errors import ConfigError
from easi3r_jax.viewer.listening import check_address, connection_hint

FLAGS = cli.Flags(__doc__, cached=True)

_WHERE = FLAGS.group("Where")
PORT = _WHERE.integer("port", 7860, "Port of the page (0: any free port).", at_most=65535)
HOST = _WHERE.string("host", "127.0.0.1", "Address to listen on; 0.0.0.0: also accept connections from other machines.")
ROOT_PATH = _WHERE.string(
    "root_path",
    "",
    "Address at which a proxy shows the page, such as https://example.org/easi3r (docs/app.md has its settings); or "
    "only the path.",
)

_NETWORKS = FLAGS.group("Networks")
CHECKPOINTS = _NETWORKS.string(
    "checkpoints",
    "embedded",
    "Checkpoints that users may choose from, separated by commas, each as for --checkpoint of reconstruct. All are "
    "loaded at start-up and stay in memory.",
)
PRECISION = precision_flag(_NETWORKS)

_LIMITS = FLAGS.group("Limits")
MAX_MEGABYTES = _LIMITS.number("max_megabytes", Limits.megabytes, "Maximum size of an upload.", at_least=0.001)
MAX_FRAMES = _LIMITS.integer(
    "max_frames", Limits.frames, "Maximum length of a clip, after fps, every and first.", at_least=1
)
MAX_MINUTES = _LIMITS.number(
    "max_minutes", Limits.minutes, "A job that takes longer is stopped; waiting does not count.", at_least=0.01
)
MAX_WAITING = _LIMITS.integer(
    "max_waiting", 16, "Maximum number of jobs in the queue; further ones are refused.", at_least=1
)
KEEP_MINUTES = _LIMITS.number(
    "keep_minutes",
    60.0,
    "Lifetime of uploads and results; results are also removed when their page is closed.",
    at_least=0.01,
)


def main() -> None:
    public = PublicAddress(ROOT_PATH.value)
    viewer.import_viser()
    port = check_address(HOST.value, PORT.value)
    logging.basicConfig(format="%(asctime)s %(message)s")
    with Store(60 * KEEP_MINUTES.value) as store:
        # The folder where gradio stores uploads, and the only one that it serves files from. Gradio creates folders
        # there when it is imported, and by default reports every start to its makers.
        os.environ["GRADIO_TEMP_DIR"] = os.environ["GRADIO_EXAMPLES_CACHE"] = str(store.served)
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        try:
            from easi3r_jax.apps.app import page
        except ModuleNotFoundError as error:
            if error.name not in ("gradio", "starlette"):
                raise
            raise ConfigError("The page needs gradio: pip install -e '.[app]'.") from error
        networks = Networks([word for word in CHECKPOINTS.value.split(",") if word], PRECISION.value)
        limits = Limits(MAX_MEGABYTES.value, MAX_FRAMES.value, MAX_MINUTES.value)
        running = page.serve(Jobs(store, networks, limits), HOST.value, port, MAX_WAITING.value, public)
        try:
            print(connection_hint(HOST.value, port), flush=True)
            if public.host:
                print(f"  {public.root}/ by the proxy", flush=True)
            with interrupt.serving():
                threading.Event().wait()
        finally:
            running.close(verbose=False)
            running.players.close()
