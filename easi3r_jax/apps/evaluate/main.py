"""Evaluates the method on data sets and prints the papers' tables.

    python -m experiments.evaluate --dataset=synthetic --num_sequences=4          # rendered clips: needs no data
    python -m experiments.evaluate --dataset=davis --data_root=data/DAVIS --output=evaluations/davis \\
        --checkpoint=Junyi42/MonST3R_PO-TA-S-W_ViTLarge_BaseDecoder_512_dpt
    python -m experiments.evaluate --dataset=sintel,bonn --data_root=data/sintel,data/bonn --seeds=3
    srun python -m experiments.evaluate --distributed --dataset=davis ...         # distributes the work over hosts
    python -m experiments.evaluate --compare evaluations/a evaluations/b          # paired differences of two runs

Defaults are the released program's, except for optical flow: that needs --flow_checkpoint. The output folder has a
line for every sequence (results.000.jsonl), written as soon as it ends, and at the end report.md and results.csv. The
same command resumes an interrupted run, on any number of hosts: complete sequences of the same configuration are not
repeated, failed ones are retried. A mean over fewer sequences than the data set has is not shown, unless
--allow_missing is given; then it is marked.
"""

from __future__ import annotations

import dataclasses
import pathlib
import shlex
import time
from functools import partial
from typing import Any

from easi3r_jax.apps import cli
from easi3r_jax.apps.compilation import Compilations
from easi3r_jax.apps.environment import device, versions
from easi3r_jax.apps.evaluate import compare, records, rendered
from easi3r_jax.apps.evaluate.configuration import describe, weights_hash
from easi3r_jax.apps.evaluate.gather import Gathering, claimed
from easi3r_jax.apps.evaluate.report import Report
from easi3r_jax.apps.evaluate.run import Method, ResultFolders, evaluate, is_done, run
from easi3r_jax.apps.evaluate.schedule import Job, Part, all_jobs
from easi3r_jax.apps.evaluate.sequence_metrics import tasks_of
from easi3r_jax.apps.evaluate.tables import outcome
from easi3r_jax.apps.given import NetworkFlags
from easi3r_jax.apps.host_flags import HostFlags
from easi3r_jax.apps.hosts import HostLostError, Hosts
from easi3r_jax.apps.method_flags import MethodFlags, SizeFlags, checkpoint_flag, devices_flag, precision_flag
from easi3r_jax.apps.progress import Stages, clock
from easi3r_jax.core.config import FrameConfig
from easi3r_jax.core.errors import ConfigError, InputError, UserError
from easi3r_jax.evaluation.datasets import TEST_SETS, TestSequence, TestSet, find_test_set
from easi3r_jax.io import export
from easi3r_jax.synthetic import ClipConfig
from easi3r_jax.weights.load import load_model_and_metadata, on_devices

FLAGS = cli.Flags(__doc__, positional=True, cached=True)

_DATA = FLAGS.group("Data")
DATASET = _DATA.string(
    "dataset", "", f"One or several, separated by commas, of: {', '.join([*TEST_SETS, rendered.NAME])}."
)
DATA_ROOT = _DATA.string(
    "data_root",
    "",
    "Folder of the data set. For several: their folders, separated by commas, or one with a subfolder of each name.",
)
NUM_SEQUENCES = _DATA.integer(
    "num_sequences",
    0,
    f"Evaluate only the first sequences of each data set (0: all; for {rendered.NAME}, {rendered.NUM_CLIPS}).",
)
NUM_FRAMES = _DATA.integer("num_frames", 16, f"Frames of a clip of {rendered.NAME}.", at_least=2)
CHECKPOINT = checkpoint_flag(_DATA)
SIZE = SizeFlags(_DATA)

METHOD = MethodFlags(FLAGS, NetworkFlags)

_OUTPUT = FLAGS.group("Output")
OUTPUT = _OUTPUT.string("output", "", "Folder of the run (default: evaluations/<data sets>).")
SAVE = _OUTPUT.choice(
    "save",
    "metrics",
    ["metrics", "results"],
    "Save the metrics, or also every sequence's result folder, as experiments.reconstruct writes it.",
)
ALLOW_MISSING = _OUTPUT.boolean(
    "allow_missing",
    False,
    "Show means over the complete sequences, marked, if some are missing; without it such means are not shown.",
)
COMPARE = _OUTPUT.string("compare", "", "Only compare the runs in two folders, RUN_A RUN_B.")

_COMPUTE = FLAGS.group("Computation")
PRECISION = precision_flag(_COMPUTE)
SEED = _COMPUTE.integer("seed", 0, f"Seed of k-means and RANSAC, and of the clips of {rendered.NAME}.", at_least=0)
SEEDS = _COMPUTE.integer(
    "seeds", 1, "Number of seeds, from --seed on: mean and standard deviation. The clips do not change.", at_least=1
)
DEVICES = devices_flag(_COMPUTE)
PARAMETERS = _COMPUTE.choice(
    "parameters",
    "replicated",
    ["replicated", "sharded"],
    "replicated: each device keeps all parameters. sharded: an equal part of each, gathered for every batch.",
)
SHARED_SHAPES = _COMPUTE.boolean(
    "shared_shapes",
    True,
    "Clips of similar lengths share compiled programs: arrays are up to an eighth longer than the clip.",
)

HOSTS = HostFlags(FLAGS)

Opened = list[tuple[TestSet, list[TestSequence]]]


def main() -> None:
    if COMPARE.value or FLAGS.rest:
        print_comparison()
        return
    with HOSTS.joined() as hosts:
        names = check_options()
        opened = open_data_sets(names)
        seeds = range(SEED.value, SEED.value + SEEDS.value)
        output = pathlib.Path(OUTPUT.value or pathlib.Path("evaluations") / "-".join(names)).expanduser()
        compilations = Compilations()
        stages = Stages(quiet=hosts.index != 0, leave=False)
        with claimed(output, hosts):
            method, weights, record = load_method(stages, hosts)
            parts = plan(names, opened, method, weights)
            results = ResultFolders(output, record) if SAVE.value == "results" else None
            jobs = all_jobs(parts, seeds)
            gathering = Gathering(hosts, jobs, output, lambda job, known: is_done(job, known, output, results))
            gathering.agree()
            if hosts.index == 0:
                for part in parts:
                    export.write_json(output / "configurations" / f"{part.digest}.json", part.configuration)
            work(gathering, hosts, len(jobs), method, results, output, stages)
            stages.close()
            cached = f"{compilations.cached} of them found in the cache"
            print(f"  {hosts.prefix}compiled {compilations.count} programs, {cached}")
            if hosts.index != 0:
                gathering.offer("after")
                return
            if hosts.others:
                print(f"  {hosts.prefix}waiting for the other processes")
            conclude(parts, seeds, record, output, gathering.collect("after")[1])


def check_options() -> list[str]:
    """Checks options that do not depend on data; returns the names of the data sets.

    Raises:
      ConfigError: unknown data sets, options that contradict each other.
    """
    METHOD.check()
    METHOD.pipeline_config(SEED.value)
    names = DATASET.value.split(",")
    known = ", ".join([*TEST_SETS, rendered.NAME])
    if not DATASET.value:
        raise ConfigError(f"--dataset is required: one or more of {known}, separated by commas.")
    for name in names:
        if name != rendered.NAME and name not in TEST_SETS:
            raise ConfigError(f"Unknown data set {name!r}: choose one or more of {known}, separated by commas.")
    if len(set(names)) < len(names):
        raise ConfigError(f"--dataset={DATASET.value} names a data set twice.")
    if rendered.NAME not in names and NUM_FRAMES.present:
        raise ConfigError(f"--num_frames applies to {rendered.NAME} only: other protocols select their own frames.")
    if SAVE.value == "results":
        alone = [name for name in names if name in TEST_SETS and find_test_set(name).single_frames]
        if alone:
            raise ConfigError(f"--save=results: {alone[0]} has single frames, for which there is no result folder.")
    return names


def open_data_sets(names: list[str]) -> Opened:
    """Protocols and sequences of the data sets on disk.

    Raises:
      ConfigError: folders that do not match the names.
      InputError: a folder that is missing, incomplete or without any ground truth.
    """
    names = [name for name in names if name != rendered.NAME]
    words = DATA_ROOT.value.split(",") if DATA_ROOT.value else []
    roots = [pathlib.Path(word).expanduser() for word in words]
    if not names:
        if roots:
            raise ConfigError(f"--data_root: {rendered.NAME} needs no data; omit it.")
        return []
    if not roots:
        raise ConfigError(f"--data_root=FOLDER is required for {', '.join(names)}: see docs/datasets.md.")
    if len(roots) == 1 and len(names) > 1:
        roots = [roots[0] / name for name in names]
    if len(roots) != len(names):
        raise ConfigError(
            f"--data_root names {len(roots)} folders for {len(names)} data sets ({', '.join(names)}): give one for "
            "each, or a single one with a subfolder of each name."
        )
    opened = []
    for name, root in zip(names, roots, strict=True):
        test_set = find_test_set(name)
        sequences = test_set.find(root)
        if SAVE.value == "metrics" and not any(tasks_of(test_set, sequence.truth) for sequence in sequences):
            raise InputError(
                f"The sequences in {root} have no ground truth, so nothing can be evaluated: add ground truth "
                "(docs/datasets.md), or save their reconstructions with --save=results."
            )
        opened.append((test_set, sequences))
    return opened


def load_method(stages: Stages, hosts: Hosts) -> tuple[Method, dict[str, str | None], dict[str, Any]]:
    """Networks and options, the hashes of the weights, and their description for `config.json`.

    Process 0 begins: processes that share its disk then find what it has downloaded and converted.
    """
    if hosts.index != 0:
        hosts.receive("loaded", 0)
    refiner = METHOD.known.refiner(stages)
    sharded = PARAMETERS.value == "sharded"
    place = partial(on_devices, count=DEVICES.value, in_parts=sharded)
    flow, flow_weights = METHOD.known.flow_source(PRECISION.value, place)
    assert flow is None or not isinstance(flow, pathlib.Path)  # `NetworkFlags` refuses folders
    model, checkpoint = load_model_and_metadata(CHECKPOINT.value, PRECISION.value, progress=stages)
    stages.close()
    hosts.publish("loaded", True)
    model = place(METHOD.with_readout(model))
    if (line := METHOD.known.chosen_flow(flow_weights)) and hosts.index == 0:
        print(line)
    config = dataclasses.replace(METHOD.pipeline_config(SEED.value), shared_shapes=SHARED_SHAPES.value)
    method = Method(model, SIZE.frame_config(model), config, flow, refiner)
    known = {"network": checkpoint, "flow": flow_weights or None, "refiner": refiner and refiner.metadata}
    known["readout"] = model.readout and dataclasses.asdict(model.readout)
    networks: dict[str, Any] = {"readout": None, "network": model, "flow": flow, "refiner": None}
    weights = {name: weights_hash(metadata, networks[name]) for name, metadata in known.items()}
    record = {"options": FLAGS.values(), "weights": known, "precision": model.precision.name, "versions": versions()}
    return method, weights, record


def plan(names: list[str], opened: Opened, method: Method, weights: dict[str, str | None]) -> list[Part]:
    """The data sets in the order of their names, with the sequences to evaluate."""
    found = {test_set.name: (test_set, sequences) for test_set, sequences in opened}
    parts = []
    for name in names:
        drawn = None
        if name == rendered.NAME:
            drawn = clip_config(method.frames)
            test_set, sequences = rendered.rendered_set(NUM_SEQUENCES.value or rendered.NUM_CLIPS, SEED.value, drawn)
        else:
            test_set, sequences = found[name]
        protocol = {"clips": drawn, "seed": SEED.value} if drawn is not None else {}
        configuration = describe(
            test_set, protocol, method.config, method.frames, precision=method.model.precision.name, weights=weights
        )
        parts.append(Part.of(test_set, sequences, NUM_SEQUENCES.value, configuration))
    return parts


def clip_config(frames: FrameConfig) -> ClipConfig:
    """Clips of 3:2 with the network's long side."""
    return ClipConfig(size=(round(frames.size * 2 / 3), frames.size), num_frames=NUM_FRAMES.value)


def work(
    gathering: Gathering,
    hosts: Hosts,
    num_jobs: int,
    method: Method,
    results: ResultFolders | None,
    output: pathlib.Path,
    stages: Stages,
) -> None:
    """Evaluates this process's shard of the remaining jobs."""
    remaining, own = gathering.divide()
    frames, began = sum(job.num_frames for job in own), time.perf_counter()
    shard = f"{len(own)} to do" if hosts.count == 1 else f"{len(remaining)} to do, {len(own)} of them here"
    print(f"  {hosts.prefix}{num_jobs} sequences, {shard}: {frames} frames; {device()}. Results: {output}")
    if own and hosts.index == 0:
        print("  Every sequence is saved as soon as it ends: after an interruption, the same command resumes.")
    ended = 0

    def report(job: Job, record: records.Record, number: int) -> None:
        nonlocal ended
        ended += job.num_frames
        stages.close()
        seconds = (time.perf_counter() - began) / ended * (frames - ended)
        time_left = f"; {clock(seconds)} left" if number < len(own) else ""
        name = f"{record.dataset} {record.sequence}" + (f", seed {job.seed}" if SEEDS.value > 1 else "")
        print(f"  {hosts.prefix}{number}/{len(own)} {name}: {outcome(record)} ({record.seconds:.1f} s{time_left})")

    run(own, lambda job: evaluate(job, method, results, stages), output, hosts.index, report)


def conclude(
    parts: list[Part], seeds: range, record: dict[str, Any], output: pathlib.Path, lost: list[HostLostError]
) -> None:
    """Prints the tables and writes the report.

    Args:
      parts, seeds: of the run.
      record: description of the networks for the report.
      output: folder of the run.
      lost: errors of processes that did not complete their shards.

    Raises:
      HostLostError: some processes were lost.
      UserError: sequences failed, and --allow_missing was not given.
    """
    known = list(records.latest(records.read(output)).values())
    own = [[r for r in part.own(known) if r.seed in seeds] for part in parts]
    network = str(record["weights"]["network"].get("source_name") or CHECKPOINT.value)
    report = Report(parts, own, seeds, network=network, allow_missing=ALLOW_MISSING.value)
    print(f"\n{report.printed()}\n")
    command = shlex.join(["python", "-m", "experiments.evaluate", *FLAGS.changed()])
    described = [{**part.configuration, "weights": record["weights"]} for part in parts]
    report.write(output, command, described)
    print(f"  report: {output / 'report.md'}")
    if report.missing:
        print(f"  INCOMPLETE: {'; '.join(report.missing)}.")
    if lost:
        raise HostLostError(
            f"{' '.join(map(str, lost))} Finished sequences are saved; the same command, with any number of hosts, "
            "completes the rest."
        )
    chosen = {(part.test_set.name, sequence.name) for part in parts for sequence in part.chosen}
    failed = {(r.dataset, r.sequence) for r in report.failed} & chosen  # others are missing, but were not attempted now
    if failed and not ALLOW_MISSING.value:
        raise UserError(
            f"Failed: {len(failed)} of {len(chosen)} sequences, so there is no result: see {output / 'report.md'} and "
            "errors.*.log. The same command retries them; --allow_missing shows means over the others, marked."
        )


def print_comparison() -> None:
    """`--compare=A,B` or `--compare A B`."""
    folders = [pathlib.Path(word).expanduser() for word in [*COMPARE.value.split(","), *FLAGS.rest] if word]
    if not COMPARE.value:
        raise ConfigError(f"Unexpected argument {FLAGS.rest[0]!r}: options are written --name=value (see --help).")
    if len(folders) != 2:
        raise ConfigError("--compare takes two folders: --compare RUN_A RUN_B.")
    print(f"  A: {folders[0]}\n  B: {folders[1]}")
    print(compare.printed(compare.compare(*folders)))
    print("  *: the 95 % bootstrap interval of the mean paired difference excludes 0 (one in twenty by chance).")
