"""The page (gradio): files, one button, progress; the scene, its videos and downloads; options folded away."""

from __future__ import annotations

import html
import logging
import pathlib
import secrets
import time
from collections.abc import Mapping
from typing import Any

import gradio as gr  # pyright: ignore[reportMissingImports]
from gradio.components import Component  # pyright: ignore[reportMissingImports]
from gradio.themes import Default  # pyright: ignore[reportMissingImports]
from starlette.middleware import Middleware  # pyright: ignore[reportMissingImports]

from easi3r_jax.apps.app import options
from easi3r_jax.apps.app.gate import DIRECT, Gate, PublicAddress
from easi3r_jax.apps.app.job import Jobs
from easi3r_jax.apps.app.players import Players
from easi3r_jax.apps.app.preview import preview
from easi3r_jax.apps.app.sessions import Sessions
from easi3r_jax.apps.progress import TITLES
from easi3r_jax.core.errors import UserError
from easi3r_jax.io import export
from easi3r_jax.io.pictures.gallery import FILMS
from easi3r_jax.io.sequences import CLIPS
from easi3r_jax.viewer.listening import is_local

# Minimum seconds between two reports to the browser: the alignment has hundreds of them.
_REPORT_SECONDS = 0.25
# Pixels. A long list of images must not push the button out of view.
_UPLOADS_HEIGHT = 150
_FAILED = "failed: see the server's log"
_FILM_TITLES = {
    "panel": "Image, depth, score, masks",
    "depth": "Depth",
    "masks": "Dynamic regions",
    "attention": "Attention",
}
#: Bundled clips: title, folder, and whether plain DUSt3R is shown beside the method.
_EXAMPLES = (
    ("Moving", "demo", False),
    ("Motionless", "demo_still", False),
    ("Beside plain", "demo", True),
)
_EMPTY_SCENE = '<div class="empty">The scene appears here, and plays.</div>'
# From such a default gradio recognises that a function reports progress, and passes its own object.
_PROGRESS = gr.Progress()
_LOG = logging.getLogger("experiments.app")


def serve(jobs: Jobs, host: str, port: int, waiting: int, public: PublicAddress = DIRECT) -> gr.Blocks:
    """Starts the server in its own thread.

    Args:
      jobs: runs the jobs.
      host, port: address to listen on.
      waiting: maximum number of waiting jobs; further ones are refused.
      public: where a proxy shows the page.

    Returns:
      the page, to be closed at the end; its `players` too.
    """
    players, start = Players(jobs.store), secrets.token_hex(8)
    page = _page(jobs, public)
    page.players = players
    page.queue(max_size=waiting, default_concurrency_limit=1, api_open=False)

    def status() -> dict[str, object]:
        return {"start": start, "running": jobs.is_running, "waiting": len(page._queue), "most": waiting}

    gate = Middleware(
        Gate,
        store=jobs.store,
        megabytes=jobs.limits.megabytes,
        local=is_local(host),
        players=players,
        status=status,
        public=public,
    )
    page.launch(
        server_name=f"[{host}]" if ":" in host else host,
        server_port=port,
        root_path=public.root or None,
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
        css=_asset("page.css"),
        head=f"<script>{_asset('page.js')}</script>",
        # No API documentation pages: they load scripts from other sites.
        app_kwargs={"middleware": [gate], "docs_url": None, "redoc_url": None, "openapi_url": None},
    )
    return page


def _asset(name: str) -> str:
    return (CLIPS.parent / "page" / name).read_text(encoding="utf-8")


def _page(jobs: Jobs, public: PublicAddress) -> gr.Blocks:
    sessions, limits = Sessions(jobs), jobs.limits
    with gr.Blocks(title="Easi3R: a video in 4D", analytics_enabled=False) as page:
        gr.Markdown(
            "# A video of a moving scene, in 4D\n"
            f"One video, or images: up to {limits.megabytes:g} MB, {limits.frames} frames. Closing the page removes "
            "its results."
        )
        with gr.Row():
            with gr.Column(scale=1, min_width=320):
                files = _uploads()
                with gr.Row(elem_id="examples"):
                    gr.HTML("<span>Examples</span>", elem_classes="plain")
                    examples = [gr.Button(title, size="sm", min_width=60) for title, _, _ in _EXAMPLES]
                seen = gr.HTML(elem_id="preview")
                with gr.Row():
                    start = gr.Button("Reconstruct", variant="primary", min_width=120)
                    stop = gr.Button("Stop", variant="stop", visible=False, min_width=80, scale=0)
                said = gr.HTML('<p role="status"></p>', elem_id="said", min_height=92)
                with gr.Accordion("Options", open=False):
                    beside = gr.Checkbox(
                        label="Beside plain DUSt3R",
                        info="Reconstruct twice, and play both scenes side by side.",
                        value=False,
                    )
                    checkpoint = gr.Dropdown(
                        list(jobs.networks.names),
                        value=jobs.networks.names[0],
                        label="Network",
                        info="Its weights (--checkpoint).",
                    )
                    inputs: dict[str, Component] = {}
                    for title, names in options.OFFERED.items():
                        with gr.Accordion(title, open=False):
                            inputs |= {name: _component(name) for name in names}
                    inputs[options.EXPORT] = gr.CheckboxGroup(
                        list(export.FORMATS),
                        value=[],
                        label=options.TITLES[options.EXPORT],
                        info="Also write them (--export).",
                    )
            with gr.Column(scale=2, min_width=320):
                scene = gr.HTML(_EMPTY_SCENE, elem_id="scene")
                downloads = gr.Files(label="Downloads", interactive=False, visible=False)
                films = []
                for name in FILMS:
                    with gr.Group(visible=False) as group:
                        gr.Markdown(f"## {_FILM_TITLES[name]}", padding=True)
                        films.append((group, _film(name)))

        def reconstruct(
            given: dict[Component, Any], request: gr.Request, progress: gr.Progress = _PROGRESS
        ) -> list[Any]:
            values = {name: given[component] for name, component in inputs.items()}
            chosen = given[files] or [], given[checkpoint], values, bool(given[beside])
            return _run(jobs, sessions, public, *chosen, request, progress)

        shown = [component for pair in films for component in pair]

        def press(request: gr.Request) -> Any:
            sessions.press(request.session_hash or "")
            return gr.update(visible=True)

        begin = start.click(press, None, stop, queue=False, api_visibility="private")
        running = begin.then(
            reconstruct,
            {files, checkpoint, beside, *inputs.values()},
            [said, scene, downloads, *shown],
            concurrency_limit=1,
            show_progress_on=said,
            api_name="reconstruct",
        )
        running.then(lambda: gr.update(visible=False), None, stop, queue=False, api_visibility="private")

        def stop_job(request: gr.Request) -> tuple[str, Any]:
            sessions.stop(request.session_hash or "")
            return '<p role="status">Stopped.</p>', gr.update(visible=False)

        def close(request: gr.Request) -> None:
            sessions.close(request.session_hash or "")

        # cancels: also removes a job that still waits
        stop.click(stop_job, None, [said, stop], queue=False, cancels=[running], api_name="stop")
        page.unload(close)

        frame_options = {name: inputs[name] for name in options.OFFERED["Frames"]}

        def look(given: dict[Component, Any]) -> str:
            values = {name: given[component] for name, component in frame_options.items()}
            try:
                return preview(jobs, given[files], given[checkpoint], values) if given[files] else ""
            except UserError as error:
                return f'<p class="warn">{html.escape(str(error))}</p>'
            except Exception:
                _LOG.exception("A preview failed.")
                return f'<p class="warn">{_FAILED}</p>'

        for changed in (files, checkpoint, *frame_options.values()):
            changed.change(
                look,
                {files, checkpoint, *frame_options.values()},
                seen,
                queue=False,  # they do not wait for jobs, nor jobs for them
                trigger_mode="always_last",
                show_progress="hidden",
                api_visibility="private",
            )
        for button, (_, folder, is_compared) in zip(examples, _EXAMPLES, strict=True):
            button.click(
                lambda folder=folder, is_compared=is_compared: ([*map(str, jobs.example(folder))], is_compared),
                None,
                [files, beside],
                queue=False,
                api_visibility="private",
            )
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
        label=_FILM_TITLES[name], show_label=False, buttons=[], interactive=False, autoplay=False, loop=True
    )


def _component(name: str) -> Component:
    """The input component of a flag."""
    flag = options.described(name)
    told: dict[str, Any] = {
        "label": options.TITLES[name],
        "info": f"{flag.text} (--{name})",
        "value": flag.default,
    }
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
    public: PublicAddress,
    uploads: list[str],
    checkpoint: str,
    values: Mapping[str, object],
    beside_plain: bool,
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
        products = jobs.run(uploads, checkpoint, values, report, event.is_set, beside_plain=beside_plain)
        address = Players.address(products.folder, public.path)
        values_of_films = []
        for name in FILMS:
            film = products.films.get(name)
            values_of_films += [gr.update(visible=film is not None), None if film is None else str(film)]
        return [
            f'<p role="status">{html.escape(products.text)}</p>',
            f'<iframe title="The scene: drag to rotate, scroll to zoom" src="{address}" allowfullscreen></iframe>',
            gr.update(value=[str(path) for path in products.downloads], visible=True),
            *values_of_films,
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
