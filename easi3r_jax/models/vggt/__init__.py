"""VGGT: a network that takes all frames of a clip at once."""

from easi3r_jax.models.vggt.aggregator import Aggregated, Band
from easi3r_jax.models.vggt.config import VGGTConfig
from easi3r_jax.models.vggt.geometry import cameras_of, encoded_cameras, points_from_depth
from easi3r_jax.models.vggt.network import VGGT, abstract_vggt

__all__ = [
    "VGGT",
    "Aggregated",
    "Band",
    "VGGTConfig",
    "abstract_vggt",
    "cameras_of",
    "encoded_cameras",
    "points_from_depth",
]
