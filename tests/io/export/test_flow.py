"""Flow as files, which other programs read too, and as colours."""

import os

import cv2
import numpy as np
import pytest

from easi3r_jax.core.errors import OutputError
from easi3r_jax.core.types import Frames
from easi3r_jax.io.export import flow_image, write_flow
from easi3r_jax.io.priors.flow import load_flow

EDGES = np.array([[0, 1], [1, 0], [12, 345]])


@pytest.fixture
def flow():
    return np.random.default_rng(0).normal(size=(3, 16, 32, 2)).astype(np.float32)


def test_what_is_written_is_read_back(flow, tmp_path):
    target = write_flow(tmp_path / "a" / "flow", flow, EDGES)
    assert target == (tmp_path / "a" / "flow").resolve()
    assert sorted(os.listdir(target)) == ["00000_00001.flo", "00001_00000.flo", "00012_00345.flo", "pairs.txt"]
    np.testing.assert_array_equal(np.loadtxt(target / "pairs.txt", int), EDGES)
    clip = Frames(np.zeros((346, 16, 32, 3), np.uint8), np.arange(346), np.arange(346.0), np.eye(3), np.array([16, 32]))
    found, known = load_flow(target, clip, EDGES[::-1])
    np.testing.assert_array_equal(found, flow[::-1])
    assert known.all()


def test_opencv_reads_it(flow, tmp_path):
    write_flow(tmp_path / "flow", flow, EDGES)
    np.testing.assert_array_equal(cv2.readOpticalFlow(str(tmp_path / "flow" / "00012_00345.flo")), flow[2])


def test_an_earlier_folder_is_replaced_completely_and_another_never(flow, tmp_path):
    write_flow(tmp_path / "flow", flow, EDGES)
    write_flow(tmp_path / "flow", flow[:1], EDGES[:1])
    assert sorted(os.listdir(tmp_path / "flow")) == ["00000_00001.flo", "pairs.txt"]
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "00000_00001.flo").write_text("a day's work")
    with pytest.raises(OutputError, match="not an earlier result"):
        write_flow(tmp_path / "own", flow, EDGES)
    assert (tmp_path / "own" / "00000_00001.flo").read_text() == "a day's work"


def test_a_failure_on_the_way_leaves_nothing(flow, tmp_path):
    def fail(stage, done, total, note):
        if done == 2:
            raise OSError("no more")

    with pytest.raises(OutputError, match="no more"):
        write_flow(tmp_path / "flow", flow, EDGES, progress=fail)
    assert os.listdir(tmp_path) == []


def test_progress_is_reported(flow, tmp_path):
    told = []
    write_flow(tmp_path / "flow", flow[:2], EDGES[:2], progress=lambda *a: told.append(a))
    assert told == [("write", 0, 2, "00000_00001.flo"), ("write", 1, 2, "00001_00000.flo"), ("write", 2, 2, "")]


@pytest.mark.parametrize("shape", [(2, 16, 32, 2), (3, 16, 32), (3, 2, 16, 32)])
def test_flow_that_does_not_fit_the_pairs_is_refused(shape, tmp_path):
    with pytest.raises(ValueError, match="3 pairs need flow"):
        write_flow(tmp_path / "flow", np.zeros(shape, np.float32), EDGES)


@pytest.mark.parametrize(
    ("direction", "colour"),
    [((1, 0), (255, 0, 0)), ((0, 1), (128, 255, 0)), ((-1, 0), (0, 255, 255)), ((0, -1), (128, 0, 255))],
)
def test_the_hue_is_the_direction_and_the_saturation_the_length(direction, colour):
    colour = np.array(colour)
    flow = np.linspace(0, 1, 6)[:, None] * np.array(direction)
    image = flow_image(10 * flow[None], largest=10).astype(int)[0]
    expected = 255 + np.linspace(0, 1, 6)[:, None] * (colour - 255)
    np.testing.assert_allclose(image, expected, atol=1)
    np.testing.assert_allclose(flow_image(1000 * flow[None, -1:], largest=10)[0, 0], colour, atol=1)


def test_one_wild_pixel_does_not_pale_the_rest_and_noise_stays_pale():
    flow = np.zeros((2, 40, 50, 2), np.float32)
    flow[1, :, 25:] = (5, 0)
    flow[0, 0, 0] = (0, 1e6)
    image = flow_image(flow)
    assert image.shape == (2, 40, 50, 3) and image.dtype == np.uint8
    np.testing.assert_array_equal(image[1, :, 25:], np.broadcast_to([255, 0, 0], (40, 25, 3)))
    np.testing.assert_array_equal(image[1, :, :25], 255)
    noise = 1e-3 * np.random.default_rng(0).normal(size=(8, 9, 2))
    assert flow_image(noise).min() >= 253
