"""The networks, as Flax NNX modules."""

from easi3r_jax.models.backbones import (
    BACKBONES,
    Backbone,
    PairNetwork,
    backbone_of,
    check_multiview,
    check_pairwise,
    released_licence,
)
from easi3r_jax.models.decoder import Decoded
from easi3r_jax.models.dust3r import DUSt3R, abstract_model, normalize_rgb, random_model
from easi3r_jax.models.parameters import FlowNetwork, flow_network, model_from, parameter_shapes, parameters_of
from easi3r_jax.models.precision import POLICIES, Precision, policy
from easi3r_jax.models.raft import RAFT
from easi3r_jax.models.sea_raft import SEARAFT
from easi3r_jax.models.vggt import VGGT, VGGTConfig

__all__ = [
    "BACKBONES",
    "POLICIES",
    "RAFT",
    "SEARAFT",
    "VGGT",
    "Backbone",
    "DUSt3R",
    "Decoded",
    "FlowNetwork",
    "PairNetwork",
    "Precision",
    "VGGTConfig",
    "abstract_model",
    "backbone_of",
    "check_multiview",
    "check_pairwise",
    "flow_network",
    "model_from",
    "normalize_rgb",
    "parameter_shapes",
    "parameters_of",
    "policy",
    "random_model",
    "released_licence",
]
