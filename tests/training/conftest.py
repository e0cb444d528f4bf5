"""The network of the training tests."""

import pytest

from easi3r_jax.models.config import DUSt3RConfig
from tests.networks import small_network
from tests.walls import HEIGHT, PATCH, WIDTH


@pytest.fixture(scope="session")
def config() -> DUSt3RConfig:
    return small_network(image_size=(HEIGHT, WIDTH), patch_size=PATCH)
