"""The web app in a real browser, with the bundled clip: `make test-browser`."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest
import trimesh

pytestmark = pytest.mark.browser
pytest.importorskip("gradio", reason="gradio is missing: run `make test-browser`, which installs it")
pytest.importorskip("playwright", reason="playwright is missing: run `make test-browser`, which installs it")

from easi3r_jax.io import results  # noqa: E402
from tests.apps.app_browser import AppTab  # noqa: E402
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


def test_the_bundled_clip_from_upload_to_download(browser, url, tmp_path):
    """All frames, default options: a video is dropped, the mouse rotates the scene, films play, files are complete."""
    tab = AppTab(browser, url)
    tab.drop([write_video(tmp_path / "my clip.mp4", FRAMES)])
    tab.page.get_by_label("colmap", exact=True).check()
    tab.reconstruct()
    assert tab.said().startswith("16 frames in ")

    before = tab.scene(4)
    ground = before[0][-5, 5]
    assert 0.02 < (abs(before[0] - ground).max(axis=-1) > 60).mean() < 0.9  # points before the dark ground
    tab.turn()
    after = tab.scene(4)
    by_itself = np.median([driver.difference(a, b) for n, a in enumerate(before) for b in before[n + 1 :]])
    turned = np.median([driver.difference(a, b) for a in before for b in after])
    assert turned > by_itself + 0.03, (turned, by_itself)

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
    assert not tab.errors
    assert all(request.startswith((url, "blob:", "data:")) for request in tab.requests)


def test_two_browsers_get_a_result_each(browser, url):
    first, second = AppTab(browser, url), AppTab(browser, url)
    for tab, count in ((first, 3), (second, 2)):
        tab.drop(FRAMES[:count])
        tab.set_number("iterations", 5)
        tab.press()
    for tab, count in ((second, 2), (first, 3)):
        assert tab.said().startswith(f"{count} frames in ")
        assert not tab.errors


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
