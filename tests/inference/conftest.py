"""A small random network, and the pipeline's result for four frames."""

import pytest

from easi3r_jax.inference import pipeline
from tests.inference.small import NETWORK, OPTIONS, clip
from tests.networks import network


@pytest.fixture(scope="session")
def model():
    return network(NETWORK, seed=3)


@pytest.fixture(scope="session")
def result(model):
    return pipeline.reconstruct(model, clip(4), OPTIONS)
