"""The web app's page in Chromium; as a program, what draws the picture in the documentation.

python -m tests.experiments.app_browser --picture=docs/images/app.png
"""

from __future__ import annotations

import argparse
import io
import pathlib
import tempfile
from collections.abc import Sequence

import numpy as np
from PIL import Image
from playwright.sync_api import Browser, Locator

from tests.apps.app_program import app_program
from tests.apps.app_stand_ins import FRAMES
from tests.viewer.browser import PATIENCE, WatchedPage, difference, launched, until

#: Milliseconds that a reconstruction of the bundled clip may take.
_WORK = 5 * PATIENCE


class AppTab(WatchedPage):
    """A page of its own, with cookies of its own.

    Args:
      browser: a new tab of it.
      url: of the app.
      size: of the window.
    """

    def __init__(self, browser: Browser, url: str, size: tuple[int, int] = (1280, 1000)):
        super().__init__(browser.new_context(viewport={"width": size[0], "height": size[1]}).new_page(), url)
        self.page.get_by_role("button", name="Reconstruct", exact=True).wait_for()

    def drop(self, files: Sequence[pathlib.Path]) -> None:
        """Gives files to the page and waits until it has them."""
        self.page.locator("input[type=file]").first.set_input_files([str(file) for file in files])
        self.page.locator("a[download]").nth(len(files) - 1).wait_for(state="attached")

    def set_number(self, label: str, value: float) -> None:
        """Types a value, in whichever group of options it is."""
        field = self.page.get_by_label(label, exact=True)
        if not field.is_visible():
            self.page.get_by_role("button", name="Alignment").click()
            field.wait_for()

        def kept() -> bool:
            field.fill(str(value))
            self.page.wait_for_timeout(300)  # a group that has just opened sets its defaults once more
            return field.input_value() == str(value)

        until(kept)

    def press(self) -> None:
        """Begins."""
        self.page.get_by_role("button", name="Reconstruct", exact=True).click()

    def reconstruct(self) -> None:
        """Begins, and waits until the scene is drawn."""
        self.press()
        self.said()
        self.page.locator("canvas").wait_for()

    def said(self) -> str:
        """The line about the result, when there is one."""
        line = self.page.get_by_text("frames in")
        line.wait_for(timeout=_WORK)
        return line.inner_text()

    def scene(self, count: int = 1) -> list[np.ndarray]:
        """Pictures of the scene, (H, W, 3) int, when it is there and stays; what moves in it plays in a loop."""
        canvas = self.page.locator("canvas")
        canvas.scroll_into_view_if_needed()
        pictures = [self._picture(canvas)]

        def stays() -> bool:
            self.page.wait_for_timeout(300)
            pictures.append(self._picture(canvas))
            return bool(pictures[-1].std() > 5) and difference(pictures[-2], pictures[-1]) < 0.01

        until(stays)
        while len(pictures) < count + 1:
            self.page.wait_for_timeout(300)
            pictures.append(self._picture(canvas))
        return pictures[-count:]

    def turn(self) -> None:
        """Drags the scene, until it is seen from the side."""
        box = self.page.locator("canvas").bounding_box()
        assert box is not None
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        for _ in range(3):
            self.page.mouse.move(x - 200, y)
            self.page.mouse.down()
            self.page.mouse.move(x + 200, y, steps=10)
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
        tab = AppTab(browser, url, (1280, 1080))
        tab.drop(FRAMES)
        tab.reconstruct()
        tab.scene()  # waits for it
        tab.page.evaluate("window.scrollTo(0, 0)")
        picture = Image.open(io.BytesIO(tab.page.screenshot())).convert("RGB")
    picture.quantize(256).save(target, optimize=True)
    print(target, target.stat().st_size)


if __name__ == "__main__":
    main()
