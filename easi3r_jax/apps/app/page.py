"""The page (gradio): files and options on the left; the scene, its videos and downloads on the right."""

from __future__ import annotations

import html
import logging
import pathlib
import threading
import time
from collections.abc import Mapping
from typing import Any

import gradio as gr  # pyright: ignore[reportMissingImports]
from gradio.components import Component  # pyright: ignore[reportMissingImports]
from gradio.themes import Default  # pyright: ignore[reportMissingImports]
from starlette.middleware import Middleware  # pyright: ignore[reportMissingImports]

from easi3r_jax.apps.app import options
from easi3r_jax.apps.app.gate import Gate
from easi3r_jax.apps.app.job import Jobs, Products
from easi3r_jax.apps.progress import TITLES
from easi3r_jax.core.errors import UserError
from easi3r_jax.io import export
from easi3r_jax.io.pictures.gallery import FILMS
from easi3r_jax.viewer.listening import is_local

# Minimum seconds between two reports to the browser: the alignment has hundreds of them.
_REPORT_SECONDS = 0.25
# Pixels. A long list of images must not push the options out of view.
_UPLOADS_HEIGHT, _SCENE_HEIGHT, _FILM_HEIGHT = 220, 460, 280
# Red, green, blue, alpha behind the points: dark, as in the videos and the viewer.
_BACKGROUND = (0.16, 0.17, 0.2, 1.0)
_FAILED = "failed: see the server's log"
_TITLES = {
    "panel": "Image, depth, score, masks",
    "depth": "Depth",
    "masks": "Dynamic regions",
    "attention": "Attention",
}
# From such a default gradio recognises that a function reports progress, and passes its own object.
_PROGRESS = gr.Progress()
_LOG = logging.getLogger("experiments.app")


class Sessions:
    """State of each open page: whether its job is to stop, and its results.

    Args:
      jobs: the owner of the results.
    """

    def __init__(self, jobs: Jobs):
        self._jobs = jobs
        self._lock = threading.Lock()
        self._stops: dict[str, threading.Event] = {}
        self._results: dict[str, list[Products]] = {}

    def begin(self, session: str) -> threading.Event:
        """Registers a job of the page; setting the event ends it."""
        with self._lock:
            return self._stops.setdefault(session, threading.Event())

    def end(self, session: str, event: threading.Event, products: Products | None) -> None:
        """Registers the end of a job. A result that nobody waits for any more is removed at once."""
        with self._lock:
            is_wanted = self._stops.get(session) is event
            if is_wanted:
                del self._stops[session]
            if products is not None and is_wanted:
                self._results.setdefault(session, []).append(products)
            elif products is not None:
                self._jobs.store.remove(products.folder)

    def stop(self, session: str) -> None:
        """Ends the page's job at its next progress report."""
        with self._lock:
            event = self._stops.pop(session, None)
        if event is not None:
            event.set()

    def close(self, session: str) -> None:
        """The page was closed: ends its job and removes its results."""
        self.stop(session)
        with self._lock:
            results = self._results.pop(session, [])
        for products in results:
            self._jobs.store.remove(products.folder)


def serve(jobs: Jobs, host: str, port: int, waiting: int) -> gr.Blocks:
    """Starts the server in its own thread.

    Args:
      jobs: runs the jobs.
      host, port: address to listen on.
      waiting: maximum number of waiting jobs; further ones are refused.

    Returns:
      the page, to be closed at the end.
    """
    page = _page(jobs)
    page.queue(max_size=waiting, default_concurrency_limit=1, api_open=True)
    gate = Middleware(Gate, store=jobs.store, megabytes=jobs.limits.megabytes, local=is_local(host))
    page.launch(
        server_name=host,
        server_port=port,
        share=False,
        inbrowser=False,
        prevent_thread_lock=True,
        quiet=True,
        show_error=False,
        max_file_size=int(1e6 * jobs.limits.megabytes),
        allowed_paths=[],
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        run_history=False,
        num_workers=0,
        enable_monitoring=False,
        footer_links=[],
        theme=Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        # No API documentation pages: they load scripts from other sites.
        app_kwargs={"middleware": [gate], "docs_url": None, "redoc_url": None, "openapi_url": None},
    )
    return page


def _page(jobs: Jobs) -> gr.Blocks:
    sessions, limits = Sessions(jobs), jobs.limits
    with gr.Blocks(title="easi3r_jax", analytics_enabled=False) as page:
        gr.Markdown(
            "# A video of a moving scene, in 4D\n"
            f"One video, or images; up to {limits.megabytes:g} MB, {limits.frames} frames and {limits.minutes:g} "
            "minutes of work. One job runs at a time, the others wait. Closing the page stops its job and removes its "
            "results."
        )
        with gr.Row():
            with gr.Column(scale=1):
                files = _uploads()
                checkpoint = gr.Dropdown(
                    list(jobs.networks.names), value=jobs.networks.names[0], label="checkpoint", info="The weights."
                )
                with gr.Row():
                    start = gr.Button("Reconstruct", variant="primary")
                    stop = gr.Button("Stop", variant="stop")
                inputs: dict[str, Component] = {}
                for title, names in options.OFFERED.items():
                    with gr.Accordion(title, open=title == "Frames"):
                        inputs |= {name: _component(name) for name in names}
                inputs[options.EXPORT] = gr.CheckboxGroup(
                    list(export.FORMATS), value=[], label=options.EXPORT, info="Additional formats for other tools."
                )
            with gr.Column(scale=2):
                said = gr.Markdown()
                scene = gr.Model3D(
                    label="The scene: drag to rotate, scroll to zoom",
                    height=_SCENE_HEIGHT,
                    clear_color=_BACKGROUND,
                    interactive=False,
                )
                films = []
                for pair in (FILMS[:2], FILMS[2:]):
                    with gr.Row():
                        films += [_film(name) for name in pair]
                downloads = gr.Files(label="Downloads", interactive=False)

        def reconstruct(
            given: dict[Component, Any], request: gr.Request, progress: gr.Progress = _PROGRESS
        ) -> list[Any]:
            values = {name: given[component] for name, component in inputs.items()}
            return _run(jobs, sessions, given[files] or [], given[checkpoint], values, request, progress)

        running = start.click(
            reconstruct,
            {files, checkpoint, *inputs.values()},
            [said, scene, *films, downloads],
            concurrency_limit=1,
            show_progress_on=scene,
            api_name="reconstruct",
        )

        def stop_job(request: gr.Request) -> str:
            sessions.stop(request.session_hash or "")
            return "Stopped."

        def close(request: gr.Request) -> None:
            sessions.close(request.session_hash or "")

        # cancels: also removes a job that still waits
        stop.click(stop_job, None, said, queue=False, cancels=[running], api_name="stop")
        page.unload(close)
    return page


def _uploads() -> gr.File:
    """The upload component. Gradio would otherwise also fetch a URL that a client sends instead of a file."""
    files = gr.File(label="Video or images", file_count="multiple", type="filepath", height=_UPLOADS_HEIGHT)
    take = files.async_move_resource_to_block_cache

    async def take_file(url_or_file_path: str | pathlib.Path | None) -> str | None:
        if "://" in str(url_or_file_path):
            raise _error("Drop files, not URLs.")
        return await take(url_or_file_path)

    files.async_move_resource_to_block_cache = take_file
    return files


def _film(name: str) -> gr.Video:
    """A video component without label and buttons, which would cover the titles and scales in the picture."""
    return gr.Video(
        label=_TITLES[name],
        show_label=False,
        buttons=[],
        height=_FILM_HEIGHT,
        interactive=False,
        autoplay=False,
        loop=True,
    )


def _component(name: str) -> Component:
    """The input component of a flag."""
    flag = options.described(name)
    told: dict[str, Any] = {"label": name, "info": flag.text, "value": flag.default}
    if flag.choices:
        return gr.Dropdown(list(flag.choices), **told)
    if isinstance(flag.default, bool):
        return gr.Checkbox(**told)
    if isinstance(flag.default, int | float):
        return gr.Number(precision=0 if isinstance(flag.default, int) else None, **told)
    return gr.Textbox(max_lines=1, **told)


def _run(
    jobs: Jobs,
    sessions: Sessions,
    uploads: list[str],
    checkpoint: str,
    values: Mapping[str, object],
    request: gr.Request,
    progress: gr.Progress,
) -> list[Any]:
    """Runs a job and returns the values of the page's output components. Errors become one line."""
    session = request.session_hash or ""
    event, products = sessions.begin(session), None
    last = 0.0

    def report(stage: str, done: int, total: int | None, left: float | None) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _REPORT_SECONDS or done in (0, total):
            last = now
            title = TITLES.get(stage, stage)
            progress((done, total), desc=title if left is None else f"{title}, {_duration(left)} left")

    try:
        products = jobs.run(uploads, checkpoint, values, report, event.is_set)
        return [
            products.text,
            str(products.scene),
            *(str(products.films[name]) if name in products.films else None for name in FILMS),
            [str(path) for path in products.downloads],
        ]
    except UserError as error:
        raise _error(str(error)) from error
    except Exception as error:
        _LOG.exception("A job failed.")
        raise _error(_FAILED) from error
    finally:
        sessions.end(session, event, products)


def _duration(seconds: float) -> str:
    """A duration, rounded as an estimate."""
    return f"about {seconds:.0f} s" if seconds < 90 else f"about {seconds / 60:.0f} min"


def _error(message: str) -> gr.Error:
    """An error whose message is escaped: gradio shows messages as HTML, and some contain names of files."""
    return gr.Error(html.escape(message, quote=False), duration=None, print_exception=False)
