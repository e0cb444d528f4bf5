"""Converts weights to a checkpoint of easi3r_jax, or such a checkpoint back to the released layout.

    python -m convert --source=DUSt3R_ViTLarge_BaseDecoder_512_dpt.pth --output=checkpoints/dust3r
    python -m convert --source=Junyi42/MonST3R_PO-TA-S-W_ViTLarge_BaseDecoder_512_dpt --output=checkpoints/monst3r
    python -m experiments.reconstruct --seq=video.mp4 --checkpoint=checkpoints/monst3r
    python -m convert --source=runs/embedded/model --output=release --to=official --half
    python -m convert --source=raft-things.pth --output=checkpoints/raft

Converts weights of DUSt3R, MonST3R, MASt3R, and of RAFT and SEA-RAFT (flow). PyTorch is not needed, and nothing in a
checkpoint is ever executed. Released weights of the first three are under CC BY-NC-SA 4.0: attribution, non-commercial
use, share alike.
"""

from __future__ import annotations

import pathlib
import sys
import time

from easi3r_jax.apps import cli
from easi3r_jax.apps.progress import Stages
from easi3r_jax.core.errors import ConfigError
from easi3r_jax.io import remote
from easi3r_jax.models import backbone_of
from easi3r_jax.models.config import DUSt3RConfig, FlowConfig
from easi3r_jax.weights.convert.conversion import convert
from easi3r_jax.weights.convert.release import release
from easi3r_jax.weights.load import on_this_machine

FLAGS = cli.Flags(__doc__)

_FILES = FLAGS.group("Files")
SOURCE = _FILES.string(
    "source",
    "",
    "A .pth file (either format of torch.save), a folder of model.safetensors and config.json, an address, or a name "
    "on the Hugging Face hub, downloaded with its client into its cache (location: HF_HOME).",
)
OUTPUT = _FILES.output_folder(
    "output",
    "",
    "Output folder, or its address. An existing checkpoint there is replaced once the new one is complete.",
)
TO = _FILES.choice(
    "to",
    "jax",
    ["jax", "official"],
    "jax: a checkpoint of this project. official: the reverse, a folder of model.safetensors and config.json with the "
    "released networks' names and shapes.",
)
HALF = _FILES.boolean("half", False, "With --to=official: store half precision.")


def main() -> None:
    if not SOURCE.value or not OUTPUT.value:
        raise ConfigError("--source and --output are both needed.")
    if HALF.value and TO.value != "official":
        raise ConfigError("--half goes with --to=official.")
    stages = Stages(leave=False)
    with remote.writing(OUTPUT.value, progress=stages) as target:
        write(on_this_machine(SOURCE.value, stages), target.folder, stages)
    stages.close()
    if remote.is_address(OUTPUT.value):
        print(f"uploaded to {OUTPUT.value}")


def write(source: str, output: pathlib.Path, stages: Stages) -> None:
    """Converts a source on this machine, or on the hub, and prints what came of it."""
    if TO.value == "official":
        folder = release(source, output, half=HALF.value)
        size = sum(file.stat().st_size for file in folder.iterdir())
        print(f"{folder}: {size / 1e6:.1f} MB in the released layout\nlicence: that of {SOURCE.value}")
        return
    start = time.monotonic()
    try:
        summary = convert(source, output, stages)
    finally:
        stages.close()
    for notice in summary.notices:
        print(f"note: {notice}")
    print(
        f"{summary.path}: {summary.parameters / 1e6:.1f} M parameters, {described(summary.config)}, "
        f"written in {time.monotonic() - start:.1f} s\n"
        f"source SHA-256: {summary.source_sha256}\n"
        f"licence: {summary.licence}"
    )
    if isinstance(summary.config, DUSt3RConfig):
        print(f"use: --checkpoint={summary.path}, e.g. {_reconstruct()} --seq=VIDEO --checkpoint={summary.path}")


def _reconstruct() -> str:
    """The command for the program `reconstruct`, in the form in which this program was called."""
    return "easi3r reconstruct" if sys.argv[0].startswith("easi3r ") else "python -m experiments.reconstruct"


def described(config: DUSt3RConfig | FlowConfig) -> str:
    """A description of the network."""
    if isinstance(config, FlowConfig):
        return f"optical flow by {config.network}"
    height, width = config.image_size
    unit = ", points in metres" if config.metric else ""
    return f"{backbone_of(config.head).name}, {config.head} head, trained at {width}x{height}{unit}"
