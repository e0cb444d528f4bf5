"""Converts weights to a checkpoint of easi3r_jax, or one of ours back to the released layout.

Of DUSt3R and MonST3R, and of RAFT and SEA-RAFT, which estimate optical flow. No PyTorch is needed, and
nothing in a checkpoint is ever executed. Released weights of DUSt3R and MonST3R are under CC BY-NC-SA 4.0:
attribution, non-commercial use, share alike.

  python -m convert --source=DUSt3R_ViTLarge_BaseDecoder_512_dpt.pth --output=checkpoints/dust3r
  python -m convert --source=Junyi42/MonST3R_PO-TA-S-W_ViTLarge_BaseDecoder_512_dpt --output=checkpoints/monst3r
  python -m experiments.reconstruct --seq=video.mp4 --checkpoint=checkpoints/monst3r
  python -m convert --source=runs/embedded/model --output=release --to=official --half
  python -m convert --source=raft-things.pth --output=checkpoints/raft

--source=SOURCE   a .pth file (either format of torch.save); a folder of model.safetensors and config.json; or a name
                  on the Hugging Face hub, downloaded with its client and kept in its cache (HF_HOME says where)
--output=FOLDER   folder to write; an older checkpoint there is replaced when the new one is complete
--to=LAYOUT       jax (the default): a checkpoint of ours; official: from a checkpoint of ours, a folder of
                  model.safetensors and config.json with the released networks' names and shapes
--half            with --to=official: store half precision
--debug           show the traceback of an error
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable

from absl import flags
from tqdm import tqdm

from convert.conversion import convert
from convert.release import release
from easi3r_jax.config import DUSt3RConfig, FlowConfig
from easi3r_jax.errors import UserError

_SOURCE = flags.DEFINE_string("source", None, "What to convert.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder to write.")
_TO = flags.DEFINE_enum("to", "jax", ["jax", "official"], "Layout to write.")
_HALF = flags.DEFINE_bool("half", False, "Store half precision.")
_DEBUG = flags.DEFINE_bool("debug", False, "Show the traceback of an error.")
_TITLES = {"download": "downloading", "hash": "checksum", "convert": "converting"}
_PATIENCE = 2.0  # seconds without a bar


class _Bars:
    """Draws a bar with time left for each stage; `close` ends the last one."""

    def __init__(self):
        self._stage, self._bar = "", None

    def __call__(self, stage: str, done: int, total: int, note: str) -> None:
        del note
        if stage == "download":  # the hub's client draws its own
            return
        if stage != self._stage:
            self.close()
            layout = "{desc} {bar:30} {n_fmt}/{total_fmt} MB [{elapsed}<{remaining}]"
            self._stage = stage
            self._bar = tqdm(
                total=total,
                desc=f"{_TITLES[stage]:>11}",
                bar_format=layout,
                delay=_PATIENCE,
                disable=None,
                file=sys.stderr,
            )
        if self._bar is not None:
            self._bar.update(done - self._bar.n)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        self._stage, self._bar = "", None


def main(source: str, output: str) -> None:
    if _TO.value == "official":
        folder = release(source, output, half=_HALF.value)
        size = sum(file.stat().st_size for file in folder.iterdir())
        print(f"{folder}: {size / 1e6:.1f} MB in the released layout\nlicence: that of {source}")
        return
    start, bars = time.monotonic(), _Bars()
    try:
        summary = convert(source, output, bars)
    finally:
        bars.close()
    for notice in summary.notices:
        print(f"note: {notice}")
    print(
        f"{summary.path}: {summary.parameters / 1e6:.1f} M parameters, {described(summary.config)}, "
        f"written in {time.monotonic() - start:.1f} s\n"
        f"source SHA-256: {summary.source_sha256}\n"
        f"licence: {summary.licence}"
    )
    if isinstance(summary.config, DUSt3RConfig):
        print(f"use: python -m experiments.reconstruct --seq=VIDEO --checkpoint={summary.path}")


def described(config: DUSt3RConfig | FlowConfig) -> str:
    """The network in words."""
    if isinstance(config, FlowConfig):
        return f"optical flow by {config.network}"
    height, width = config.image_size
    return f"{config.head} head, trained at {width}x{height}"


def run(main: Callable[[str, str], None], arguments: list[str]) -> int:
    """Parses the flags, calls `main`, returns the exit code: 0, 1 for an error, 2 for wrong flags, 130 for Ctrl-C."""
    if any(argument in ("--help", "-h", "-help", "--helpfull", "--helpshort") for argument in arguments[1:]):
        print((__doc__ or "").strip())
        return 0
    try:
        rest = flags.FLAGS(arguments)[1:]
        if rest:
            raise flags.Error(f"Unexpected argument {rest[0]!r}: options are written --name=value")
        source, output = _SOURCE.value, _OUTPUT.value
        if not source or not output:
            raise flags.Error("--source and --output are both needed")
        if _HALF.value and _TO.value != "official":
            raise flags.Error("--half goes with --to=official")
    except flags.Error as error:
        print(f"error: {str(error).splitlines()[0]} (see python -m convert --help)", file=sys.stderr)
        return 2
    try:
        main(source, output)
        return 0
    except (KeyboardInterrupt, UserError, MemoryError) as error:
        if _DEBUG.value:
            traceback.print_exc()
        message, code = " ".join(str(error).split()), 1
        if isinstance(error, KeyboardInterrupt):
            message, code = "Interrupted. Nothing half-written was left behind.", 130
        elif isinstance(error, MemoryError):
            message = "Out of memory: the largest part of the network (about half of it) must fit."
    print(f"error: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    exit_code = run(main, sys.argv)
    if exit_code == 130:  # writers may still be at work, and Python's own shutdown then often crashes
        sys.stderr.flush()
        os._exit(exit_code)
    sys.exit(exit_code)
