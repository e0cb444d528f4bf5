"""The smallest network that has every part."""

import pytest

from easi3r_jax.config import DUSt3RConfig
from tests.walls import HEIGHT, PATCH, WIDTH


@pytest.fixture
def config() -> DUSt3RConfig:
    return DUSt3RConfig(
        image_size=(HEIGHT, WIDTH),
        patch_size=PATCH,
        enc_dim=16,
        enc_depth=1,
        enc_heads=2,
        dec_dim=16,
        dec_depth=2,
        dec_heads=2,
        mlp_ratio=2.0,
        head="linear",
    )
