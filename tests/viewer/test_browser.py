"""The viewer in a real browser, with the demo: `make test-browser`."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import pathlib
import subprocess
import sys
import threading
from collections.abc import Iterator

import av
import numpy as np
import pytest
from PIL import Image

from easi3r_jax import viewer
from easi3r_jax.core.types import Reconstruction
from easi3r_jax.viewer.clouds import median_depth
from easi3r_jax.viewer.playback import Look
from tests.viewer.conftest import make_scene, write_scene

pytestmark = pytest.mark.browser
pytest.importorskip("playwright", reason="playwright is missing: run `make test-browser`, which installs it")

from tests.viewer import browser as driver  # noqa: E402

if driver.chromium() is None:
    pytest.skip("Chromium is missing: apt-get install chromium (or name one in $CHROMIUM)", allow_module_level=True)


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> pathlib.Path:
    """The result of the bundled clip."""
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
    """A tab with the viewer at the first frame."""
    tab = driver.Tab(browser, url)
    tab.page.get_by_role("button", name="|<", exact=True).click()
    yield tab
    assert not tab.errors
    tab.page.close()


@contextlib.contextmanager
def opened(
    browser, *saved: Reconstruction, size: tuple[int, int] = (1100, 620)
) -> Iterator[tuple[viewer.Viewer, driver.Tab]]:
    """A viewer in this process, and a tab with it."""
    with viewer.Viewer(saved, port=0) as running:
        tab = driver.Tab(browser, f"http://127.0.0.1:{running.port}", size)
        tab.settled()
        yield running, tab
        assert not tab.errors
        tab.page.close()


def lit(picture: np.ndarray) -> float:
    """Fraction of pixels that are not background."""
    return float((picture.max(axis=-1) > 40).mean())


def test_it_loads_and_frames_and_colours_change_the_picture(tab):
    first = tab.settled()
    assert lit(first) > 0.2
    tab.set_number("frame", 9)
    ninth = tab.settled()
    assert tab.frame() == 9 and driver.difference(first, ninth) > 0.005
    tab.choose("moving", "trail")
    assert driver.difference(ninth, tab.settled()) > 0.002
    tab.choose("moving", "this frame")
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
    pictures: list[np.ndarray] = []
    driver.until(lambda: seen.add(tab.frame()) or pictures.append(tab.picture()) or len(seen) > 3)
    assert max(driver.difference(pictures[0], picture) for picture in pictures) > 0.005
    tab.click("Pause")
    driver.until(lambda: tab.page.get_by_role("button", name="Play", exact=True).count() == 1)
    tab.page.wait_for_timeout(500)
    at = tab.frame()
    tab.page.wait_for_timeout(500)
    assert tab.frame() == at
    tab.click(">")
    driver.until(lambda: tab.frame() == (at + 1) % 16)


def test_points_can_be_filtered_by_confidence_and_thinned(tab):
    first = tab.settled()
    everything = lit(first)
    tab.set_number("confidence", 8)
    sure = lit(tab.settled())
    tab.set_number("confidence", 1.1)
    tab.set_number("points (%)", 10)
    some = lit(tab.settled())
    tab.set_number("points (%)", 100)
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
    # The points are visible, and not covered by the image of that camera.
    tab.choose("colour", "depth")
    assert driver.difference(first, tab.settled()) > 0.3
    tab.choose("colour", "RGB")
    box.uncheck()


def test_a_seek_does_not_wait_for_other_threads(browser, saved):
    """Viser's threads may be busy, with videos for instance; the time line does not need them."""
    free = threading.Event()
    with opened(browser, saved) as (running, tab):
        try:
            for _ in range(64):
                running._server._thread_executor.submit(free.wait)
            tab.set_number("frame", 4)
            driver.until(lambda: running.view.playback.frame == 4)
            tab.click("<")
            driver.until(lambda: running.view.playback.frame == 3)
        finally:
            free.set()


def test_two_results_are_shown_side_by_side(browser, tmp_path, saved, scene):
    still = dataclasses.replace(scene, dynamic_mask=np.zeros_like(scene.dynamic_mask))
    with opened(browser, saved, write_scene(tmp_path / "plain", still), size=(1100, 800)) as (_, tab):
        for title in ("clip", "plain"):
            assert tab.page.get_by_role("tab", name=title).is_visible()  # pictures of the current frame
        tab.choose("colour", "mask")
        tab.page.get_by_label("current image").uncheck()
        tab.settled()
        width = tab.page.locator("canvas[data-engine]").bounding_box()["width"]
        clip = {"x": 0, "y": 190, "width": width, "height": 290}  # above the pictures, below a notice
        view = np.asarray(Image.open(io.BytesIO(tab.page.screenshot(clip=clip))).convert("RGB")).astype(int)
        left, right = view[:, : view.shape[1] // 2], view[:, view.shape[1] // 2 :]
        assert min(lit(left), lit(right)) > 0.3
        assert max(lit(view[:, :20]), lit(view[:, -20:])) == 0  # nothing is cut off
        red = [
            ((half[..., 0] > half[..., 1] + 60) & (half[..., 0] > half[..., 2] + 60)).mean() for half in (left, right)
        ]
        assert red[0] > 0.01 > red[1]


def test_a_result_of_one_static_frame(browser, tmp_path):
    scene = make_scene(1)
    still = dataclasses.replace(scene, dynamic_mask=np.zeros_like(scene.dynamic_mask))
    with opened(browser, write_scene(tmp_path / "one", still)) as (_, tab):
        assert lit(tab.settled()) > 0.1
        assert tab.page.get_by_role("button", name="Play", exact=True).is_disabled()
        tab.click(">")
        tab.choose("moving", "trail")
        assert tab.frame() == 0


def test_two_browsers_share_the_view_and_one_may_close_during_playback(browser, url, tab):
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


def test_a_screenshot_can_be_downloaded(tab):
    tab.settled()
    picture = np.asarray(Image.open(io.BytesIO(tab.download("Screenshot"))).convert("RGB"))
    box = tab.page.locator("canvas[data-engine]").bounding_box()
    assert picture.shape == (box["height"], box["width"], 3)
    assert (picture[0, -1] == 20).all()  # the page's dark background
    seen = picture.astype(int)[:, 350:]
    assert driver.difference(seen, tab.settled()[: len(seen), : seen.shape[1]]) < 0.05


def test_a_video_along_the_camera_path_shows_each_frame_as_it_was_filmed(browser, saved):
    """The square is at its place in every image, and the player resumes afterwards."""
    with opened(browser, saved, size=(720, 420)) as (running, tab):
        running.update(lambda view: dataclasses.replace(view, background=False, cameras=False, look=Look(size=1)))
        running.update(lambda view: dataclasses.replace(view, playback=view.playback.at_frame(3).toggled()))
        tab.choose("path", "camera path")
        with av.open(io.BytesIO(tab.download("Video"))) as container:
            frames = [frame.to_ndarray(format="rgb24").astype(int) for frame in container.decode(video=0)]
            assert container.streams.video[0].average_rate == 20
        driver.until(lambda: running.view.playback.playing and not running.view.recording_camera)
    masks = saved.scene.dynamic_mask
    assert len(frames) == len(masks)
    for frame, mask in zip(frames, masks, strict=True):
        assert frame.shape[1] / frame.shape[0] == pytest.approx(mask.shape[1] / mask.shape[0], rel=0.02)
        red = frame[..., 0] > frame[..., 1] + 90
        seen, expected = (
            [(np.mean(axis) + 0.5) / side for axis, side in zip(np.nonzero(a), a.shape, strict=True)]
            for a in (red, mask)
        )
        # DUSt3R's principal point is half a pixel off the image centre; that of viser's cameras is the centre.
        np.testing.assert_allclose(seen, expected, atol=0.6 / mask.shape[0])
        # Discs are one pixel wide at the median depth, and wider at the square's depth, 2. So its corners are round.
        wide = median_depth(saved.scene) / 2.0
        height, width = (np.ptp(axis) + wide for axis in np.nonzero(mask))
        area = height * width - (1 - np.pi / 4) * wide**2
        assert red.mean() == pytest.approx(area / mask.size, rel=0.1)


def test_a_video_of_an_orbit_swings_to_both_sides_of_the_initial_view(browser, saved):
    with opened(browser, saved, size=(720, 420)) as (running, tab):
        running.update(lambda view: dataclasses.replace(view, moving="hidden", cameras=False, image=False))
        seen = tab.settled()
        with av.open(io.BytesIO(tab.download("Video"))) as container:
            frames = [frame.to_ndarray(format="rgb24").astype(int) for frame in container.decode(video=0)]
    assert len(frames) == 6  # at 0, 26, 26, 0, -26, -26 degrees of 60
    first = frames[0][:, 350:]
    assert lit(first) > 0.1 and driver.difference(first, seen[: len(first), : first.shape[1]]) < 0.05
    for one, other in ((0, 3), (1, 2), (4, 5)):
        assert driver.difference(frames[one], frames[other]) < 0.01
    for one, other in ((0, 1), (0, 4), (1, 4)):
        assert driver.difference(frames[one], frames[other]) > 0.05


def test_a_video_can_be_downloaded_and_an_abandoned_one_does_not_block_others(browser, url):
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


def test_an_exported_file_plays_without_a_server_or_a_network(browser, demo, tmp_path):
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
