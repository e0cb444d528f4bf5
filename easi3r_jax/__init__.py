"""Easi3R in JAX: 4D reconstruction of moving scenes from a static-scene network, without training."""

__version__ = "0.1.0"
