"""The networks, as Flax NNX modules."""

from easi3r_jax.models.decoder import Decoded
from easi3r_jax.models.dust3r import DUSt3R, abstract_model, normalize_rgb, random_model
from easi3r_jax.models.parameters import model_from, parameters_of

__all__ = ["DUSt3R", "Decoded", "abstract_model", "model_from", "normalize_rgb", "parameters_of", "random_model"]
