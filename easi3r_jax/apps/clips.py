"""`python -m experiments.reconstruct`: one clip, or many of them, here or on a cluster."""

from __future__ import annotations

import dataclasses
import glob
import os
import pathlib
import shutil
import time
from typing import Any

import jax
import numpy as np

from easi3r_jax.apps import reconstruct
from easi3r_jax.apps.batch import Batch, Clip, attempted, clips_of, digest, tasks_of_clips, work
from easi3r_jax.apps.cluster.local import run_here
from easi3r_jax.apps.cluster.ray_cluster import RayCluster
from easi3r_jax.apps.cluster.tasks import STATUS_SECONDS, Attempt
from easi3r_jax.apps.compilation import use_cache
from easi3r_jax.apps.distributed import is_first
from easi3r_jax.apps.progress import Stages
from easi3r_jax.apps.reconstruct import CLUSTER, FLAGS, HOSTS
from easi3r_jax.apps.run_folder import locked
from easi3r_jax.core.errors import ConfigError
from easi3r_jax.io import remote
from easi3r_jax.models import DUSt3R


def main() -> None:
    CLUSTER.check()
    reconstruct.check_hosts()
    clips = clips_of(reconstruct.SEQ.value, each=reconstruct.EACH.value)
    if clips is not None:
        if HOSTS.requested:
            raise ConfigError(
                f"--distributed and --coordinator compute one clip together, and --seq names {len(clips)}: give these "
                "to a --cluster."
            )
        run_all(clips)
    elif CLUSTER.distributed:
        raise ConfigError("--cluster distributes several clips, and --seq names one: omit it.")
    else:
        with HOSTS.joined():
            reconstruct.run(Stages(quiet=not is_first()))


def run_all(clips: list[Clip]) -> None:
    """Reconstructs several clips with the same options, here or on a cluster."""
    single = [flag for flag in ("ground_truth", "view") if FLAGS.values()[flag]]
    if given := [*single, *reconstruct.GIVEN.of_one_clip(), *reconstruct.CLOUDS.of_one_clip()]:
        raise ConfigError(f"--{given[0]} belongs to one clip, and --seq names {len(clips)}: omit it.")
    reconstruct.check_options()
    reconstruct.METHOD.pipeline_config(reconstruct.SEED.value)
    if remote.is_address(reconstruct.OUTPUT.value):
        raise ConfigError("--output of several clips must be a folder; upload it when they are done.")
    output = pathlib.Path(reconstruct.OUTPUT.value or "results").expanduser().absolute()
    flags = dict(flag[2:].split("=", 1) for flag in FLAGS.changed())
    options = {name: value for name, value in flags.items() if name not in ("seq", "each", "output", *CLUSTER.names)}
    with locked(output, busy="another batch writes there"):
        for clip in clips:  # not of others: another program may be writing its result here
            for path in output.glob(f".{glob.escape(clip.name)}.tmp-*"):
                shutil.rmtree(path, ignore_errors=True)
        state = Batch(output, clips, digest(f"{name}={value}" for name, value in options.items()))
        left = state.remaining()
        tasks = tasks_of_clips(left)
        if not CLUSTER.distributed:
            print(f"  {len(clips)} clips, {len(left)} to do. Results: {output}")
            work(state, left, run_here(tasks, worker(Shared(options, output))))
            return
        jax.config.update("jax_platforms", "cpu")  # accelerators are the workers'
        with RayCluster(CLUSTER.options) as cluster:
            print(f"  {len(clips)} clips, {len(left)} to do; {cluster}. Results: {output}")
            precision = cluster.precision(reconstruct.PRECISION.value)
            stages = Stages(leave=False)
            model, metadata = reconstruct.load_named(reconstruct.CHECKPOINT.value, precision, stages)
            stages.close()
            loaded = (jax.tree.map(np.asarray, model), metadata)
            shared = Shared(options, output, os.getcwd(), FLAGS.keeps_compiled, loaded)
            said = time.monotonic()

            def status() -> None:
                nonlocal said
                if time.monotonic() - said > STATUS_SECONDS:
                    said = time.monotonic()
                    print(f"  {'; '.join(cluster.doing())}", flush=True)

            work(state, left, cluster.run(tasks, worker, shared, status))


@dataclasses.dataclass(frozen=True)
class Shared:
    """What is the same for all clips.

    Attributes:
      options: values of flags that differ from their defaults.
      output: folder of the results.
      folder: on a worker of a cluster, the driver's working directory: relative paths are within it.
      keep: on a worker, whether to keep compiled programs.
      loaded: on a worker, the network, host arrays, and its metadata.
    """

    options: dict[str, str]
    output: pathlib.Path
    folder: str = ""
    keep: bool = False
    loaded: tuple[DUSt3R, dict[str, Any]] | None = None


def worker(shared: Shared) -> Attempt:
    """What is done with each of several clips. Its lines go to NAME.log in the output folder."""
    on_cluster = shared.loaded is not None
    if on_cluster and os.path.isdir(shared.folder):
        os.chdir(shared.folder)
    if shared.keep:
        use_cache()
    kept = []
    if shared.loaded is not None:  # once: host arrays would be sent to the device with every call
        kept.append((jax.device_put(shared.loaded[0]), shared.loaded[1]))

    def load(checkpoint: str, precision: str, stages: Stages) -> tuple[DUSt3R, dict[str, Any]]:
        if not kept:  # the flags are those of all clips
            kept.append(reconstruct.load_named(checkpoint, precision, stages))
        return kept[0]

    def one(clip: Clip) -> None:
        FLAGS.assign(shared.options | {"seq": clip.seq, "output": str(shared.output / clip.name)})
        reconstruct.run(Stages(quiet=on_cluster, leave=False), load)

    return lambda clip: attempted(clip, one, shared.output / f"{clip.name}.log")
