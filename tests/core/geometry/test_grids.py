"""Nearest-pixel resampling: agreement with Pillow at the network's crop, and the inverse."""

import numpy as np
import pytest
from PIL import Image

from easi3r_jax.core.config import FrameConfig
from easi3r_jax.core.errors import InputError
from easi3r_jax.core.geometry.grids import resample_nearest
from easi3r_jax.io.video.resize import frame_geometry


# Sizes for which no pixel is halfway between two: at ties Pillow takes the higher or, by rounding, the lower.
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("size", [(854, 480), (640, 480), (1024, 576), (1000, 300), (301, 701), (500, 500), (90, 120)])
def test_equals_pillows_nearest_and_crop(size, dtype):
    geometry = frame_geometry(*size, FrameConfig(size=512))
    image = np.random.default_rng(0).integers(0, 256, (size[1], size[0]), np.uint8)
    expected = np.asarray(Image.fromarray(image).resize(geometry.resized, Image.Resampling.NEAREST).crop(geometry.box))
    found = resample_nearest(image[None], geometry.frame_from_source.astype(dtype), geometry.size[::-1])[0]
    np.testing.assert_array_equal(found, expected)


def test_of_two_equally_near_pixels_the_higher_is_taken():
    half = np.diag([0.5, 0.5, 1.0])
    half[:2, 2] = -0.25
    image = np.arange(64, dtype=np.uint8).reshape(8, 8)
    expected = np.asarray(Image.fromarray(image).resize((4, 4), Image.Resampling.NEAREST))
    np.testing.assert_array_equal(resample_nearest(image[None], half, (4, 4))[0], expected)


def test_resampling_to_the_crop_and_back():
    geometry = frame_geometry(854, 480, FrameConfig(size=512))
    source = np.zeros((1, 480, 854), bool)
    source[0, 100:300, 200:500] = True
    frame = resample_nearest(source, geometry.frame_from_source, geometry.size[::-1])
    back = resample_nearest(frame, np.linalg.inv(geometry.frame_from_source), (480, 854), outside=False)
    assert back.dtype == bool
    assert (back != source).mean() < 2e-3


def test_pixels_removed_by_the_crop_are_outside():
    geometry = frame_geometry(1000, 300, FrameConfig(size=512))  # 154 rows, of which 144 are kept
    ones = np.ones((2, *geometry.size[::-1], 3), np.float32)
    back = resample_nearest(ones, np.linalg.inv(geometry.frame_from_source), (300, 1000), outside=0)
    assert (back[:, :8] == 0).all() and (back[:, -8:] == 0).all()
    assert (back[:, 10:-10] == 1).all()
    everywhere = resample_nearest(ones, np.linalg.inv(geometry.frame_from_source), (300, 1000))
    assert (everywhere == 1).all()


@pytest.mark.parametrize("matrix", [np.eye(4), np.rot90(np.eye(3)), np.diag([1.0, -1.0, 1.0])])
def test_a_matrix_that_does_more_than_scale_and_shift_is_refused(matrix):
    with pytest.raises(InputError, match="sx"):
        resample_nearest(np.zeros((1, 4, 4)), matrix, (4, 4))
