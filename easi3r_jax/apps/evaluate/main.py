"""`python -m experiments.evaluate`: from the flags to the report."""

from __future__ import annotations

import contextlib
import pathlib
import shlex
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax

from easi3r_jax.apps.cluster.local import run_here
from easi3r_jax.apps.cluster.ray_cluster import RayCluster
from easi3r_jax.apps.compilation import Compilations
from easi3r_jax.apps.environment import device, versions
from easi3r_jax.apps.evaluate import compare, inputs, records
from easi3r_jax.apps.evaluate.configuration import describe
from easi3r_jax.apps.evaluate.inputs import ALLOW_MISSING, CHECKPOINT, COMPARE, FLAGS
from easi3r_jax.apps.evaluate.report import Report
from easi3r_jax.apps.evaluate.run import ResultFolders, attempted, evaluate, is_done
from easi3r_jax.apps.evaluate.schedule import Part, all_jobs
from easi3r_jax.apps.evaluate.work import Lines, tasks_of_jobs, work
from easi3r_jax.apps.evaluate.worker import Shared, worker
from easi3r_jax.apps.progress import Stages
from easi3r_jax.apps.run_folder import LOCK, locked, sweep
from easi3r_jax.core.atomic import ensure_writable
from easi3r_jax.core.errors import ConfigError, UserError
from easi3r_jax.io import export, remote


def main() -> None:
    if COMPARE.value or FLAGS.rest:
        print_comparison()
        return
    names = inputs.check_options()
    opened = inputs.open_data_sets(names)
    named = inputs.OUTPUT.value or pathlib.Path("evaluations") / "-".join(names)
    if inputs.CLUSTER.distributed and inputs.SAVE.value == "results" and remote.is_address(str(named)):
        raise ConfigError("--save=results on a cluster: --output must be a folder that all of its machines share.")
    compilations, stages = Compilations(), Stages(leave=False)
    with remote.writing(named, progress=stages) as target, claimed(target.folder), connected() as cluster:
        output = target.folder
        precision, place = inputs.PRECISION.value, inputs.placing()
        if cluster is not None:  # this process describes the networks, the workers use them
            precision, place = cluster.precision(precision), lambda network: network
        method, weights = inputs.load_networks(stages, precision, place)
        if line := inputs.METHOD.known.chosen_flow(weights["flow"]):
            print(line)
        record = {
            "options": FLAGS.values(),
            "weights": weights,
            "precision": method.model.precision.name,
            "versions": versions(),
        }
        parts = inputs.parts_of(
            names,
            opened,
            method.frames,
            partial(
                describe,
                pipeline=method.config,
                frames=method.frames,
                precision=method.model.precision.name,
                weights=inputs.hashes(method, weights),
            ),
        )
        results = ResultFolders(output.absolute(), record) if inputs.SAVE.value == "results" else None
        jobs = all_jobs(parts, inputs.seeds())
        known = records.latest(records.read(output))
        left = [job for job in jobs if not is_done(job, known, output, results)]
        for part in parts:
            export.write_json(output / "configurations" / f"{part.digest}.json", part.configuration)
        where = device() if cluster is None else f"{cluster} ({inputs.CLUSTER.options.address})"
        frames = sum(job.num_frames for job in left)
        print(f"  {len(jobs)} sequences, {len(left)} to do: {frames} frames; {where}. Results: {target.address}")
        tasks, lines = tasks_of_jobs(left), Lines(left, several_seeds=len(inputs.seeds()) > 1)
        if cluster is None:
            attempt = partial(evaluate, method=method, results=results, progress=stages)
            by_key = {job.key: job for job in left}
            ended = run_here(tasks, lambda key: attempted(by_key[key], attempt))
        else:
            shared = Shared.of(method, weights["network"], parts, results)
            ended = cluster.run(tasks, worker, shared, lambda: lines.status(cluster.doing()))
        work(left, ended, target, stages, lines)
        stages.close()
        if cluster is None:
            cached = f"{compilations.cached} of them found in the cache"
            print(f"  compiled {compilations.count} programs, {cached}")
        conclude(parts, inputs.seeds(), record, target, cluster)


@contextlib.contextmanager
def claimed(output: pathlib.Path) -> Iterator[None]:
    """Locks the folder of the run.

    Raises:
      OutputError: another run holds it, it holds something else, or it cannot be written.
    """
    earlier = sorted(path.name for path in output.glob("run.*.lock"))  # of earlier versions
    ensure_writable(output, marker=earlier[0] if earlier else LOCK)
    with locked(output, busy="another evaluation writes there"):
        sweep(output)
        yield


@contextlib.contextmanager
def connected() -> Iterator[RayCluster | None]:
    """The cluster that the flags ask for; None for this process alone."""
    if not inputs.CLUSTER.distributed:
        yield None
        return
    jax.config.update("jax_platforms", "cpu")  # accelerators are the workers'
    with RayCluster(inputs.CLUSTER.options) as cluster:
        yield cluster


def conclude(
    parts: list[Part], seeds: range, record: dict[str, Any], target: remote.Output, cluster: RayCluster | None
) -> None:
    """Prints the tables and writes the report.

    Args:
      parts, seeds: of the run.
      record: description of the networks for the report.
      target: folder of the run.
      cluster: that the command ran on, or None.

    Raises:
      UserError: sequences failed, and --allow_missing was not given.
    """
    known, page = list(records.latest(records.read(target.folder)).values()), f"{target.address}/report.md"
    own = [[r for r in part.own(known) if r.seed in seeds] for part in parts]
    network = str(record["weights"]["network"].get("source_name") or CHECKPOINT.value)
    report = Report(parts, own, seeds, network=network, allow_missing=ALLOW_MISSING.value)
    print(f"\n{report.printed()}\n")
    command = shlex.join(["python", "-m", "experiments.evaluate", *FLAGS.changed()])
    described = [{**part.configuration, "weights": record["weights"]} for part in parts]
    if cluster is None:
        report.write(target.folder, command, described)
    else:
        report.write(target.folder, command, described, cluster.usage, cluster.seconds)
    print(f"  report: {page}")
    if report.missing:
        print(f"  INCOMPLETE: {'; '.join(report.missing)}.")
    chosen = {(part.test_set.name, sequence.name) for part in parts for sequence in part.chosen}
    failed = {(r.dataset, r.sequence) for r in report.failed} & chosen  # others are missing, but were not attempted now
    if failed and not ALLOW_MISSING.value:
        raise UserError(
            f"Failed: {len(failed)} of {len(chosen)} sequences, so there is no result: see {page} and "
            "errors.log. The same command retries them; --allow_missing shows means over the others, marked."
        )


def print_comparison() -> None:
    """`--compare=A,B` or `--compare A B`."""
    named = [word for word in [*COMPARE.value.split(","), *FLAGS.rest] if word]
    if not COMPARE.value:
        raise ConfigError(f"Unexpected argument {FLAGS.rest[0]!r}: options are written --name=value (see --help).")
    if len(named) != 2:
        raise ConfigError("--compare takes two folders: --compare RUN_A RUN_B.")
    folders = [pathlib.Path(remote.local(word, result=True)).expanduser() for word in named]
    print(f"  A: {named[0]}\n  B: {named[1]}")
    differences, notes = compare.compare(*folders)
    print(compare.printed(differences))
    for note in notes:
        print(f"  {note}")
    print("  *: the 95 % bootstrap interval of the mean paired difference excludes 0 (one in twenty by chance).")
