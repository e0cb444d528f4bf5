"""Evaluates the method on data sets: the papers' tables, from one command.

    python -m experiments.evaluate --dataset=synthetic --num_sequences=4          # rendered clips: needs no data
    python -m experiments.evaluate --dataset=davis --data_root=data/DAVIS --output=evaluations/davis \\
        --checkpoint=Junyi42/MonST3R_PO-TA-S-W_ViTLarge_BaseDecoder_512_dpt
    python -m experiments.evaluate --dataset=sintel,bonn --data_root=data/sintel,data/bonn --seeds=3
    srun python -m experiments.evaluate --distributed --dataset=davis ...         # many hosts share the work
    python -m experiments.evaluate --compare evaluations/a evaluations/b          # paired differences of two runs

Defaults are the released program's. The output folder has a line for every sequence (results.000.jsonl), written the
moment it ends, and in the end report.md and results.csv. Stopped at any time, the same command goes on, on any number
of hosts: what is complete in the same configuration is not done again, what failed is tried again. An average over
fewer sequences than the data set has is not shown, unless --allow_missing, and then marked.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import pathlib
import shlex
import time
from collections.abc import Iterator
from typing import Any

from easi3r_jax.apps import cli, compilation
from easi3r_jax.apps.benchmark.timing import Compilations
from easi3r_jax.apps.environment import device, versions
from easi3r_jax.apps.evaluate import compare, records, rendered
from easi3r_jax.apps.evaluate.configuration import describe, weights_hash
from easi3r_jax.apps.evaluate.gather import Gathering
from easi3r_jax.apps.evaluate.judge import tasks_of
from easi3r_jax.apps.evaluate.report import Report
from easi3r_jax.apps.evaluate.run import Keeping, Method, evaluate, run
from easi3r_jax.apps.evaluate.schedule import Job, Part, all_jobs
from easi3r_jax.apps.evaluate.tables import HEADLINES
from easi3r_jax.apps.given import NetworkFlags
from easi3r_jax.apps.hosts import HostFlags, HostLostError, Hosts
from easi3r_jax.apps.method_flags import MethodFlags, SizeFlags, checkpoint_flag, devices_flag, dtype_flag
from easi3r_jax.apps.progress import Stages
from easi3r_jax.apps.run_folder import locked
from easi3r_jax.core.atomic import ensure_writable
from easi3r_jax.core.config import FrameConfig
from easi3r_jax.core.errors import ConfigError, InputError, UserError
from easi3r_jax.evaluation.datasets import TEST_SETS, TestSequence, TestSet, find_test_set
from easi3r_jax.io import export
from easi3r_jax.models import DUSt3R, FlowNetwork
from easi3r_jax.synthetic import ClipConfig
from easi3r_jax.weights.load import load_model_and_metadata, on_devices

FLAGS = cli.Flags(__doc__, positional=True)

_DATA = FLAGS.group("Data")
DATASET = _DATA.string(
    "dataset", "", f"One or several with commas between, of: {', '.join([*TEST_SETS, rendered.NAME])}."
)
DATA_ROOT = _DATA.string(
    "data_root",
    "",
    "Folder of the data set. Of several: their folders with commas between, or one that holds a folder of each name.",
)
NUM_SEQUENCES = _DATA.integer(
    "num_sequences",
    0,
    f"Evaluate the first so many sequences of each data set (0: all; of {rendered.NAME}, {rendered.NUM_CLIPS}).",
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
    "Keep the figures, or every sequence's result folder, too, as experiments.reconstruct writes it.",
)
ALLOW_MISSING = _OUTPUT.boolean(
    "allow_missing",
    False,
    "Show averages of the sequences that there are, marked; otherwise none unless all are there.",
)
COMPARE = _OUTPUT.string("compare", "", "Compare the runs in two folders, RUN_A RUN_B, and do nothing else.")

_COMPUTE = FLAGS.group("Computation")
DTYPE = dtype_flag(_COMPUTE)
SEED = _COMPUTE.integer("seed", 0, f"Of k-means and RANSAC, and of the clips of {rendered.NAME}.", at_least=0)
SEEDS = _COMPUTE.integer(
    "seeds", 1, "Evaluate with so many seeds, from --seed on: mean and standard deviation. Clips stay.", at_least=1
)
DEVICES = devices_flag(_COMPUTE)
PARAMETERS = _COMPUTE.choice(
    "parameters",
    "whole",
    ["whole", "scattered"],
    "Each device keeps all parameters, or, while they are not needed, an equal part of each.",
)
SHARED_SHAPES = _COMPUTE.boolean(
    "shared_shapes",
    True,
    "Clips of similar lengths share what is compiled: arrays are up to an eighth longer than the clip.",
)
CACHE = _COMPUTE.boolean("compilation_cache", True, "Keep what is compiled for later runs (XDG cache folder).")

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
        if CACHE.value:
            compilation.use_cache()
        compilations = Compilations()
        stages = Stages(quiet=hosts.index != 0, leave=False)
        with claimed(output, hosts):
            method, weights, record = load_method(stages, hosts)
            parts = plan(names, opened, method, weights)
            keeping = Keeping(output, record) if SAVE.value == "results" else None
            jobs = all_jobs(parts, seeds)
            gathering = Gathering(hosts, jobs, output, lambda job, known: is_done(job, known, output, keeping))
            gathering.agree()
            if hosts.index == 0:
                for part in parts:
                    export.write_json(output / "configurations" / f"{part.digest}.json", part.configuration)
            work(gathering, hosts, len(jobs), method, keeping, output, stages)
            stages.close()
            cached = f"{compilations.cached} of them found in the cache"
            print(f"  {hosts.mark}compiled {compilations.count} programs, {cached}")
            if hosts.index != 0:
                gathering.offer("after")
                return
            if hosts.others:
                print(f"  {hosts.mark}waits for the others")
            conclude(parts, seeds, record, output, gathering.collect("after")[1])


@contextlib.contextmanager
def claimed(output: pathlib.Path, hosts: Hosts) -> Iterator[None]:
    """Holds the folder of the run: a lock for each process, process 0's first.

    Raises:
      OutputError: another run holds it, or one of its processes, or no place to write.
      HostLostError: process 0 could not hold it.
    """
    own = f"run.{hosts.index:03d}.lock"
    busy = "another evaluation writes there"
    if hosts.index != 0:
        hosts.hear("locked", 0)
    there = sorted(path.name for path in output.glob("run.*.lock"))
    ensure_writable(output, marker=there[0] if there else own)
    if hosts.index == 0:
        for name in there:  # of a run that was larger, and part of which may live
            with locked(output, busy=busy, name=name):
                pass
    with locked(output, busy=busy, name=own):
        hosts.tell("locked", True)
        yield


def check_options() -> list[str]:
    """Refuses what no data could make right; the names of the data sets.

    Raises:
      ConfigError: unknown data sets, options that contradict each other.
    """
    METHOD.check()
    METHOD.pipeline_config(SEED.value)
    names = DATASET.value.split(",")
    known = ", ".join([*TEST_SETS, rendered.NAME])
    if not DATASET.value:
        raise ConfigError(f"--dataset names what to evaluate on: some of {known}, with commas between.")
    for name in names:
        if name != rendered.NAME and name not in TEST_SETS:
            raise ConfigError(f"Unknown data set {name!r}: choose some of {known}, with commas between.")
    if len(set(names)) < len(names):
        raise ConfigError(f"--dataset={DATASET.value} names a data set twice.")
    if rendered.NAME not in names and NUM_FRAMES.present:
        raise ConfigError(f"--num_frames is of {rendered.NAME}: protocols of data sets choose their own frames.")
    if SAVE.value == "results":
        alone = [name for name in names if name in TEST_SETS and find_test_set(name).single_frames]
        if alone:
            raise ConfigError(f"--save=results: {alone[0]} is of single frames, which give no result folder.")
    return names


def open_data_sets(names: list[str]) -> Opened:
    """Those that lie on the disk: protocols and sequences.

    Raises:
      ConfigError: folders that do not go with the names.
      InputError: a folder that is not there or not whole, or that has nothing to judge by.
    """
    names = [name for name in names if name != rendered.NAME]
    words = DATA_ROOT.value.split(",") if DATA_ROOT.value else []
    roots = [pathlib.Path(word).expanduser() for word in words]
    if not names:
        if roots:
            raise ConfigError(f"--data_root: {rendered.NAME} needs no data; leave it out.")
        return []
    if not roots:
        raise ConfigError(f"--data_root=FOLDER says where {', '.join(names)} lies: see docs/datasets.md.")
    if len(roots) == 1 and len(names) > 1:
        roots = [roots[0] / name for name in names]
    if len(roots) != len(names):
        raise ConfigError(
            f"--data_root names {len(roots)} folders for {len(names)} data sets ({', '.join(names)}): as many, or one "
            "that holds a folder of each name."
        )
    opened = []
    for name, root in zip(names, roots, strict=True):
        test_set = find_test_set(name)
        sequences = test_set.find(root)
        if SAVE.value == "metrics" and not any(tasks_of(test_set, sequence.truth) for sequence in sequences):
            raise InputError(
                f"Nothing is known of the sequences in {root}, so nothing can be judged: add what is known of them "
                "(docs/datasets.md), or keep their reconstructions with --save=results."
            )
        opened.append((test_set, sequences))
    return opened


def load_method(stages: Stages, hosts: Hosts) -> tuple[Method, dict[str, str | None], dict[str, Any]]:
    """Networks and options; the hashes of the weights; what `config.json` says of them.

    Process 0 begins: what it downloads and converts, those with the same disk find there.
    """
    if hosts.index != 0:
        hosts.hear("loaded", 0)
    refiner = METHOD.known.refiner(stages)
    flow, flow_weights = METHOD.known.flow_source()
    assert flow is None or not isinstance(flow, pathlib.Path)  # `NetworkFlags` refuses folders
    model, checkpoint = load_model_and_metadata(CHECKPOINT.value, DTYPE.value, progress=stages)
    stages.close()
    hosts.tell("loaded", True)
    scattered = PARAMETERS.value == "scattered"
    model = on_devices(model, DEVICES.value, in_parts=scattered)
    flow = on_devices(flow, DEVICES.value, in_parts=scattered)
    if METHOD.known.lacks_weights() and hosts.index == 0:
        print("  No weights for optical flow (--flow_checkpoint): the alignment goes without it.")
    config = dataclasses.replace(METHOD.pipeline_config(SEED.value), shared_shapes=SHARED_SHAPES.value)
    method = Method(model, SIZE.frame_config(model), config, flow, refiner)
    known = {"network": checkpoint, "flow": flow_weights or None, "refiner": refiner and refiner.metadata}
    networks: dict[str, DUSt3R | FlowNetwork | None] = {"network": model, "flow": flow, "refiner": None}
    weights = {name: weights_hash(metadata, networks[name]) for name, metadata in known.items()}
    record = {"options": FLAGS.values(), "weights": known, "dtype": str(model.dtype), "versions": versions()}
    return method, weights, record


def plan(names: list[str], opened: Opened, method: Method, weights: dict[str, str | None]) -> list[Part]:
    """The data sets in the order in which they were named, and what is to be done of each."""
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
            test_set, protocol, method.config, method.frames, dtype=str(method.model.dtype), weights=weights
        )
        parts.append(Part.of(test_set, sequences, NUM_SEQUENCES.value, configuration))
    return parts


def clip_config(frames: FrameConfig) -> ClipConfig:
    """Clips of 3:2 at the network's long side."""
    return ClipConfig(size=(round(frames.size * 2 / 3), frames.size), num_frames=NUM_FRAMES.value)


def work(
    gathering: Gathering,
    hosts: Hosts,
    num_jobs: int,
    method: Method,
    keeping: Keeping | None,
    output: pathlib.Path,
    stages: Stages,
) -> None:
    """Does this process's share of what is not done yet."""
    every, left = gathering.divide()
    frames, began = sum(job.num_frames for job in left), time.perf_counter()
    share = f"{len(left)} to do" if hosts.count == 1 else f"{len(every)} to do, {len(left)} of them here"
    print(f"  {hosts.mark}{num_jobs} sequences, {share}: {frames} frames; {device()}. Results: {output}")
    if left and hosts.index == 0:
        print("  Every sequence is kept the moment it ends: after an interruption, the same command goes on.")
    ended = 0

    def tell(job: Job, record: records.Record, number: int) -> None:
        nonlocal ended
        ended += job.num_frames
        stages.close()
        remaining = (time.perf_counter() - began) / ended * (frames - ended)
        time_left = f"; {clock(remaining)} left" if number < len(left) else ""
        name = f"{record.dataset} {record.sequence}" + (f", seed {job.seed}" if SEEDS.value > 1 else "")
        print(f"  {hosts.mark}{number}/{len(left)} {name}: {outcome(record)} ({record.seconds:.1f} s{time_left})")

    run(left, lambda job: evaluate(job, method, keeping, stages), output, hosts.index, tell)


def outcome(record: records.Record) -> str:
    """A sequence's main figures, or why there are none."""
    if record.error is not None:
        return f"FAILED: {record.error}"
    found = {name: value for figures in record.figures.values() for name, value in figures.items()}
    shown = [f"{name} {value:.3f}" for name in HEADLINES if (value := found.get(name)) is not None]
    return ", ".join(shown) or "nothing to judge"


def is_done(job: Job, known: dict[records.Key, records.Record], output: pathlib.Path, keeping: Keeping | None) -> bool:
    """Whether a job is complete: without an error, with the frames that there are now, and kept if it is to be."""
    record = known.get(job.key)
    if record is None or record.error is not None or record.num_frames != job.num_frames:
        return False
    return keeping is None or (output / keeping.folder(job) / "scene.npz").is_file()


def conclude(
    parts: list[Part], seeds: range, record: dict[str, Any], output: pathlib.Path, lost: list[HostLostError]
) -> None:
    """Prints the tables and writes the report.

    Args:
      parts, seeds: of the run.
      record: what the report says of the networks.
      output: folder of the run.
      lost: what became of processes that did not do all of their share.

    Raises:
      HostLostError: there are such.
      UserError: sequences failed, and nobody allowed that.
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
            f"{' '.join(map(str, lost))} What was finished is kept; the same command, with any number of hosts, does "
            "the rest."
        )
    chosen = {(part.test_set.name, sequence.name) for part in parts for sequence in part.chosen}
    failed = {(r.dataset, r.sequence) for r in report.failed} & chosen  # others are missing, but were not tried now
    if failed and not ALLOW_MISSING.value:
        raise UserError(
            f"Failed: {len(failed)} of {len(chosen)} sequences, so there is no result: see {output / 'report.md'} and "
            "errors.*.log. The same command tries them again; --allow_missing shows averages of the others, marked."
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
    print("  *: the 95 % bootstrap interval of the mean paired difference does not hold 0 (one in twenty by chance).")


def clock(seconds: float) -> str:
    """e.g. "40 s", "12 min", "3 h 05 min"."""
    if seconds < 90:
        return f"{math.ceil(seconds)} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
