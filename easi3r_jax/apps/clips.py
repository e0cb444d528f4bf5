"""`python -m experiments.reconstruct`: one clip, or many of them, here or on a cluster."""

from __future__ import annotations

import contextlib
import os
import pathlib
from typing import Any

from easi3r_jax.apps import reconstruct
from easi3r_jax.apps.batch import Batch, Clip, attempted, clips_of, digest, tasks_of_clips, work
from easi3r_jax.apps.cluster.local import run_here
from easi3r_jax.apps.cluster.ray_cluster import RayCluster
from easi3r_jax.apps.cluster.tasks import Attempt
from easi3r_jax.apps.progress import Stages
from easi3r_jax.apps.reconstruct import CLUSTER, FLAGS
from easi3r_jax.apps.run_folder import locked
from easi3r_jax.core.errors import ConfigError
from easi3r_jax.models import DUSt3R


def main() -> None:
    CLUSTER.check()
    clips = clips_of(reconstruct.SEQ.value, each=reconstruct.EACH.value)
    if clips is not None:
        run_all(clips)
    elif CLUSTER.distributed:
        raise ConfigError("--cluster distributes several clips, and --seq names one: omit it.")
    else:
        reconstruct.run(Stages())


def run_all(clips: list[Clip]) -> None:
    """Reconstructs several clips with the same options, here or on a cluster."""
    single = [flag for flag in ("ground_truth", "view") if FLAGS.values()[flag]]
    if given := [*single, *reconstruct.GIVEN.of_one_clip()]:
        raise ConfigError(f"--{given[0]} belongs to one clip, and --seq names {len(clips)}: omit it.")
    output = pathlib.Path(reconstruct.OUTPUT.value or "results").expanduser().absolute()
    flags = dict(flag[2:].split("=", 1) for flag in FLAGS.changed())
    options = {name: value for name, value in flags.items() if name not in ("seq", "each", "output", *CLUSTER.names)}
    with locked(output, busy="another batch writes there"):
        state = Batch(output, clips, digest(f"{name}={value}" for name, value in options.items()))
        left = state.remaining()
        print(f"  {len(clips)} clips, {len(left)} to do. Results: {output}")
        tasks = tasks_of_clips(left)
        if not CLUSTER.distributed:
            work(state, left, run_here(tasks, worker((options, str(output), os.getcwd(), True))))
            return
        with RayCluster(CLUSTER.options) as cluster:
            shared = (options, str(output), os.getcwd(), False)
            work(state, left, cluster.run(tasks, worker, shared))


def worker(shared: tuple[dict[str, str], str, str, bool]) -> Attempt:
    """What is done with each of several clips. Its lines go to NAME.log in the output folder.

    Args:
      shared: options by name, the output folder, the working directory, and whether to show progress.
    """
    options, output, directory, shows = shared
    if os.path.isdir(directory):
        os.chdir(directory)
    loaded: dict[tuple[str, str], tuple[DUSt3R, dict[str, Any]]] = {}

    def load(checkpoint: str, precision: str, stages: Stages) -> tuple[DUSt3R, dict[str, Any]]:
        if (checkpoint, precision) not in loaded:
            loaded[checkpoint, precision] = reconstruct.load_named(checkpoint, precision, stages)
        return loaded[checkpoint, precision]

    def one(clip: Clip) -> None:
        FLAGS.assign(options | {"seq": clip.seq, "output": os.path.join(output, clip.name)})
        log = pathlib.Path(output, f"{clip.name}.log")
        with log.open("w", encoding="utf-8") as lines, contextlib.redirect_stdout(lines):
            reconstruct.run(Stages(quiet=not shows, leave=False), load)

    return lambda clip: attempted(clip, one)
