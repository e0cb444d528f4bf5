"""The web app and the viewer behind nginx, with the settings of the documentation: `make test-browser`."""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator

import pytest

pytestmark = pytest.mark.browser
pytest.importorskip("gradio", reason="gradio is missing: run `make test-browser`, which installs it")
pytest.importorskip("playwright", reason="playwright is missing: run `make test-browser`, which installs it")

import httpx  # noqa: E402

from easi3r_jax.io.results import save_result  # noqa: E402
from tests.apps.app_browser import AppTab, closed_tabs  # noqa: E402
from tests.apps.app_program import ROOT, app_program  # noqa: E402
from tests.apps.app_stand_ins import FRAMES  # noqa: E402
from tests.viewer import browser as driver  # noqa: E402

NGINX = shutil.which("nginx", path="/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/sbin:/usr/local/bin")
if driver.chromium() is None:
    pytest.skip("Chromium is missing: apt-get install chromium (or name one in $CHROMIUM)", allow_module_level=True)
if NGINX is None:
    pytest.skip("nginx is missing: apt-get install nginx-light", allow_module_level=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def nginx(folder: pathlib.Path, port: int, in_http: str, in_server: str) -> Iterator[None]:
    """An nginx with a server at a port of this machine."""
    folder.mkdir()
    user = "user root;" if os.getuid() == 0 else ""  # otherwise another user, who cannot write into the folder
    (folder / "nginx.conf").write_text(f"""
        {user} daemon off; pid {folder}/pid; error_log {folder}/errors;
        events {{}}
        http {{
          access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
          fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
          {in_http}
          server {{ listen 127.0.0.1:{port}; {in_server} }}
        }}""")
    assert NGINX is not None
    program = subprocess.Popen([NGINX, "-p", str(folder), "-c", "nginx.conf"], stderr=subprocess.PIPE, text=True)
    try:
        driver.until(lambda: program.poll() is not None or _listens(port))
        assert program.poll() is None, program.stderr.read() if program.stderr else ""
        yield
    finally:
        program.terminate()
        program.communicate(timeout=60)


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def documented() -> tuple[str, str]:
    """The settings in docs/app.md: those of http, and those of server."""
    text = (ROOT / "docs" / "app.md").read_text(encoding="utf-8")
    in_http, in_server = re.findall(r"```nginx\n(.*?)```", text, flags=re.DOTALL)
    return in_http, in_server


@pytest.fixture(scope="module")
def browser():
    with driver.launched() as browser:
        yield browser


@pytest.fixture(autouse=True)
def tabs():
    with closed_tabs():
        yield


def test_the_documented_settings(browser, tmp_path):
    """Page, upload, job, viewer within the page, and the viewer by itself, below the root of another address."""
    port, (in_http, in_server) = free_port(), documented()
    folder = tmp_path / "app"
    folder.mkdir()
    save_quick_result(tmp_path / "results" / "clip")
    with (
        app_program(folder, f"--root_path=http://127.0.0.1:{port}/easi3r") as app,
        driver.served(tmp_path / "results" / "clip") as viewer,
    ):
        here = in_server.replace("http://127.0.0.1:7860", app).replace("http://127.0.0.1:8080", viewer)
        with nginx(tmp_path / "nginx", port, in_http, here):
            assert httpx.get(f"http://127.0.0.1:{port}/easi3r").status_code in (301, 308)
            tab = AppTab(browser, f"http://127.0.0.1:{port}/easi3r/")
            tab.drop(FRAMES[:2])
            tab.set_number("Optimisation steps", 5)
            tab.reconstruct()
            assert tab.said().startswith("2 frames in ") and not tab.failures
            assert not tab.page.locator("#server-notice").inner_text()
            assert set(tab.downloads()) == {"result.zip", "scene.glb"}
            answer = httpx.get(f"http://127.0.0.1:{port}/viewer")
            assert answer.status_code == 301 and answer.headers["location"].endswith("/viewer/")
            alone = driver.Tab(browser, f"http://127.0.0.1:{port}/viewer/")
            driver.until(lambda: alone.page.title() == "clip")  # said through the web socket
            assert not alone.errors


def test_a_proxy_that_the_server_does_not_know_of_is_named(browser, tmp_path):
    """Instead of a bare "Error" after the press."""
    port = free_port()
    with app_program(tmp_path) as app:
        settings = f"location /below/ {{ proxy_pass {app}/; }} location / {{ proxy_pass {app}/; }}"
        with nginx(tmp_path.with_name("proxy"), port, "", settings):
            page = browser.new_page()
            page.goto(f"http://127.0.0.1:{port}/below/")
            page.get_by_text(f"Start it with --root_path=http://127.0.0.1:{port}/below.").wait_for()
            page.goto(f"http://localhost:{port}/")  # the proxy sends the name 127.0.0.1
            page.get_by_text(f"This page is shown as localhost:{port}, and its server believes").wait_for()


@pytest.mark.parametrize("host", ["::1", "::"])
def test_addresses_of_ipv6(browser, tmp_path, host):
    port = free_port()
    with app_program(tmp_path, f"--host={host}", f"--port={port}"):
        tab = AppTab(browser, f"http://[::1]:{port}/")
        assert not tab.failures


def save_quick_result(folder: pathlib.Path) -> None:
    from easi3r_jax.core.config import FrameConfig
    from easi3r_jax.io.video import load_frames
    from tests.apps.app_stand_ins import quick_reconstruction

    frames = load_frames(FRAMES[:2], FrameConfig(size=96))
    save_result(folder, quick_reconstruction()(None, frames, None))
