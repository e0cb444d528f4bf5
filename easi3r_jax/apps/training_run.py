"""A training run: its folder, the steps with reports and saved states, and the model in the end."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib
import secrets
from collections.abc import Iterator
from typing import Any

import jax
from jax.sharding import Mesh

from easi3r_jax.apps.distributed import is_first, on_any_host, on_every_host
from easi3r_jax.apps.run_folder import held, save_so_far
from easi3r_jax.apps.training_data import PairSource
from easi3r_jax.apps.training_log import TrainingLog, preview
from easi3r_jax.apps.training_rescue import save_finite_state
from easi3r_jax.apps.validate import measure, shown
from easi3r_jax.core import interrupt, sharding
from easi3r_jax.core.atomic import atomic_file
from easi3r_jax.core.errors import ConfigError, UserError
from easi3r_jax.io import remote
from easi3r_jax.models import DUSt3R
from easi3r_jax.models.config import DUSt3RConfig
from easi3r_jax.training.batch import ViewPairs
from easi3r_jax.training.config import TrainConfig
from easi3r_jax.training.step import TrainState, averaged_model
from easi3r_jax.training.validation import evaluate
from easi3r_jax.weights.checkpoint import save_checkpoint


@dataclasses.dataclass(frozen=True)
class Run:
    """The constants of a run.

    Attributes:
      target: its folder, and where that is uploaded to.
      config: training options.
      network: its architecture.
      source: of the pairs.
      held_out: pairs that no step trains on; None where nothing is validated, on all processes but the first.
      every: steps between lines of log.csv, and between validations, each with a preview and a saved state.
      some: number of held-out pairs of a validation during training.
      mesh: of the devices.
      recorded: everything that determines the results, JSON values; see `describe`.
    """

    target: remote.Output
    config: TrainConfig
    network: DUSt3RConfig
    source: PairSource
    held_out: ViewPairs | None
    every: tuple[int, int]
    some: int
    mesh: Mesh
    recorded: dict[str, Any]

    @property
    def output(self) -> pathlib.Path:
        """The run's folder on this machine."""
        return self.target.folder


@contextlib.contextmanager
def held_by_first(output: pathlib.Path, *, resume: bool, overwrite: bool, hosts: bool) -> Iterator[pathlib.Path | None]:
    """`held` by process 0; the others see that they share its disk, and yield the same state.

    Args:
      output: the run's folder.
      resume: whether to resume from its newest state.
      overwrite: whether to delete an existing run.
      hosts: whether there are several processes.

    Raises:
      ConfigError: a host does not see the folder.
    """
    if not hosts:
        with held(output, resume=resume, overwrite=overwrite) as begun:
            yield begun
        return
    mesh = sharding.data_mesh(all_hosts=True)
    with held(output, resume=resume, overwrite=overwrite) if is_first() else contextlib.nullcontext() as begun:
        name = f".shared-{secrets.token_hex(8)}"
        if is_first():
            (output / name).touch()
        name, found = sharding.agreed_text(f"{name}/{'' if begun is None else begun.name}", mesh).split("/")
        is_shared = on_every_host((output / name).exists())
        if is_first():
            (output / name).unlink()
        if not is_shared:
            raise ConfigError(f"--output={output} must be on a disk that all hosts share, and is not.")
        yield output / "states" / found if found else None


def train(run: Run, state: TrainState, step: Any, last: int) -> TrainState:
    """Runs the steps up to `last`, with reports and saved states."""
    done, batch_size = int(state.step), run.config.batch_size
    line_every, check_every = run.every
    log = TrainingLog(run.output, done, run.config.steps, batch_size) if is_first() else None
    some = jax.tree.map(lambda a: a[: run.some], run.held_out)
    own = sharding.own_rows(batch_size, run.mesh)
    alone = jax.process_count() == 1
    when = "after this step" if alone else "with the next line of the log, like the other hosts"
    notice = f"Stopping {when}; the state will be saved. Again: stop at once."
    saved, stops = done, False
    with run.source.batches(done, batch_size, own) as batches, interrupt.finishing(notice) as is_stopping:
        while done < last and not (stops or (alone and is_stopping())):
            read = () if batches is None else (sharding.shard_own_rows(next(batches), batch_size, run.mesh),)
            state, terms = step(state, *read)
            done += 1
            check = done % check_every == 0 or done == last
            # A check ends a line of the log, so that a run resumed from a regular check has the same lines.
            ends_line = done % line_every == 0 or check
            # No host stops alone; asking all of them at every step takes time.
            stops = not alone and ends_line and on_any_host(is_stopping())
            if log is not None:
                log.add(terms)
                if ends_line:
                    log.write_line(done)
            if check:
                save_finite_state(run.output / "states", done, state, run.recorded)
                saved = done
                if log is not None:
                    model = averaged_model(state, run.network)
                    log.validated(done, evaluate(model, some, batch_size=_validation_batch(run.config)))
                    preview(run.output / "preview" / f"{done:08d}.png", model, some)
                    save_so_far(run.target)
        if saved < done:
            if log is not None:
                log.write_line(done)
            save_finite_state(run.output / "states", done, state, run.recorded)
        if log is not None:
            log.close()
        if stops or (alone and is_stopping()):
            if log is not None:
                save_so_far(run.target)
            ended = f"Interrupted at step {done} of {run.config.steps}. Add --resume to continue."
            if is_stopping():
                interrupt.end(ended)
            raise UserError(ended)  # on another host
    return state


def finish(run: Run, model: DUSt3R, done: int, *, start: str, licence: str) -> None:
    """Writes the model and its metrics on the held-out pairs. start: name of the initial weights; "": none."""
    origin = f"experiments.train, {done} steps from {start or 'random weights'}"
    save_checkpoint(run.output / "model", model.config, model, source_name=origin, licence=licence)
    assert run.held_out is not None
    metrics = measure(model, run.held_out, _validation_batch(run.config))
    with atomic_file(run.output / "metrics.json") as file:
        file.write_text(json.dumps(metrics, indent=1) + "\n")
    print(shown(metrics, len(run.held_out.rgb)))
    print(f"use: python -m experiments.reconstruct --checkpoint={run.target.address}/model --seq=VIDEO")


def _validation_batch(config: TrainConfig) -> int:
    """Pairs per batch of a validation: at most as many as in a step, since more may not fit in memory."""
    return min(config.batch_size, 16)
