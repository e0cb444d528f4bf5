"""Geometry is tested in float64, in which an equation holds to 1e-9 or is wrong."""

from collections.abc import Callable

import jax
import numpy as np
import pytest
from scipy.spatial.transform import Rotation


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def random_motion(rng) -> Callable[..., np.ndarray]:
    """Random rigid motions (*batch, 4, 4), or similarities with scales between 0.1 and 10."""

    def make(batch: tuple[int, ...] = (), *, similarity: bool = False) -> np.ndarray:
        count = int(np.prod(batch))
        out = np.tile(np.eye(4), (count, 1, 1))
        scale = 10 ** rng.uniform(-1, 1, (count, 1, 1)) if similarity else 1
        out[:, :3, :3] = scale * Rotation.random(count, rng=rng).as_matrix().reshape(count, 3, 3)
        out[:, :3, 3] = 3 * rng.standard_normal((count, 3))
        return out.reshape(*batch, 4, 4)

    return make
