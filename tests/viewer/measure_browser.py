"""Measures the viewer in Chromium, and takes the screenshot in docs/images. See docs/viewer.md.

python -m tests.viewer.measure_browser --frames=300
python -m tests.viewer.measure_browser --picture=docs/images/viewer.png --scene=results/demo
"""

from __future__ import annotations

import argparse
import pathlib
import tempfile
import time

from PIL import Image

from easi3r_jax.viewer import Budget
from tests.viewer import browser as driver
from tests.viewer.conftest import make_scene, write_scene

# Counts, for a number of milliseconds, the frames that the page renders and how often the clip's frame changes.
_COUNT = """([input, duration]) => new Promise(resolve => {
  const began = performance.now();
  let drawn = 0, shown = 0, last = input.value;
  function look() {
    drawn += 1;
    if (input.value !== last) { shown += 1; last = input.value; }
    const passed = performance.now() - began;
    passed < duration ? requestAnimationFrame(look) : resolve([drawn, shown].map(n => n / passed * 1000));
  }
  requestAnimationFrame(look);
})"""


def measure(folder: pathlib.Path, seconds: float, static_points: int) -> None:
    """Prints seconds from the command to points on the screen, and frames per second of playback."""
    with driver.launched() as browser:
        began = time.perf_counter()
        with driver.served(folder, flags=[f"--static_points={static_points}"]) as url:
            listening = time.perf_counter() - began
            tab = driver.Tab(browser, url)
            driver.until(lambda: (tab.picture().max(axis=-1) > 40).mean() > 0.1)
            print(f"  listening after {listening:.1f} s, points visible after {time.perf_counter() - began:.1f} s")
            tab.page.wait_for_timeout(20_000)
            print(f"  {_rates(tab, 5)[0]:.1f} rendered frames per second while paused")
            tab.set_number("speed", 30)
            tab.click("Play")
            for turn in ("first", "second"):
                drawn, shown = _rates(tab, seconds)
                print(f"  {turn} playback: {drawn:.1f} rendered frames per second, {shown:.1f} frames of the clip")
            began = time.perf_counter()
            tab.click("Pause")
            driver.until(lambda: tab.page.get_by_role("button", name="Play", exact=True).count() == 1)
            print(f"  paused {1000 * (time.perf_counter() - began):.0f} ms after the click")


def _rates(tab: driver.Tab, seconds: float) -> list[float]:
    return tab.page.evaluate(_COUNT, [tab.number("frame").element_handle(), 1000 * seconds])


def picture(folder: pathlib.Path, path: pathlib.Path) -> None:
    """Saves a screenshot of the viewer, with 256 colours to keep the file small."""
    with driver.launched() as browser, driver.served(folder) as url:
        tab = driver.Tab(browser, url, (1280, 760))
        tab.set_number("frame", 6)
        for notice in tab.page.locator(".mantine-Notification-closeButton").all():  # about the missing GPU
            notice.click()
        tab.choose("moving", "trail")
        tab.settled()
        with tempfile.TemporaryDirectory() as scratch:
            shot = pathlib.Path(scratch) / "shot.png"
            tab.page.screenshot(path=shot)
            Image.open(shot).convert("RGB").quantize(256).save(path, optimize=True)
    print(f"  {path}: {path.stat().st_size / 1000:.0f} kB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scene", type=pathlib.Path, help="a result (default: a synthetic clip of 512x288 pixels)")
    parser.add_argument("--frames", type=int, default=300, help="number of frames of the synthetic clip")
    parser.add_argument("--seconds", type=float, default=15, help="duration of each playback")
    parser.add_argument("--static_points", type=int, default=Budget.static, help="limit on the static points")
    parser.add_argument("--picture", type=pathlib.Path, help="take a screenshot instead, and save it here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        scene = options.scene
        if scene is None:
            scene = write_scene(pathlib.Path(scratch) / "clip", make_scene(options.frames, 288, 512)).folder
        if options.picture is not None:
            picture(scene, options.picture)
        else:
            measure(scene, options.seconds, options.static_points)


if __name__ == "__main__":
    main()
