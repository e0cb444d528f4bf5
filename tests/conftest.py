"""Settings every test runs under: exact float32 matrix products, strict ranks and dtypes, warnings as errors."""

import pathlib

import jax
import pytest

jax.config.update("jax_default_matmul_precision", "highest")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

GOLDEN = pathlib.Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def golden() -> pathlib.Path:
    """Folder of reference arrays made by running the published code on deterministic random weights."""
    return GOLDEN
