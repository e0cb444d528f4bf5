"""The networks, as Flax NNX modules."""

from easi3r_jax.models.decoder import Decoded
from easi3r_jax.models.dust3r import DUSt3R, abstract_model, normalize_rgb, random_model

__all__ = ["DUSt3R", "Decoded", "abstract_model", "normalize_rgb", "random_model"]
