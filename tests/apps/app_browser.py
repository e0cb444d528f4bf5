"""The web app's page in Chromium; as a program, what draws the picture in the documentation.

python -m tests.apps.app_browser --picture=docs/images/app.png          # and docs/images/app_phone.png
"""

from __future__ import annotations

import argparse
import contextlib
import io
import pathlib
import tempfile
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image
from playwright.sync_api import Browser, FrameLocator, Locator

from tests.apps.app_program import app_program
from tests.viewer.browser import PATIENCE, WatchedPage, difference, launched, until

#: Milliseconds that a reconstruction of the bundled clip may take.
_WORK = 5 * PATIENCE
PHONE = (390, 844)
# Of libraries: not about this page.
_HARMLESS = ("THREE.Clock", "WebGL", "GPU stall", "favicon")


#: All tabs of a test: see `closed_tabs`.
OPENED: list[AppTab] = []


@contextlib.contextmanager
def closed_tabs() -> Iterator[None]:
    """Closes the tabs of a test, which would hold their viewers, and fails if anything failed in them."""
    yield
    tabs = OPENED[:]
    OPENED.clear()
    for tab in tabs:
        tab.page.context.close()
    assert not [failure for tab in tabs for failure in tab.failures]


class AppTab(WatchedPage):
    """A page of its own, with cookies of its own.

    Args:
      browser: a new tab of it.
      url: of the app.
      size: of the window.

    Attributes:
      failures: answers of 400 and above, errors on the console, uncaught exceptions.
    """

    def __init__(self, browser: Browser, url: str, size: tuple[int, int] = (1280, 1000)):
        page = browser.new_context(viewport={"width": size[0], "height": size[1]}).new_page()
        self.failures: list[str] = []
        OPENED.append(self)
        page.on("response", lambda answer: answer.status >= 400 and self._failed(f"{answer.status} {answer.url}"))
        page.on("console", lambda said: said.type == "error" and self._failed(f"{said.text} {said.location}"))
        page.on("pageerror", lambda error: self._failed(str(error)))
        super().__init__(page, url)
        self.page.get_by_role("button", name="Reconstruct", exact=True).wait_for()

    def _failed(self, text: str) -> None:
        if not any(word in text for word in _HARMLESS):
            self.failures.append(text)

    def drop(self, files: Sequence[pathlib.Path]) -> None:
        """Gives files to the page and waits until it has them."""
        self.page.locator("input[type=file]").first.set_input_files([str(file) for file in files])
        self.page.locator("a[download]").nth(len(files) - 1).wait_for(state="attached")

    def example(self, name: str) -> None:
        """Chooses a bundled clip and waits for its preview."""
        self.page.get_by_role("button", name=name, exact=True).click()
        self.page.locator("#preview img").wait_for()

    def unfold(self, *groups: str) -> None:
        """Opens groups of options, from the outermost."""
        for group in groups:
            self.page.get_by_role("button", name=group).click()

    def set_number(self, label: str, value: float, group: str = "Alignment") -> None:
        """Types a value, in a group of options."""
        field = self.page.get_by_label(label, exact=True)
        if not field.is_visible():
            self.unfold("Options", group)
            field.wait_for()

        def kept() -> bool:
            field.fill(str(value))
            self.page.wait_for_timeout(300)  # a group that has just opened sets its defaults once more
            return field.input_value() == str(value)

        until(kept)

    def press(self) -> None:
        """Begins."""
        self.page.get_by_role("button", name="Reconstruct", exact=True).click()

    def stop(self) -> None:
        """Ends the job."""
        self.page.get_by_role("button", name="Stop", exact=True).click()

    def player(self) -> FrameLocator:
        """The viewer within the page."""
        return self.page.frame_locator("#scene iframe")

    def reconstruct(self) -> None:
        """Begins, and waits until the scene is drawn."""
        self.press()
        self.drawn()

    def drawn(self) -> None:
        """Waits until the scene is drawn."""
        self.said()
        self.player().locator("canvas[data-engine]").wait_for()
        self.player().get_by_text("measure", exact=True).wait_for(state="attached")  # comes through the web socket

    def said(self) -> str:
        """The line about the result, when there is one."""
        line = self.page.get_by_text("frames in")
        line.wait_for(timeout=_WORK)
        return line.inner_text()

    def scene(self, count: int = 1) -> list[np.ndarray]:
        """Pictures of the scene, (H, W, 3) int, once it stays: while it plays, only what moves in it changes."""
        canvas = self.player().locator("canvas[data-engine]")
        canvas.scroll_into_view_if_needed()
        pictures = [self._picture(canvas)]

        def stays() -> bool:
            self.page.wait_for_timeout(300)
            pictures.append(self._picture(canvas))
            return bool(pictures[-1].std() > 5) and difference(pictures[-2], pictures[-1]) < 0.02

        until(stays)
        while len(pictures) < count + 1:
            self.page.wait_for_timeout(300)
            pictures.append(self._picture(canvas))
        return pictures[-count:]

    def turn(self) -> None:
        """Drags the scene, until it is seen from the side."""
        box = self.player().locator("canvas[data-engine]").bounding_box()
        assert box is not None
        x, y = box["x"] + 0.4 * box["width"], box["y"] + 0.25 * box["height"]  # beside the panels
        for _ in range(3):
            self.page.mouse.move(x - 60, y)
            self.page.mouse.down()
            self.page.mouse.move(x + 60, y, steps=10)
            self.page.mouse.up()
        self.page.wait_for_timeout(1500)  # it swings out

    def films(self) -> list[Locator]:
        return self.page.locator("video").all()

    def downloads(self) -> dict[str, bytes]:
        """Every file of the list of downloads, by name."""
        found = {}
        for link in self.page.locator("a[download]").filter(has_text="B").all():
            with self.page.expect_download() as download:
                link.click()
            name = download.value.suggested_filename
            if not name.endswith((".png", ".mp4")):  # what was dropped
                found[name] = pathlib.Path(download.value.path()).read_bytes()
        return found

    def _picture(self, canvas: Locator) -> np.ndarray:
        return np.asarray(Image.open(io.BytesIO(canvas.screenshot())).convert("RGB")).astype(int)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--picture", required=True, type=pathlib.Path)
    target = parser.parse_args().picture
    with tempfile.TemporaryDirectory() as folder, app_program(pathlib.Path(folder)) as url, launched() as browser:
        for path, size in ((target, (1280, 1080)), (target.with_stem(f"{target.stem}_phone"), PHONE)):
            tab = AppTab(browser, url, size)
            tab.example("Moving")
            tab.reconstruct()
            close = tab.player().get_by_text("Software WebGL").locator("xpath=../..").get_by_role("button")
            if close.count():  # the viewer's word on browsers without a GPU
                close.first.click()
            tab.scene()  # waits for it
            if size != PHONE:
                tab.page.evaluate("window.scrollTo(0, 0)")
            picture = Image.open(io.BytesIO(tab.page.screenshot())).convert("RGB")
            picture.quantize(256).save(path, optimize=True)
            print(path, path.stat().st_size)


if __name__ == "__main__":
    main()
