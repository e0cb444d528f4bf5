"""The viewer in a real browser, with the demo: `make test-browser`."""

from __future__ import annotations

import io
import pathlib
import subprocess
import sys

import av
import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.browser
pytest.importorskip("playwright", reason="playwright is missing: run `make test-browser`, which installs it")

from tests.viewer import browser as driver  # noqa: E402

if driver.chromium() is None:
    pytest.skip("Chromium is missing: apt-get install chromium (or name one in $CHROMIUM)", allow_module_level=True)


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> pathlib.Path:
    """The bundled clip, reconstructed."""
    folder = tmp_path_factory.mktemp("results") / "demo"
    flags = ["--seq=demo", "--nocompare_plain", f"--output={folder}"]
    command = [sys.executable, "-m", "experiments.reconstruct", *flags]
    subprocess.run(command, cwd=driver.ROOT, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def url(demo):
    with driver.served(demo) as url:
        yield url


@pytest.fixture(scope="module")
def browser():
    with driver.launched() as browser:
        yield browser


@pytest.fixture
def tab(browser, url):
    """The viewer as it begins."""
    tab = driver.Tab(browser, url)
    tab.page.get_by_role("button", name="|<", exact=True).click()
    yield tab
    assert not tab.errors
    tab.page.close()


def lit(picture: np.ndarray) -> float:
    """Share of pixels that are not background."""
    return float((picture.max(axis=-1) > 40).mean())


def test_it_loads_and_frames_and_colours_differ_as_they_should(tab):
    first = tab.settled()
    assert lit(first) > 0.2
    tab.set_number("frame", 9)
    ninth = tab.settled()
    assert tab.frame() == 9 and driver.difference(first, ninth) > 0.005
    tab.set_number("frame", 0)
    assert driver.difference(first, tab.settled()) < 0.004  # as it was
    bars = tab.page.locator("div[style*='linear-gradient']")
    before = bars.count()
    tab.choose("colour", "depth")
    depth = tab.settled()
    assert driver.difference(first, depth) > 0.2
    assert bars.count() > before  # the legend
    tab.choose("colour", "mask")
    mask = tab.settled()
    assert driver.difference(depth, mask) > 0.2
    red = (mask[..., 0] > mask[..., 1] + 60) & (mask[..., 0] > mask[..., 2] + 60)
    assert red.mean() > 0.001
    tab.choose("moving", "hidden")
    without = tab.settled()
    assert ((without[..., 0] > without[..., 1] + 60) & (without[..., 0] > without[..., 2] + 60)).mean() < red.mean() / 2
    tab.choose("moving", "this frame")
    tab.choose("colour", "RGB")
    assert driver.difference(first, tab.settled()) < 0.004


def test_it_plays_pauses_and_steps(tab):
    tab.click("Play")
    seen: set[int] = set()
    driver.until(lambda: seen.add(tab.frame()) or len(seen) > 3)
    tab.click("Pause")
    driver.until(lambda: tab.page.get_by_role("button", name="Play", exact=True).count() == 1)
    tab.page.wait_for_timeout(500)
    at = tab.frame()
    tab.page.wait_for_timeout(500)
    assert tab.frame() == at
    tab.click(">")
    driver.until(lambda: tab.frame() == (at + 1) % 16)


def test_less_confident_points_and_a_part_of_them_can_be_left_out(tab):
    first = tab.settled()
    everything = lit(first)
    tab.set_number("confidence", 8)
    sure = lit(tab.settled())
    tab.set_number("confidence", 1.1)
    tab.set_number("share (%)", 10)
    some = lit(tab.settled())
    tab.set_number("share (%)", 100)
    assert max(sure, some) < 0.9 * everything
    assert driver.difference(first, tab.settled()) < 0.004  # as it was


def test_the_camera_is_followed(tab):
    free = tab.settled()
    box = tab.page.get_by_label("follow camera")
    box.check()
    first = tab.settled()
    assert driver.difference(free, first) > 0.1
    tab.set_number("frame", 15)
    assert driver.difference(first, tab.settled()) > 0.1
    box.uncheck()


def test_two_browsers_share_the_view_and_one_may_leave_in_the_middle(browser, url, tab):
    other = driver.Tab(browser, url)
    other.click("Play")
    driver.until(lambda: tab.page.get_by_role("button", name="Pause", exact=True).count() == 1)
    other.page.close()
    seen: set[int] = set()
    driver.until(lambda: seen.add(tab.frame()) or len(seen) > 3)
    tab.click("Pause")
    third = driver.Tab(browser, url)
    tab.set_number("frame", 7)
    driver.until(lambda: third.frame() == 7)
    assert lit(third.settled()) > 0.2
    third.page.close()


def test_a_screenshot_is_handed_over(tab):
    tab.settled()
    picture = np.asarray(Image.open(io.BytesIO(tab.download("Screenshot"))).convert("RGB"))
    box = tab.page.locator("canvas[data-engine]").bounding_box()
    assert picture.shape == (box["height"], box["width"], 3)
    assert picture.std() > 20


def test_a_video_is_handed_over_and_one_that_is_left_harms_nobody(browser, url):
    leaving = driver.Tab(browser, url, (720, 420))
    leaving.click("Video")
    leaving.page.get_by_text("frame 2 of 16").wait_for()
    leaving.page.close()
    tab = driver.Tab(browser, url, (720, 420))
    driver.until(lambda: tab.page.get_by_role("button", name="Video", exact=True).is_enabled())
    tab.set_number("stride", 4)
    tab.choose("path", "camera path")
    with av.open(io.BytesIO(tab.download("Video"))) as container:
        frames = [frame.to_ndarray(format="rgb24").astype(int) for frame in container.decode(video=0)]
    tab.set_number("stride", 1)
    assert len(frames) == 4
    assert min(frame.std() for frame in frames) > 20
    assert driver.difference(frames[0], frames[-1]) > 0.1
    tab.page.close()


def test_a_file_plays_without_a_server_and_a_network(browser, demo, tmp_path):
    page = tmp_path / "demo.html"
    command = [sys.executable, "-m", "experiments.view", f"--scene={demo}", f"--export-html={page}"]
    subprocess.run(command, cwd=driver.ROOT, check=True, capture_output=True)
    tab = driver.Tab(browser, page.as_uri(), offline=True)
    driver.until(lambda: lit(tab.picture()) > 0.2)
    pictures = []
    for _ in range(6):
        pictures.append(tab.picture())
        tab.page.wait_for_timeout(150)
    assert max(driver.difference(pictures[0], picture) for picture in pictures[1:]) > 0.002
    assert not [url for url in tab.requests if not url.startswith(("file:", "data:", "blob:"))]
    assert not tab.errors
    tab.page.close()
