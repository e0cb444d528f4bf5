"""`alignment.align` with its two results in one, for tests that check both."""

from easi3r_jax import alignment
from easi3r_jax.core.arrays import Array, pytree_dataclass
from easi3r_jax.core.types import Geometry


@pytree_dataclass
class Aligned(Geometry):
    losses: Array


def aligned(*arguments, **options) -> Aligned:
    geometry, losses = alignment.align(*arguments, **options)
    return Aligned(**vars(geometry), losses=losses)
