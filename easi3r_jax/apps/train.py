"""Trains or fine-tunes a network on pairs of views.

    python -m experiments.train --preset=embedded                    # the network that ships with the package
    python -m experiments.train --preset=embedded --resume           # resumes an interrupted run exactly
    python -m experiments.train --preset=dust3r --steps=2000         # the paper's objective and optimiser alone
    python -m experiments.train --finetune=monst3r --checkpoint=embedded         # on rendered dynamic scenes
    python -m experiments.train --finetune=monst3r --checkpoint=naver/DUSt3R_ViTLarge_BaseDecoder_512_dpt \\
        --data=pointodyssey:/data/po,tartanair:/data/tartanair,spring:/data/spring,waymo:/data/waymo
    srun --nodes=2 --ntasks-per-node=8 python -m experiments.train --distributed --output=/shared/run    # 16 GPUs

Pairs are rendered on the training device, unless --data names folders. The run's folder has log.csv, TensorBoard logs
(tensorboard --logdir=RUN), previews of held-out pairs, states to resume from, and model/, a checkpoint that every
program accepts as --checkpoint. Ctrl-C and `kill` stop a run after its current step and save the state. A run that is
stopped and resumed gives the same losses as an uninterrupted one. A second signal, or one while the program starts or
writes its final results, ends it at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import pathlib
import sys
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from easi3r_jax.apps import cli
from easi3r_jax.apps.distributed import DistributedFlags, check_same, devices, is_first, text_of
from easi3r_jax.apps.environment import versions
from easi3r_jax.apps.method_flags import precision_flag
from easi3r_jax.apps.training_data import check_terms, open_source
from easi3r_jax.apps.training_record import describe, described_network, named_weights
from easi3r_jax.apps.training_rescue import rescuing
from easi3r_jax.apps.training_run import Run, finish, held_by_first, train
from easi3r_jax.core import sharding
from easi3r_jax.core.atomic import atomic_file
from easi3r_jax.core.errors import ConfigError
from easi3r_jax.io import remote
from easi3r_jax.models import DUSt3R, abstract_model, parameters_of, policy, random_model
from easi3r_jax.models.config import DUSt3RConfig
from easi3r_jax.training.config import TrainConfig
from easi3r_jax.training.step import TrainState, averaged_model, init_state, make_step
from easi3r_jax.weights.checkpoint import LICENCE_UNKNOWN, load_newest, state_options
from easi3r_jax.weights.load import load_model_and_metadata

FLAGS = cli.Flags(__doc__, cached=True)

PRESETS = {
    "embedded": (DUSt3RConfig.embedded, TrainConfig.embedded),
    "embedded-wide": (DUSt3RConfig.embedded_wide, TrainConfig.embedded_wide),
    "dust3r": (DUSt3RConfig.embedded, TrainConfig.dust3r),
    "tiny": (DUSt3RConfig.thumbnail, TrainConfig.embedded),
}

_RUN = FLAGS.group("Run")
PRESET = _RUN.choice(
    "preset",
    "embedded",
    sorted(PRESETS),
    "Network, optimiser and objective; the flags below override them. embedded: the network that ships with the "
    "package; embedded-wide: a larger one, for an accelerator; dust3r: the embedded network with the paper's objective "
    "and optimiser alone; tiny: a network for trying out this program. With --checkpoint, the network is that of the "
    "weights.",
)
FINETUNE = _RUN.choice(
    "finetune",
    "none",
    ["none", "monst3r"],
    "monst3r: the fine-tuning that made MonST3R from DUSt3R: encoder frozen, learning rate 5e-5, dynamic scenes. "
    "Replaces --preset and requires --checkpoint.",
)
CHECKPOINT = _RUN.string("checkpoint", "", "Initial weights, as for reconstruct (default: random).")
OUTPUT = _RUN.output_folder("output", "", "Folder of the run, or its address (default: runs/<preset or finetune>).")
RESUME = _RUN.boolean(
    "resume", False, "Resume from the newest readable state in the run's folder, with the same options."
)
OVERWRITE = _RUN.boolean("overwrite", False, "Delete the run in the folder, and start a new one.")
STEPS = _RUN.integer(
    "steps",
    0,
    "Steps of the complete run; the learning rate schedule ends at the last (0: the preset's).",
    at_most=99_999_999,
)
STOP_AFTER = _RUN.integer(
    "stop_after", 0, "Stop after this many steps, to be resumed later (0: never).", at_most=99_999_999
)
SEED = _RUN.seed("seed", 0, "Seed of the initial weights and the data.")

_DATA = FLAGS.group("Data")
DATA = _DATA.string(
    "data",
    "",
    "Folders to train on, or their addresses: NAME:FOLDER or NAME:FOLDER:WEIGHT, separated by commas; NAME is "
    "pairs (clip folders, see "
    "docs/datasets.md), pointodyssey, tartanair, spring or waymo. Weights are relative to each other; by default they "
    "are MonST3R's mixture weights (0.5, 0.25, 0.05, 0.2), and 1 for pairs. In a set of 5 or more scenes, one in ten "
    "is held out. Empty: rendered scenes.",
)
BATCH_SIZE = _DATA.integer("batch_size", 0, "Pairs per step, each trained in both directions (0: the preset's).")

_OBJECTIVE = FLAGS.group("Objective (negative: the preset's; the last three are not in the paper, 0 switches them off)")
ALPHA = _OBJECTIVE.number("alpha", -1.0, "Weight of the confidence's logarithm; 0.2 in the papers, 0.4 in embedded.")
SCALE = _OBJECTIVE.number("scale_weight", -1.0, "Weight of keeping the predicted scale near 1.")
MATCHING = _OBJECTIVE.number("matching_weight", -1.0, "Weight of matching encoder tokens (InfoNCE); for static scenes.")
ATTENTION = _OBJECTIVE.number("attention_weight", -1.0, "Weight of supervising cross-attention; for static scenes.")

_OPTIMISER = FLAGS.group("Optimiser")
OPTIMISER = _OPTIMISER.choice(
    "optimiser", "preset", ["preset", "adamw", "muon"], "AdamW, or Muon for the blocks' matrices."
)
LEARNING_RATE = _OPTIMISER.number("learning_rate", 0.0, "Highest learning rate (0: the preset's).", at_most=10.0)
PRECISION = precision_flag(_OPTIMISER, " Parameters, loss and averages are float32.")

_REPORT = FLAGS.group("Reports")
LOG_EVERY = _REPORT.integer(
    "log_every", 20, "Steps between lines of log.csv; each line is a mean over them.", at_least=1
)
CHECK_EVERY = _REPORT.integer("check_every", 1000, "Steps between validations, previews and saved states.", at_least=1)
HELD_OUT = _REPORT.integer("held_out", 32, "Held-out pairs of a validation during training.", at_least=1)
FINAL = _REPORT.integer("held_out_final", 256, "Held-out pairs of the final validation.", at_least=1)

HOSTS = DistributedFlags(FLAGS, "Train")


def main() -> None:
    name = FINETUNE.value if FINETUNE.value != "none" else PRESET.value
    config = training_options()
    named = OUTPUT.value or f"runs/{name}"
    if HOSTS.requested and remote.is_address(named):
        raise ConfigError(
            "--output of several hosts must be a folder on a disk that all share: each writes its part of a state."
        )
    options = {"resume": RESUME.value, "overwrite": OVERWRITE.value, "hosts": HOSTS.requested}
    with HOSTS.joined(), remote.writing(named) as target, held_by_first(target.folder, **options) as begun:
        train_in(target, begun, config)


def train_in(target: remote.Output, begun: pathlib.Path | None, config: TrainConfig) -> None:
    """Trains in a locked folder, from the state `begun` on if there is one."""
    # The shards of a batch are averaged device by device: a run resumes with the number of devices it began with.
    began_with = None if begun is None else state_options(begun).get("devices")
    if not HOSTS.requested:
        sharding.split_cpu(config.batch_size, began_with)
    mesh = sharding.data_mesh(all_hosts=HOSTS.requested)
    if config.batch_size % mesh.size:
        raise ConfigError(f"--batch_size={config.batch_size} is not a multiple of the number of devices, {mesh.size}.")
    network, first, licence = starting_point(begun)
    source = open_source(DATA.value, network.image_size, seed=SEED.value, moving=FINETUNE.value == "monst3r")
    check_terms(config, network, source, {"matching_weight": MATCHING.value, "attention_weight": ATTENTION.value})
    precision = policy(PRECISION.value)
    recorded = describe(network, config, source, seed=SEED.value, checkpoint=named_weights(CHECKPOINT.value, begun)) | {
        "precision": precision.name,
        "devices": mesh.size,
    }
    if CHECKPOINT.value:
        recorded["licence"] = licence

    check_same("flags", text_of({k: v for k, v in FLAGS.values().items() if k != "process_id"}))
    parameters = parameters_of(first or abstract_model(network))
    if first is not None:
        check_same("initial weights", parameters)
    count = sum(math.prod(value.shape) for value in parameters.values())
    height, width = network.image_size
    print(
        f"  {count / 1e6:.1f} M parameters, {width}x{height} pixels, {config.steps} steps of {config.batch_size} pairs "
        f"({DATA.value or 'rendered'}), {precision.name}, {devices()}\n  folder of the run: {target.address}",
        flush=True,
    )
    for note in source.notes:
        print(f"  note: {note}", flush=True)
    if begun is None:
        state = sharding.put(init_state(parameters, config), sharding.replicated_sharding(mesh))
    else:
        state = resumed(target.folder, parameters, config, mesh, recorded)
        check_same("state to resume from", np.asarray(state.step))
        if began_with != mesh.size:
            print(f"  note: {mesh.size} devices instead of {began_with}: each averages its own pairs", flush=True)
    del first, parameters
    step = make_step(network, config, mesh, draw=source.draw, precision=precision)
    held_out = source.held_out(max(HELD_OUT.value, FINAL.value)) if is_first() else None
    every = (LOG_EVERY.value, CHECK_EVERY.value)
    run = Run(target, config, network, source, held_out, every, HELD_OUT.value, mesh, recorded)

    with atomic_file(run.output / "run.json") if is_first() else contextlib.nullcontext() as file:
        if file is not None:
            file.write_text(json.dumps(recorded | {"options": FLAGS.values(), "versions": versions()}, indent=1) + "\n")
    last = min(config.steps, int(state.step) + STOP_AFTER.value) if STOP_AFTER.value else config.steps
    if DATA.value:
        licence += " And the terms of the training data."
    with rescuing(run.output, state, recorded, network, licence):
        state = train(run, state, step, last)
    if is_first():
        finish(run, averaged_model(state, network), int(state.step), start=CHECKPOINT.value, licence=licence)
    if redrawn := source.redrawn():
        print("pairs drawn again: " + ", ".join(f"{count} ({reason})" for reason, count in sorted(redrawn.items())))
    if int(state.step) < config.steps:
        print(f"Stopped at step {int(state.step)} of {config.steps}. Add --resume to continue.")


def starting_point(begun: pathlib.Path | None) -> tuple[DUSt3RConfig, DUSt3R | None, str]:
    """The architecture, the initial weights and their licence.

    A resumed run needs no initial weights, since its state has all: they are None, and those of --checkpoint may have
    been deleted.
    """
    if not CHECKPOINT.value:
        model_config = PRESETS[PRESET.value][0]()
        return model_config, random_model(model_config, seed=SEED.value) if begun is None else None, "Apache-2.0"
    if begun is not None:
        options = state_options(begun)
        return described_network(options, begun), None, options.get("licence", LICENCE_UNKNOWN)
    first, metadata = load_model_and_metadata(CHECKPOINT.value, "exact")
    return first.config, first, f"That of the initial weights: {metadata['licence']}"


def resumed(
    output: pathlib.Path, parameters: dict[str, Any], config: TrainConfig, mesh: Mesh, recorded: dict[str, Any]
) -> TrainState:
    """The newest readable state; `parameters` are shapes."""
    shapes = jax.eval_shape(lambda p: init_state(p, config), parameters)
    everywhere = sharding.replicated_sharding(mesh)
    like = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=everywhere), shapes)
    state, step, skipped = load_newest(output / "states", like, recorded)
    for reason in skipped:
        print(f"warning: {reason} The run resumes from step {step}.", file=sys.stderr)
    return state


def training_options() -> TrainConfig:
    """The preset or MonST3R's fine-tuning, with the flags applied."""
    if FINETUNE.value == "monst3r":
        if PRESET.present:
            raise ConfigError(
                "--finetune=monst3r is its own preset, and --checkpoint determines the network: omit --preset."
            )
        if not CHECKPOINT.value:
            raise ConfigError("--finetune=monst3r requires --checkpoint, the initial weights.")
        config = TrainConfig.monst3r()
    else:
        config = PRESETS[PRESET.value][1]()
    objective = {
        field: value
        for field, value in (
            ("alpha", ALPHA.value),
            ("scale_weight", SCALE.value),
            ("matching_weight", MATCHING.value),
            ("attention_weight", ATTENTION.value),
        )
        if value >= 0
    }
    changes: dict[str, Any] = {"objective": dataclasses.replace(config.objective, **objective)}
    samples = config.steps * config.batch_size
    batch_size = BATCH_SIZE.value or config.batch_size
    steps = STEPS.value or max(samples // batch_size, 1)
    # A shorter or longer run has the same schedule, compressed or stretched.
    warmup = config.warmup_samples * steps * batch_size // samples
    changes |= {"batch_size": batch_size, "steps": steps, "warmup_samples": warmup}
    changes |= {"optimiser": OPTIMISER.value} if OPTIMISER.value != "preset" else {}
    if LEARNING_RATE.value:
        changes |= {
            "learning_rate": LEARNING_RATE.value,
            "learning_rate_min": min(config.learning_rate_min, LEARNING_RATE.value),
        }
    return dataclasses.replace(config, **changes)
