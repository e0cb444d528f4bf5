"""What runs on a worker of a cluster."""

from __future__ import annotations

import dataclasses
import os
from functools import partial
from typing import Any

import jax
import numpy as np

from easi3r_jax.apps.cluster.tasks import Attempt
from easi3r_jax.apps.compilation import use_cache
from easi3r_jax.apps.evaluate import inputs
from easi3r_jax.apps.evaluate.records import Key
from easi3r_jax.apps.evaluate.run import Method, Outcome, ResultFolders, attempted, evaluate
from easi3r_jax.apps.evaluate.schedule import Part, all_jobs
from easi3r_jax.apps.progress import Stages
from easi3r_jax.core.errors import InputError
from easi3r_jax.models import DUSt3R


@dataclasses.dataclass(frozen=True)
class Shared:
    """What workers of a cluster get from the driver.

    Attributes:
      flags: values of those that differ from their defaults.
      folder: the driver's working directory: relative paths are within it.
      keep: whether to keep compiled programs.
      loaded: the network, host arrays, and its metadata.
      configurations: of the data sets, by name.
      results: writes result folders, or None.
    """

    flags: dict[str, str]
    folder: str
    keep: bool
    loaded: tuple[DUSt3R, dict[str, Any]]
    configurations: dict[str, dict[str, Any]]
    results: ResultFolders | None

    @classmethod
    def of(cls, method: Method, metadata: dict[str, Any], parts: list[Part], results: ResultFolders | None) -> Shared:
        """What the flags of this process say."""
        return cls(
            flags=dict(flag[2:].split("=", 1) for flag in inputs.FLAGS.changed()),
            folder=os.getcwd(),
            keep=inputs.FLAGS.keeps_compiled,
            loaded=(jax.tree.map(np.asarray, method.model), metadata),
            configurations={part.test_set.name: part.configuration for part in parts},
            results=results,
        )


def worker(shared: Shared) -> Attempt:
    """What a worker does with a job's key: its outcome. Called once by every worker."""
    if os.path.isdir(shared.folder):
        os.chdir(shared.folder)
    inputs.FLAGS.assign(shared.flags)
    if shared.keep:
        use_cache()
    names, stages = inputs.check_options(), Stages(quiet=True)
    model, metadata = shared.loaded
    loaded = (jax.device_put(model), metadata)  # once: host arrays would be sent to the device with every call
    method, _ = inputs.load_networks(stages, model.precision.name, inputs.placing(), loaded)
    opened = inputs.open_data_sets(names)
    parts = inputs.parts_of(names, opened, method.frames, lambda test_set, _: shared.configurations[test_set.name])
    jobs = {job.key: job for job in all_jobs(parts, inputs.seeds())}

    def attempt(key: Key) -> Outcome:
        if key not in jobs:
            raise InputError(f"A worker's data lacks {key[0]} {key[1]}: all machines need the same data.")
        return attempted(jobs[key], partial(evaluate, method=method, results=shared.results, progress=stages))

    return attempt
