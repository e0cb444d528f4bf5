"""Converts DUSt3R and MonST3R weights to our checkpoints, without torch and without executing anything in a file.

    python -m convert --source=DUSt3R_ViTLarge_BaseDecoder_512_dpt.pth --output=checkpoints/dust3r

`sources` opens the source; `torch_file` (with `pickles`) and `safetensors_folder` read tensors lazily; `pth` finds the
weights in what a `.pth` file holds; `model_string` parses the architecture; `table` maps tensors to parameters;
`reading` reads a source once; `conversion` makes the network's parameters of it, in memory or as a checkpoint.
"""

from easi3r_jax.weights.convert.conversion import convert, read_parameters
from easi3r_jax.weights.convert.sources import open_source

__all__ = ["convert", "open_source", "read_parameters"]
