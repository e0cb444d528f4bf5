"""The web app in a real browser, with the bundled clip: `make test-browser`."""

from __future__ import annotations

import io
import zipfile

import pytest
import trimesh

pytestmark = pytest.mark.browser
pytest.importorskip("gradio", reason="gradio is missing: run `make test-browser`, which installs it")
pytest.importorskip("playwright", reason="playwright is missing: run `make test-browser`, which installs it")

from axe_playwright_python.sync_playwright import Axe  # noqa: E402

from easi3r_jax.io import results  # noqa: E402
from tests.apps.app_browser import PHONE, AppTab, closed_tabs  # noqa: E402
from tests.apps.app_program import app_program  # noqa: E402
from tests.apps.app_stand_ins import FRAMES, write_video  # noqa: E402
from tests.viewer import browser as driver  # noqa: E402

if driver.chromium() is None:
    pytest.skip("Chromium is missing: apt-get install chromium (or name one in $CHROMIUM)", allow_module_level=True)


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    with app_program(tmp_path_factory.mktemp("temporary"), "--max_frames=16") as url:
        yield url


@pytest.fixture(scope="module")
def browser():
    with driver.launched() as browser:
        yield browser


@pytest.fixture(autouse=True)
def tabs():
    with closed_tabs():
        yield


def test_a_clip_from_upload_to_download(browser, url, tmp_path):
    """Default options: frames are shown, the scene plays and turns, films play, files are complete."""
    tab = AppTab(browser, url)
    tab.drop([write_video(tmp_path / "my clip.mp4", FRAMES)])
    tab.page.get_by_text("16 frames will be used, 96 × 64 pixels").wait_for()
    tab.unfold("Options", "Result")
    tab.page.get_by_label("colmap", exact=True).check()
    tab.reconstruct()
    assert tab.said().startswith("16 frames in ")

    before = tab.scene(2)
    tab.turn()
    assert driver.difference(before[-1], tab.scene()[0]) > 0.03
    frame = tab.player().locator("input[type=text], input[inputmode=numeric]").first
    seen = {frame.input_value()}
    driver.until(lambda: seen.add(frame.input_value()) or len(seen) > 2)  # it plays by itself
    tab.player().get_by_role("button", name="Pause").click()
    tab.player().get_by_role("button", name="Play").wait_for()

    assert len(tab.films()) == 4
    for film in tab.films():
        assert film.evaluate("film => film.muted = true") and film.evaluate("film => film.play().then(() => true)")
        driver.until(lambda film=film: film.evaluate("film => film.currentTime") > 0.1)
        assert film.evaluate("film => film.error") is None and film.evaluate("film => film.videoWidth") > 300

    files = tab.downloads()
    assert set(files) == {"result.zip", "scene.glb", "colmap.zip"}
    assert trimesh.load(io.BytesIO(files["scene.glb"]), file_type="glb").geometry
    for name in ("result.zip", "colmap.zip"):
        with zipfile.ZipFile(io.BytesIO(files[name])) as archive:
            assert archive.testzip() is None
            archive.extractall(tmp_path)
    assert results.load_result(tmp_path / "result").scene.depth.shape == (16, 64, 96)
    assert (tmp_path / "colmap" / "sparse" / "0" / "points3D.bin").stat().st_size > 1000
    assert not tab.failures
    allowed = (url, url.replace("http://", "ws://"), "blob:", "data:")
    assert all(request.startswith(allowed) for request in tab.requests)


def test_stop_and_reconstruct_again(browser, url):
    tab = AppTab(browser, url)
    assert not tab.page.get_by_role("button", name="Stop", exact=True).is_visible()
    tab.drop(FRAMES[:3])
    tab.set_number("Optimisation steps", 3000)
    for _ in range(2):
        tab.press()
        tab.page.locator("#said").get_by_text("global alignment").wait_for()
        tab.stop()
        tab.page.locator("#said").get_by_text("Stopped.").wait_for()
        tab.page.get_by_role("button", name="Stop", exact=True).wait_for(state="hidden")
    tab.set_number("Optimisation steps", 5)
    tab.reconstruct()
    assert tab.said().startswith("3 frames in ")
    assert not tab.failures


def test_examples_beside_plain_dust3r(browser, url):
    tab = AppTab(browser, url)
    tab.example("Beside plain")
    assert tab.page.get_by_label("Beside plain DUSt3R").is_checked()
    tab.set_number("At most this many frames", 3, group="Frames")
    tab.page.get_by_text("3 frames will be used").wait_for()
    tab.unfold("Alignment")
    tab.set_number("Optimisation steps", 5)
    tab.reconstruct()
    tab.player().get_by_text("1 plain DUSt3R | 2 whole method").wait_for()
    assert not tab.failures


def test_the_first_screen_of_a_phone(browser, url):
    """What happens after a press is seen without scrolling, and then the scene, without the panel over it."""
    tab = AppTab(browser, url, PHONE)
    tab.drop(FRAMES[:2])
    tab.set_number("Optimisation steps", 5)
    tab.page.get_by_role("button", name="Options").click()
    tab.page.evaluate("window.scrollTo(0, 0)")
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= PHONE[0]
    for part in (
        tab.page.get_by_text("Video or images"),
        tab.page.get_by_role("button", name="Reconstruct", exact=True),
    ):
        box = part.bounding_box()
        assert box is not None and box["y"] >= 0 and box["y"] + box["height"] < PHONE[1]
    tab.press()
    progress = tab.page.locator("#said .progress-text, #said .progress-level").first
    progress.wait_for()
    box = progress.bounding_box()
    assert box is not None and box["y"] + box["height"] < PHONE[1]
    assert tab.page.evaluate("window.scrollY") == 0
    tab.drawn()
    title = tab.player().get_by_text("images", exact=True).first

    def is_folded() -> bool:
        bar, frame = title.bounding_box(), tab.page.locator("#scene iframe").bounding_box()
        return bar is not None and frame is not None and bar["y"] > frame["y"] + 0.8 * frame["height"]

    driver.until(is_folded)
    assert not tab.failures


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_everybody_can_use_it(browser, url, theme):
    """axe-core finds nothing, before, with all options, and with a result."""
    tab = AppTab(browser, f"{url}/?__theme={theme}")
    found = violations(tab)
    tab.drop(FRAMES[:2])
    tab.set_number("Optimisation steps", 5)
    tab.unfold("Frames", "Method", "Result")
    tab.page.get_by_label("colmap", exact=True).wait_for()
    found += violations(tab)
    tab.reconstruct()
    found += violations(tab)
    assert not found
    reached = []
    for _ in range(8):  # with the keyboard
        tab.page.keyboard.press("Tab")
        reached.append(tab.page.evaluate("document.activeElement.tagName"))
    assert "BUTTON" in reached


def violations(tab: AppTab) -> list[str]:
    """What axe-core finds on the page itself: the viewer is another program's page."""
    tab.page.wait_for_timeout(500)  # colours fade in
    found = Axe().run(tab.page, options={"iframes": False}).response["violations"]
    return [f"{v['id']}: {node['html'][:200]}" for v in found for node in v["nodes"]]


def test_two_browsers_get_a_result_each(browser, url):
    first, second = AppTab(browser, url), AppTab(browser, url)
    for tab, count in ((first, 3), (second, 2)):
        tab.drop(FRAMES[:count])
        tab.set_number("Optimisation steps", 5)
        tab.press()
    for tab, count in ((second, 2), (first, 3)):
        assert tab.said().startswith(f"{count} frames in ")
        assert not tab.failures


def test_a_file_that_is_not_a_video_is_reported_and_a_video_works_afterwards(browser, url, tmp_path):
    letter = tmp_path / "letter.mp4"
    letter.write_text("Dear all,\n" * 100)
    tab = AppTab(browser, url)
    tab.drop([letter])
    tab.press()
    tab.page.get_by_text("letter.mp4 cannot be opened as a video").wait_for()
    tab.page.reload()
    tab.drop(FRAMES[:2])
    tab.reconstruct()
    assert tab.said().startswith("2 frames in ")


def test_a_tab_that_closes_in_the_middle_lets_the_next_one_in(browser, url):
    leaves = AppTab(browser, url)
    leaves.drop(FRAMES)
    leaves.press()
    leaves.page.get_by_text("reading frames").or_(leaves.page.get_by_text("pairs")).first.wait_for()
    leaves.page.close()
    stays = AppTab(browser, url)
    stays.drop(FRAMES[:2])
    stays.reconstruct()
    assert stays.said().startswith("2 frames in ")


def test_a_server_that_restarts_or_ends_is_noticed_without_a_press(browser, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with app_program(tmp_path / "a") as url:
        tab = AppTab(browser, url)
        tab.page.wait_for_timeout(1000)
        assert not tab.page.locator("#server-notice").inner_text()
    tab.page.get_by_text("The server does not answer").wait_for()
    with app_program(tmp_path / "b", f"--port={url.rsplit(':', 1)[1]}"):
        tab.page.get_by_text("The server has been restarted").wait_for()
        tab.failures.clear()  # it could not be reached meanwhile
