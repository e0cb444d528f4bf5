"""The command `easi3r`, which runs the program named by its first argument.

    easi3r reconstruct --seq=demo
    easi3r reconstruct --help

`run` starts a program. It first installs the handler for Ctrl-C, since importing a program takes seconds.
"""

from __future__ import annotations

import importlib
import sys

from easi3r_jax.core import interrupt

#: Each program's module below `easi3r_jax.apps` and its description, in the order of the help.
PROGRAMS = {
    "reconstruct": ("clips", "reconstruct videos in 4D"),
    "view": ("view", "show a result in the browser"),
    "report": ("report", "pictures, videos and an HTML report of a result"),
    "export": ("export", "export a result to COLMAP, nerfstudio, PLY, GLB and others"),
    "app": ("app.main", "a web page for uploads"),
    "convert": ("convert", "convert DUSt3R, MonST3R, RAFT or SEA-RAFT weights"),
    "evaluate": ("evaluate.main", "evaluate on data sets: the papers' tables"),
    "train": ("train", "train or fine-tune a network"),
    "validate": ("validate", "evaluate a network on held-out rendered pairs"),
    "synthesize": ("synthesize", "render clips with ground truth"),
    "study": ("study.main", "compare motion cues on rendered clips"),
    "alignment_study": ("alignment_study", "compare alignment options on rendered clips"),
    "calibrate": ("calibrate", "fit the motion cue to a network on clips with masks"),
    "ablate_cue": ("ablate_cue", "measure what each layer and head of the attention cue is worth"),
    "benchmark": ("benchmark.main", "time every stage"),
    "cost": ("cost", "estimate the cost of an evaluation"),
    "long_clips": ("long_clips.main", "show memory and time of long clips by windows"),
    "compile_check": ("compile_check.main", "compile every stage for TPUs and GPUs without one"),
    "precision": ("precision.main", "measure what each precision costs in accuracy"),
    "parity": ("parity.main", "compare every stage with reference arrays"),
}


def run(name: str) -> None:
    """Runs the program of that name with this process's command line, and ends the process."""
    interrupt.install()
    program = importlib.import_module(f"easi3r_jax.apps.{PROGRAMS[name][0]}")
    program.FLAGS.run(program.main)


def main() -> None:
    """The command line: `easi3r NAME [flags]`."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in PROGRAMS:
        sys.argv[:2] = [f"easi3r {name}"]
        run(name)
    if name in ("--version", "-V"):
        from easi3r_jax import __version__

        print(f"easi3r_jax {__version__}")
        sys.exit(0)
    if name in ("--help", "-h", "help"):
        print(usage())
        sys.exit(0)
    print(f"error: Unknown program {name!r}: choose one of {', '.join(PROGRAMS)} (easi3r --help).", file=sys.stderr)
    sys.exit(2)


def usage() -> str:
    """The list of programs, one per line."""
    width = max(map(len, PROGRAMS))
    lines = [f"  easi3r {name:{width}}  {text}" for name, (_, text) in PROGRAMS.items()]
    return "\n".join(["4D reconstruction of dynamic scenes. Each program lists its flags with --help.", "", *lines])
