"""Makes a checkpoint of full size in the layout of the released `.pth` files, with random weights.

    python tests/make_full_checkpoint.py --preset=512_dpt --output=/tmp/full.pth
    python -m convert --source=/tmp/full.pth --output=/tmp/full_checkpoint

For measuring conversion and reconstruction without the real weights. Names, shapes and aliases are those of the
released checkpoints (tests/golden/manifests). The weights depend only on the seed: matrices have a variance of
1/fan-in and norms have scales around 1, so that signals neither vanish nor explode. Tensors are generated and written
one after another: 2.3 GB for 512_dpt in 10 seconds and 80 MB of memory.
"""

from __future__ import annotations

import argparse
import json
import math
import pathlib
import re
import sys
import zlib
from collections.abc import Iterator

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))  # run as a script, it sees its own folder only

from tests import torch_writer

MANIFESTS = pathlib.Path(__file__).parent / "golden" / "manifests"
PRESETS = {
    "512_dpt": "DUSt3R_ViTLarge_BaseDecoder_512_dpt",
    "512_linear": "DUSt3R_ViTLarge_BaseDecoder_512_linear",
    "224_linear": "DUSt3R_ViTLarge_BaseDecoder_224_linear",
    "monst3r": "MonST3R_PO-TA-S-W_ViTLarge_BaseDecoder_512_dpt",
    "mast3r": "MASt3R_ViTLarge_BaseDecoder_512_catmlpdpt_metric",
}


def random_weight(seed: int, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Weights of one tensor: a function of seed, name and shape."""
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    weight = rng.standard_normal(shape, np.float32)
    if len(shape) >= 2:
        weight *= np.float32(1 / math.sqrt(math.prod(shape[1:])))
    elif name.endswith(".weight"):
        weight *= np.float32(0.1)
        weight += np.float32(1)
    else:
        weight *= np.float32(0.02)
    if name.endswith((".dpt.head.4.weight", "downstream_head1.proj.weight", "downstream_head2.proj.weight")):
        weight *= np.float32(0.25)  # the heads' outputs go through an exponential
    return weight


def shallower(manifest: dict, layers: int) -> dict:
    """The manifest of a network with fewer blocks in the encoder and in each branch of the decoder."""

    def remains(name: str) -> bool:
        block = re.match(r"(?:enc_blocks|dec_blocks2?)\.(\d+)\.", name)
        return block is None or int(block[1]) < layers

    entries = {name: entry for name, entry in manifest["entries"].items() if remains(name)}
    aliases = {name: of for name, of in manifest["aliases"].items() if remains(name)}
    described = re.sub(r"(enc|dec)_depth=\d+", rf"\1_depth={layers}", manifest["args_model_string"])
    unique = sum(math.prod(shape) for name, (shape, _) in entries.items() if name not in aliases)
    return manifest | {
        "entries": entries,
        "aliases": aliases,
        "args_model_string": described,
        "n_unique_params": unique,
    }


def write(manifest: dict, path: pathlib.Path, seed: int) -> None:
    """Writes a checkpoint of everything that the manifest lists."""
    aliases: dict[str, str] = manifest["aliases"]
    shapes = {name: tuple(shape) for name, (shape, _) in manifest["entries"].items()}
    keys = {name: str(key) for key, name in enumerate(name for name in shapes if name not in aliases)}
    model = {name: torch_writer.Tensor(keys[aliases.get(name, name)], shape) for name, shape in shapes.items()}
    root = {
        "args": torch_writer.namespace(model=manifest["args_model_string"], batch_size=4, lr=1e-4, distributed=True),
        "model": model,
        "epoch": 50,
        "best_so_far": 0.05,
    }

    def storages() -> Iterator[tuple[str, np.ndarray]]:
        for name, key in keys.items():
            yield key, random_weight(seed, name, shapes[name])

    torch_writer.write(path, root, storages())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="512_dpt", help="which released checkpoint (512_dpt)")
    parser.add_argument("--output", type=pathlib.Path, required=True, help="file to write")
    parser.add_argument("--seed", type=int, default=0, help="of the weights (0)")
    parser.add_argument("--layers", type=int, default=0, help="blocks of encoder and decoder, times 4 for DPT (0: all)")
    options = parser.parse_args()
    manifest = json.loads((MANIFESTS / f"{PRESETS[options.preset]}.json").read_text())
    if options.layers:
        manifest = shallower(manifest, options.layers)
    write(manifest, options.output, options.seed)
    print(f"{options.output}: {options.output.stat().st_size / 1e9:.2f} GB, {manifest['n_unique_params']} parameters")


if __name__ == "__main__":
    main()
