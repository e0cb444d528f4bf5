"""DUSt3R and MonST3R weights to our checkpoints, without torch and without running anything that a file contains.

    python -m convert --source=DUSt3R_ViTLarge_BaseDecoder_512_dpt.pth --output=checkpoints/dust3r

`sources` opens what the user names; `torch_file` (with `pickles`) and `safetensors_folder` read tensors as they are
needed; `model_string` reads the architecture; `table` says which tensor becomes which parameter; `conversion` writes
the result; `cache` keeps results for programs that are given a source directly.
"""

from easi3r_jax.weights.convert.cache import resolve
from easi3r_jax.weights.convert.conversion import convert
from easi3r_jax.weights.convert.sources import open_source

__all__ = ["convert", "open_source", "resolve"]
