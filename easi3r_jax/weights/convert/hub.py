"""Weights by their name on the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Callable

from easi3r_jax.weights.checkpoint import LICENCE_RELEASED
from easi3r_jax.weights.convert.safetensors_folder import CONFIG, WEIGHTS, open_folder
from easi3r_jax.weights.convert.tensors import Source
from easi3r_jax.weights.hub import fetch

RELEASED = (
    "naver/DUSt3R_ViTLarge_BaseDecoder_512_dpt",
    "naver/DUSt3R_ViTLarge_BaseDecoder_512_linear",
    "naver/DUSt3R_ViTLarge_BaseDecoder_224_linear",
    "Junyi42/MonST3R_PO-TA-S-W_ViTLarge_BaseDecoder_512_dpt",
)


def open_name(name: str, progress: Callable[[str, int, int, str], None]) -> Source:
    """Opens a model of the hub; downloads it unless the hub's own cache has it.

    Raises:
      CheckpointError: no network, no such model, or a model in another form. Says what to fetch by hand.
    """
    folder = fetch(name, (CONFIG, WEIGHTS), "DUSt3R", progress)
    return open_folder(folder, name=name, licence=LICENCE_RELEASED if name in RELEASED else None)
