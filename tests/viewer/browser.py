"""Headless Chromium, and the viewer's controls in it. Needs playwright (tests/requirements-browser.txt)."""

from __future__ import annotations

import contextlib
import io
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

ROOT = pathlib.Path(__file__).parents[2]
#: WebGL on the CPU: there may be no GPU. Root cannot use Chromium's sandbox; the pages are our own.
_OPTIONS = ("--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist")
#: Timeout in milliseconds for anything to happen; a CPU may be rendering.
PATIENCE = 60_000


def chromium() -> str | None:
    """Path of $CHROMIUM, or of the system's Chromium; None if there is none."""
    names = (os.environ.get("CHROMIUM", ""), "chromium", "chromium-browser", "google-chrome")
    return next((path for name in names if name and (path := shutil.which(name))), None)


@contextlib.contextmanager
def launched() -> Iterator[Browser]:
    """A browser."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=_OPTIONS)
        try:
            yield browser
        finally:
            browser.close()


@contextlib.contextmanager
def served(*scenes: pathlib.Path, flags: Sequence[str] = ()) -> Iterator[str]:
    """Runs `python -m experiments.view` on one result or two. Yields its URL."""
    command = [sys.executable, "-m", "experiments.view", "--scene=" + ",".join(map(str, scenes)), "--port=0", *flags]
    with tempfile.TemporaryFile("w+") as stderr:
        program = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=stderr, text=True)
        try:
            yield re.search(r"http://[\w.:]+", program.stdout.readline())[0]
            assert program.poll() is None, "the viewer has stopped"
        finally:
            program.terminate()
            output, _ = program.communicate(timeout=60)
        stderr.seek(0)
        output += stderr.read()
        assert "Traceback" not in output and "error" not in output.lower(), output
        assert program.returncode == 0


class WatchedPage:
    """A page whose errors and requests are recorded.

    Args:
      page: a new page.
      url: is loaded.

    Attributes:
      page: the page itself.
      errors: uncaught exceptions in it.
      requests: URLs of everything that was loaded.
    """

    def __init__(self, page: Page, url: str):
        self.page = page
        self.page.set_default_timeout(PATIENCE)
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(url)


class Tab(WatchedPage):
    """A page with the viewer.

    Args:
      browser: in which the tab is opened.
      url: of the viewer, or of an exported file.
      size: (width, height) of the window.
      offline: without a network.
    """

    def __init__(self, browser: Browser, url: str, size: tuple[int, int] = (1100, 620), *, offline: bool = False):
        super().__init__(browser.new_page(viewport={"width": size[0], "height": size[1]}, offline=offline), url)
        self.page.locator("canvas[data-engine]").wait_for()

    def picture(self) -> np.ndarray:
        """(H, W, 3) int, the scene right of the window that shows the current frame."""
        box = self.page.locator("canvas[data-engine]").bounding_box()
        clip = {"x": box["x"] + 350, "y": box["y"], "width": box["width"] - 350, "height": box["height"]}
        return np.asarray(Image.open(io.BytesIO(self.page.screenshot(clip=clip))).convert("RGB")).astype(int)

    def settled(self) -> np.ndarray:
        """The scene once it no longer changes."""
        self.page.mouse.move(400, 5)  # off the controls, whose tooltips would cover the scene
        self.page.wait_for_timeout(400)
        pictures = [self.picture()]

        def still() -> bool:
            self.page.wait_for_timeout(400)
            pictures.append(self.picture())
            return bool((pictures[-1] == pictures[-2]).all())

        until(still)
        return pictures[-1]

    def number(self, label: str):
        """The number beside a slider."""
        return self.page.locator(f"xpath=//*[text()='{label}']/following::input[@inputmode='decimal'][1]")

    def frame(self) -> int:
        """The frame on the time line."""
        return int(self.number("frame").input_value())

    def set_number(self, label: str, value: float) -> None:
        """Types a value."""
        self.number(label).fill(str(value))
        self.number(label).press("Enter")

    def choose(self, label: str, choice: str) -> None:
        """Selects an entry of a dropdown list."""
        self.page.locator(f"xpath=//*[text()='{label}']/following::input[@role='combobox'][1]").click()
        self.page.get_by_role("option", name=choice, exact=True).click()

    def click(self, button: str) -> None:
        """Presses a button."""
        self.page.get_by_role("button", name=button, exact=True).click()

    def download(self, button: str) -> bytes:
        """Presses a button and returns the file that is downloaded."""
        with self.page.expect_download(timeout=5 * PATIENCE) as download:
            self.click(button)
        return pathlib.Path(download.value.path()).read_bytes()


def until(condition: Callable[[], bool]) -> None:
    """Waits for the condition to become true."""
    deadline = time.monotonic() + PATIENCE / 1000
    while not condition():
        assert time.monotonic() < deadline, "the condition has not become true in time"
        time.sleep(0.05)


def difference(first: np.ndarray, second: np.ndarray) -> float:
    """Fraction of the image, in blocks of 8 x 8 pixels, that differs visibly.

    Blocks are averaged: on a slow machine the page lowers its resolution after a while, which must not count.
    """
    height, width = (side // 8 * 8 for side in first.shape[:2])
    means = (first - second)[:height, :width].reshape(height // 8, 8, width // 8, 8, 3).mean(axis=(1, 3))
    return float((np.abs(means).max(axis=-1) > 16).mean())
