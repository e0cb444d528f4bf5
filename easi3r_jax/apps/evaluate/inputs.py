"""The flags of an evaluation, and what they name: data sets, sequences, networks."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Callable
from functools import partial
from typing import Any

from easi3r_jax.apps import cli
from easi3r_jax.apps.cluster.flags import ClusterFlags
from easi3r_jax.apps.evaluate import rendered
from easi3r_jax.apps.evaluate.configuration import weights_hash
from easi3r_jax.apps.evaluate.run import Method
from easi3r_jax.apps.evaluate.schedule import Part
from easi3r_jax.apps.evaluate.sequence_metrics import tasks_of
from easi3r_jax.apps.given import NetworkFlags
from easi3r_jax.apps.method_flags import MethodFlags, SizeFlags, checkpoint_flag, devices_flag, precision_flag
from easi3r_jax.apps.progress import Stages
from easi3r_jax.core.config import FrameConfig
from easi3r_jax.core.errors import ConfigError, InputError
from easi3r_jax.evaluation.datasets import TEST_SETS, TestSequence, TestSet, find_test_set
from easi3r_jax.io import remote
from easi3r_jax.models import DUSt3R
from easi3r_jax.synthetic import ClipConfig
from easi3r_jax.weights.load import load_model_and_metadata, on_devices

_DOC = """Evaluates the method on data sets and prints the papers' tables.

    python -m experiments.evaluate --dataset=synthetic --num_sequences=4          # rendered clips: needs no data
    python -m experiments.evaluate --dataset=davis --data_root=data/DAVIS --output=evaluations/davis \\
        --checkpoint=Junyi42/MonST3R_PO-TA-S-W_ViTLarge_BaseDecoder_512_dpt
    python -m experiments.evaluate --dataset=sintel,bonn --data_root=data/sintel,data/bonn --seeds=3
    python -m experiments.evaluate --cluster=auto --dataset=davis ...             # distributes the work (Ray)
    python -m experiments.evaluate --compare evaluations/a evaluations/b          # paired differences of two runs

Defaults are the released program's, except for optical flow: that needs --flow_checkpoint. The output folder has a
line for every sequence (results.jsonl), written as soon as it ends, and at the end report.md and results.csv. The
same command resumes an interrupted run, with or without a cluster: complete sequences of the same configuration are not
repeated, failed ones are retried. A mean over fewer sequences than the data set has is not shown, unless
--allow_missing is given; then it is marked.
"""

FLAGS = cli.Flags(_DOC, positional=True, cached=True)

_DATA = FLAGS.group("Data")
DATASET = _DATA.string(
    "dataset", "", f"One or several, separated by commas, of: {', '.join([*TEST_SETS, rendered.NAME])}."
)
DATA_ROOT = _DATA.string(
    "data_root",
    "",
    "Folder of the data set, or its address (docs/storage.md). For several: "
    "their folders, separated by commas, or one with a subfolder of each name.",
)
NUM_SEQUENCES = _DATA.integer(
    "num_sequences",
    0,
    f"Evaluate only the first sequences of each data set (0: all; for {rendered.NAME}, {rendered.NUM_CLIPS}).",
)
NUM_FRAMES = _DATA.integer("num_frames", 16, f"Frames of a clip of {rendered.NAME}.", at_least=2, at_most=10_000)
CHECKPOINT = checkpoint_flag(_DATA)
SIZE = SizeFlags(_DATA)

METHOD = MethodFlags(FLAGS, NetworkFlags)

_OUTPUT = FLAGS.group("Output")
OUTPUT = _OUTPUT.output_folder("output", "", "Folder of the run, or its address (default: evaluations/<data sets>).")
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
SEED = _COMPUTE.seed("seed", 0, f"Seed of k-means and RANSAC, and of the clips of {rendered.NAME}.")
SEEDS = _COMPUTE.integer(
    "seeds",
    1,
    "Number of seeds, from --seed on: mean and standard deviation. The clips do not change.",
    at_least=1,
    at_most=1000,
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

CLUSTER = ClusterFlags(FLAGS)

Opened = list[tuple[TestSet, list[TestSequence]]]


def seeds() -> range:
    """Of the method."""
    return range(SEED.value, SEED.value + SEEDS.value)


def check_options() -> list[str]:
    """Checks options that do not depend on data; returns the names of the data sets.

    Raises:
      ConfigError: unknown data sets, options that contradict each other.
    """
    CLUSTER.check()
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
    roots = DATA_ROOT.value.split(",") if DATA_ROOT.value else []
    if not names:
        if roots:
            raise ConfigError(f"--data_root: {rendered.NAME} needs no data; omit it.")
        return []
    if not roots:
        raise ConfigError(f"--data_root=FOLDER is required for {', '.join(names)}: see docs/datasets.md.")
    if len(roots) == 1 and len(names) > 1:
        roots = [os.path.join(roots[0], name) for name in names]
    if len(roots) != len(names):
        raise ConfigError(
            f"--data_root names {len(roots)} folders for {len(names)} data sets ({', '.join(names)}): give one for "
            "each, or a single one with a subfolder of each name."
        )
    opened = []
    for name, root in zip(names, roots, strict=True):
        test_set = find_test_set(name)
        sequences = test_set.find(pathlib.Path(remote.local(root)).expanduser())
        if SAVE.value == "metrics" and not any(tasks_of(test_set, sequence.truth) for sequence in sequences):
            raise InputError(
                f"The sequences in {root} have no ground truth, so nothing can be evaluated: add ground truth "
                "(docs/datasets.md), or save their reconstructions with --save=results."
            )
        opened.append((test_set, sequences))
    return opened


def load_networks(
    stages: Stages, precision: str, place: Callable[[Any], Any], loaded: tuple[DUSt3R, dict[str, Any]] | None = None
) -> tuple[Method, dict[str, Any]]:
    """Networks and options, and the metadata of the weights by name.

    Args:
      stages: called with progress.
      precision: of the networks.
      place: puts a network on devices.
      loaded: the network and its metadata, if they need not be read.
    """
    refiner = METHOD.known.refiner(stages)
    flow, flow_weights = METHOD.known.flow_source(precision, place)
    assert flow is None or not isinstance(flow, pathlib.Path)  # `NetworkFlags` refuses folders
    model, checkpoint = loaded or load_model_and_metadata(CHECKPOINT.value, precision, progress=stages)
    stages.close()
    model = place(METHOD.with_readout(model))
    config = dataclasses.replace(METHOD.pipeline_config(SEED.value), shared_shapes=SHARED_SHAPES.value)
    known = {"network": checkpoint, "flow": flow_weights or None, "refiner": refiner and refiner.metadata}
    known["readout"] = model.readout and dataclasses.asdict(model.readout)
    return Method(model, SIZE.frame_config(model), config, flow, refiner), known


def hashes(method: Method, known: dict[str, Any]) -> dict[str, str | None]:
    """Hashes of the weights, by name."""
    networks: dict[str, Any] = {"readout": None, "network": method.model, "flow": method.flow, "refiner": None}
    return {name: weights_hash(metadata, networks[name]) for name, metadata in known.items()}


def placing() -> Callable[[Any], Any]:
    """Puts a network on the devices of this process."""
    return partial(on_devices, count=DEVICES.value, in_parts=PARAMETERS.value == "sharded")


def parts_of(
    names: list[str],
    opened: Opened,
    frames: FrameConfig,
    configured: Callable[[TestSet, dict[str, Any]], dict[str, Any]],
) -> list[Part]:
    """The data sets in the order of their names, with the sequences to evaluate.

    Args:
      names, opened: of the data sets.
      frames: how frames are read: rendered clips have their size.
      configured: the configuration of a data set, from it and further entries of its protocol.
    """
    found = {test_set.name: (test_set, sequences) for test_set, sequences in opened}
    parts = []
    for name in names:
        drawn = None
        if name == rendered.NAME:
            drawn = clip_config(frames)
            test_set, sequences = rendered.rendered_set(NUM_SEQUENCES.value or rendered.NUM_CLIPS, SEED.value, drawn)
        else:
            test_set, sequences = found[name]
        protocol = {"clips": drawn, "seed": SEED.value} if drawn is not None else {}
        parts.append(Part.of(test_set, sequences, NUM_SEQUENCES.value, configured(test_set, protocol)))
    return parts


def clip_config(frames: FrameConfig) -> ClipConfig:
    """Clips of 3:2 with the network's long side."""
    return ClipConfig(size=(round(frames.size * 2 / 3), frames.size), num_frames=NUM_FRAMES.value)
