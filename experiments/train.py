"""Trains a network, or goes on training one, on pairs of views.

    python -m experiments.train --preset=embedded --output=runs/embedded     # the network that ships with the package
    python -m experiments.train --preset=embedded --output=runs/embedded --resume      # go on where it stopped
    python -m experiments.train --preset=dust3r --steps=2000 --output=runs/try         # the paper's objective alone
    python -m experiments.train --finetune=monst3r --checkpoint=embedded --data=clips/ --output=runs/tuned

Pairs are rendered on the device that trains, unless --data names folders. The run's folder has log.csv, TensorBoard
logs (tensorboard --logdir=RUN), previews of held-out pairs, states to resume from, and model/, a checkpoint that every
program takes as --checkpoint. A run that is stopped and resumed gives the same losses as one that is not.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np

from easi3r_jax import config as options
from easi3r_jax import sharding
from easi3r_jax.checkpoint import latest_state, load_state, save_checkpoint, save_state
from easi3r_jax.errors import CheckpointError, ConfigError, OutputError
from easi3r_jax.models import parameters_of, random_model
from easi3r_jax.synthetic import PairSampling
from easi3r_jax.training.rendered import held_out_pairs, rendered_pairs
from easi3r_jax.training.step import averaged_model, init_state, make_step
from easi3r_jax.training.validation import evaluate
from experiments import cli
from experiments.checkpoints import load_model
from experiments.environment import versions
from experiments.progress import table
from experiments.training_log import TrainingLog, preview

FLAGS = cli.Flags(__doc__)

PRESETS = {
    "embedded": (options.DUSt3RConfig.embedded, options.TrainConfig.embedded),
    "dust3r": (options.DUSt3RConfig.embedded, options.TrainConfig.dust3r),
    "tiny": (options.DUSt3RConfig.tiny_linear, options.TrainConfig),
}

_RUN = FLAGS.group("Run")
PRESET = _RUN.choice(
    "preset", "embedded", sorted(PRESETS), "Network, optimiser and objective; flags below change them."
)
OUTPUT = _RUN.string("output", "", "Folder of the run (default: runs/<preset>).")
RESUME = _RUN.boolean("resume", False, "Go on from the newest state in the run's folder.")
STEPS = _RUN.integer("steps", 0, "Steps of the whole run; the learning rate has fallen at the last (0: the preset's).")
SEED = _RUN.integer("seed", 0, "Of the first weights and of the data.")
CHECKPOINT = _RUN.string("checkpoint", "", "Weights to start from (default: random ones of the preset's network).")
BATCH_SIZE = _RUN.integer("batch_size", 0, "Pairs a step, each trained both ways (0: the preset's).")

_OPTIMISER = FLAGS.group("Optimiser")
LEARNING_RATE = _OPTIMISER.number("learning_rate", 0.0, "Highest learning rate (0: the preset's).", at_least=0.0)

_REPORT = FLAGS.group("Reports")
LOG_EVERY = _REPORT.integer("log_every", 20, "Steps between lines of log.csv: means over them.", at_least=1)
CHECK_EVERY = _REPORT.integer("check_every", 1000, "Steps between validations, previews and saved states.", at_least=1)
HELD_OUT = _REPORT.integer("held_out", 32, "Held-out pairs of a validation while training.", at_least=1)
FINAL = _REPORT.integer("held_out_final", 256, "Held-out pairs of the last validation.", at_least=1)


def main() -> None:
    model_config, config = chosen()
    output = pathlib.Path(OUTPUT.value or pathlib.Path("runs") / PRESET.value).expanduser()
    mesh = sharding.data_mesh()
    if config.batch_size % mesh.size:
        raise ConfigError(f"--batch_size {config.batch_size} does not divide among {mesh.size} devices.")
    sampling = PairSampling(size=model_config.image_size)
    first = None
    if CHECKPOINT.value:
        first, _ = load_model(CHECKPOINT.value, "float32")
        model_config = first.config
        sampling = PairSampling(size=model_config.image_size)
    recorded = {
        "model": dataclasses.asdict(model_config) | {"confidence_range": None},
        "train": dataclasses.asdict(config),
        "data": dataclasses.asdict(sampling),
        "seed": SEED.value,
        "checkpoint": CHECKPOINT.value,
    }
    first = first or random_model(model_config, seed=SEED.value)
    state = jax.device_put(init_state(parameters_of(first), config), sharding.replicated(mesh))
    begun = latest_state(output / "states")
    if RESUME.value:
        if begun is None:
            raise CheckpointError(f"There is no training state below {output}: leave --resume away to begin.")
        state, _ = load_state(begun, state, recorded)
    elif begun is not None:
        raise OutputError(f"{output} holds a run: add --resume to go on, or choose another --output.")
    dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    draw = functools.partial(rendered_pairs, SEED.value, sampling)
    step = make_step(model_config, config, mesh, draw=draw, dtype=dtype)
    held_out = held_out_pairs(max(HELD_OUT.value, FINAL.value), sampling)
    some = jax.tree.map(lambda a: a[: HELD_OUT.value], held_out)

    done = int(state.step)
    output.mkdir(parents=True, exist_ok=True)
    (output / "config.json").write_text(json.dumps(recorded | {"versions": versions()}, indent=1) + "\n")
    log = TrainingLog(output, first_step=done, total=config.steps, samples_per_step=config.batch_size)
    pending: list[dict[str, jax.Array]] = []
    while done < config.steps:
        state, terms = step(state)
        done += 1
        pending.append(terms)
        if done % LOG_EVERY.value == 0 or done == config.steps:
            means = {name: float(np.mean([float(t[name]) for t in pending])) for name in pending[0]}
            pending = []
            if not np.isfinite(means["loss"]):
                raise ConfigError(f"The loss is not finite at step {done}: lower --learning_rate and resume.")
            log.write(done, means)
        if done % CHECK_EVERY.value == 0 or done == config.steps:
            save_state(output / "states", done, state, recorded)
            model = averaged_model(state, model_config)
            log.validated(done, evaluate(model, some))
            preview(output / "preview" / f"{done:08d}.png", model, some)
    log.close()
    finish(output, state, model_config, config, held_out)


def finish(output, state, model_config, config, held_out) -> None:
    """Writes the model and what it measures on the held-out pairs."""
    model = averaged_model(state, model_config)
    save_checkpoint(output / "model", model_config, model, source_name=f"experiments.train, {int(state.step)} steps")
    began = time.perf_counter()
    figures, copied = evaluate(model, held_out), evaluate(model, held_out, copied=True)
    (output / "metrics.json").write_text(json.dumps({"model": figures, "view 1 twice": copied}, indent=1) + "\n")
    rows = [(name, f"{value:.4f}", f"{copied[name]:.4f}") for name, value in figures.items()]
    print(table(rows, ("held-out pairs", "model", "view 1 shown twice")))
    print(f"Measured on {len(held_out.rgb)} pairs in {time.perf_counter() - began:.0f} s. Model: {output / 'model'}")


def chosen() -> tuple[options.DUSt3RConfig, options.TrainConfig]:
    """The preset with the flags' changes."""
    make_model, make_training = PRESETS[PRESET.value]
    config = make_training()
    changes: dict[str, object] = {}
    if STEPS.value:
        changes["steps"] = STEPS.value
    if BATCH_SIZE.value:
        changes["batch_size"] = BATCH_SIZE.value
    if LEARNING_RATE.value:
        changes["learning_rate"] = LEARNING_RATE.value
    return make_model(), dataclasses.replace(config, **changes)


if __name__ == "__main__":
    FLAGS.run(main)
