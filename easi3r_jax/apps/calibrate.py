"""Calibrates the motion cue to a network: fits a read-out of its attention on clips with known masks.

    python -m experiments.calibrate --output=readout.json                    # the embedded network, rendered clips
    python -m experiments.calibrate --checkpoint=FILE.pth --clips=clips/ --output=checkpoints/NAME
    python -m experiments.calibrate --checkpoint=FILE.pth --dataset=davis --data_root=data/DAVIS --output=readout.json
    python -m experiments.reconstruct --seq=my_video.mp4 --readout=readout.json

Easi3R's published formula is the same for every network. The read-out weights moments of every decoder layer and head
instead. It is fitted by logistic regression on some clips. The regularisation, the threshold, and the weight of objects
that stand still in a clip's motionless twin are chosen on others: of the settings whose score hardly responds to these
objects (--most_in_twins), the one with the best IoU of clip and twin together. Clips without twins are fitted and
judged alone. The last table is of a third part. An output that ends in .json is a file for --readout; any other one is
a copy of the checkpoint that carries the read-out.
"""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
import shutil
from typing import Any

import jax
import numpy as np

from easi3r_jax import motion
from easi3r_jax.apps import calibration_clips, cli, flag_values
from easi3r_jax.apps.calibration_metrics import SEGMENTATION, Figures, Pairs, Seen, chosen, measured
from easi3r_jax.apps.method_flags import checkpoint_flag, precision_flag
from easi3r_jax.apps.progress import Stages, table
from easi3r_jax.apps.study.clips import StudyClip
from easi3r_jax.core.atomic import atomic_folder, ensure_file_writable, ensure_writable
from easi3r_jax.core.config import ATTENTION_MOMENTS, GRAM_MOMENTS, ReadoutConfig
from easi3r_jax.core.errors import ConfigError, InputError
from easi3r_jax.inference import pipeline
from easi3r_jax.models import DUSt3R
from easi3r_jax.synthetic.clips import ClipConfig
from easi3r_jax.training.readout import Tokens, fit_readout, joined
from easi3r_jax.weights import convert
from easi3r_jax.weights.checkpoint import is_checkpoint
from easi3r_jax.weights.load import EMBEDDED, load_model_and_metadata
from easi3r_jax.weights.readout import READOUT, save_readout

FLAGS = cli.Flags(__doc__, cached=True)

_CLIPS = FLAGS.group("Clips")
CHECKPOINT = checkpoint_flag(_CLIPS)
CLIPS = _CLIPS.string(
    "clips", "", "Folder of clips NAME, with twins NAME_still or without; empty: clips rendered here."
)
DATASET = _CLIPS.string(
    "dataset", "", "Instead of --clips, a data set with masks: davis, davis2016, davis2017, custom."
)
DATA_ROOT = _CLIPS.string("data_root", "", "Folder of the data set (docs/datasets.md).")
NUM = _CLIPS.integer(
    "num", 60, "Clips to fit; if there are too few for all three numbers, three fifths, a fifth, a fifth.", at_least=1
)
DEV_NUM = _CLIPS.integer("dev_num", 16, "Clips on which the settings are chosen.", at_least=1)
TEST_NUM = _CLIPS.integer("test_num", 24, "Clips of the table.", at_least=1)
NUM_FRAMES = _CLIPS.integer(
    "num_frames",
    16,
    "Frames of a rendered clip; the most that are read of a data set's sequence.",
    at_least=2,
    at_most=10_000,
)
SEED = _CLIPS.seed("seed", 1, "Seed of rendered clips and of k-means.")
GRAPH = _CLIPS.string("graph", "swinstride-5-noncyclic", "Which frames are paired.")

_FIT = FLAGS.group("Fit")
STATISTICS = _FIT.choice(
    "statistics",
    "gram",
    ("gram", "attention"),
    "What is weighted: attention (mean and deviation of its maps) or gram (these, and deviations of similarities of "
    "queries and keys; a little more work in the decoder).",
)
HARD = _FIT.string("hard_weights", "0,0.3,0.5,0.6,0.7", "Tried fractions of the weight of the twins' objects.")
REGULARISATION = _FIT.string("regularisations", "0.01,0.1", "Tried regularisations.")
AT_LEAST = _FIT.string("at_least", "0.2,0.25,0.3,0.35,0.4", "Tried minimum thresholds of the masks: probabilities.")

MOST_IN_TWINS = _FIT.number(
    "most_in_twins",
    0.6,
    "Highest AUC in the twins, of the objects that would move, that the chosen setting may have (chance: 0.5).",
    at_most=1.0,
)

_OUTPUT = FLAGS.group("Output")
OUTPUT = _OUTPUT.string("output", "readout.json", "A .json file, or the folder of a checkpoint to write.")
PRECISION = precision_flag(_OUTPUT)

#: Weight of the twins' objects, regularisation, minimum threshold.
Choice = tuple[float, float, float]
_TOKENS_PER_CLIP = 20_000  # of larger clips, so many are drawn


def main() -> None:
    stages = Stages()
    settings()
    if (output := output_path()).suffix == ".json":
        ensure_file_writable(output)
    else:
        ensure_writable(output, marker="config.json")
    model, _ = load_model_and_metadata(CHECKPOINT.value, PRECISION.value, progress=stages)
    stages.close()
    parts = split(model)
    counts = [count for count, _ in parts]
    print(f"  {counts[0]} clips to fit, {counts[1]} to choose, {counts[2]} to test")
    total, seen = sum(counts), []
    for purpose, (_, part) in zip(("fit", "choose the settings on", "test"), parts, strict=True):
        seen.append([])
        for sample in part:
            stages("clips", sum(map(len, seen)), total, sample.name)
            clips = (sample.moving, sample.still)
            seen[-1].append(tuple(None if clip is None else observed(model, clip) for clip in clips))
        if not any(moving.moving.any() for moving, _ in seen[-1]):
            raise InputError(f"Nothing moves in the clips to {purpose}: calibration needs masks of dynamic regions.")
    stages("clips", total, total)
    stages.close()
    report(model, *seen)


def report(model: DUSt3R, fit: Pairs, development: Pairs, test: Pairs) -> None:
    """Fits, chooses, tests, prints the tables, and writes the read-out."""
    stages = Stages()
    hard, regularisation, at_least = settings()
    seen = [one for one in itertools.chain(*fit) if one is not None]
    tokens = joined([tokens_of(one, number) for number, one in enumerate(seen)])
    if not tokens.hard.any():
        hard = [0.0]  # a weight of nothing
    rows: dict[Choice, Figures] = {}
    readouts: dict[Choice, ReadoutConfig] = {}
    for done, (weight, strength) in enumerate(itertools.product(hard, regularisation)):
        stages("fit", done, len(hard) * len(regularisation))
        weights, bias = fit_readout(tokens, hard_weight=weight, regularisation=strength)
        readout = readout_of(model, weights, bias, (weight, strength), len(fit))
        for threshold, row in zip(at_least, measured(development, readout, at_least), strict=True):
            rows[weight, strength, threshold] = row
            readouts[weight, strength, threshold] = dataclasses.replace(readout, at_least=threshold)
    stages("fit", len(hard) * len(regularisation), len(hard) * len(regularisation))
    stages.close()
    choice, best = chosen(rows, MOST_IN_TWINS.value)
    print("  Development clips, at the best threshold of each row, and the chosen row (*)")
    shown = dict.fromkeys([*_best_thresholds(rows), choice])
    lines = [
        (
            *map("{:g}".format, c),
            *_shown(rows[c].means),
            *map("{:.3f}".format, rows[c].below(rows[best])),
            "*" * (c == choice),
        )
        for c in sorted(shown)
    ]
    names = tuple(rows[best].means)
    print(table(lines, ("twins' weight", "regularisation", "threshold", *names, "below best", "±", "")))
    cues: dict[str, ReadoutConfig | str] = {"published formula": "formula"}
    if STATISTICS.value == "gram":
        cues["VGGT4D's cue, on pairs"] = "gram"
    cues |= {name: name for name in ("mean_src", "std_src", "mean_ref", "std_ref")} | {"read-out": readouts[choice]}
    print("  Test clips")
    print(table([(name, *_shown(measured(test, cue)[0].means)) for name, cue in cues.items()], ("", *names)))
    write(readouts[choice])


def output_path() -> pathlib.Path:
    """The file or folder to write."""
    return pathlib.Path(OUTPUT.value).expanduser()


def settings() -> tuple[list[float], list[float], list[float]]:
    """What is tried: weights of the twins' objects, regularisations, minimum thresholds.

    Raises:
      ConfigError: no numbers, or numbers out of range; flags that contradict each other.
    """
    if CLIPS.value and DATASET.value:
        raise ConfigError("--clips and --dataset: give one of them.")
    if bool(DATASET.value) != bool(DATA_ROOT.value):
        raise ConfigError("--dataset and --data_root belong together: give both or neither.")
    return _numbers(HARD, 0, 1), _numbers(REGULARISATION, 0, flag_values.MOST), _numbers(AT_LEAST, 0, 1)


def moments_used() -> tuple[str, ...]:
    """Names of the moments that the read-out weights."""
    return ATTENTION_MOMENTS + (GRAM_MOMENTS if STATISTICS.value == "gram" else ())


def split(model: DUSt3R) -> list[calibration_clips.Part]:
    """Clips to fit, to choose on, and to test, each with their number.

    Raises:
      InputError: too few clips.
    """
    counts = (NUM.value, DEV_NUM.value, TEST_NUM.value)
    if DATASET.value:
        root = pathlib.Path(DATA_ROOT.value).expanduser()
        return calibration_clips.of_data_set(DATASET.value, root, counts, model.config, NUM_FRAMES.value)
    if CLIPS.value:
        return calibration_clips.of_folder(pathlib.Path(CLIPS.value).expanduser(), counts, model.config)
    config = ClipConfig(size=model.config.image_size, num_frames=NUM_FRAMES.value)
    return calibration_clips.rendered(SEED.value, counts, config)


def observed(model: DUSt3R, clip: StudyClip) -> Seen:
    """The first pass over a clip."""
    assert clip.truth.masks is not None
    features = pipeline.encode(model, clip.frames)
    edges = pipeline.clip_edges(len(clip.frames.rgb), GRAPH.value)
    grid = model.grid(clip.frames.rgb.shape[1:3])
    statistics = pipeline.attention_pass(model, features, edges, grid, gram=STATISTICS.value == "gram")
    labels = _cluster(features, grid, SEGMENTATION, jax.random.key(SEED.value))
    statistics = jax.device_get(statistics)  # of many clips: not in the accelerator's memory
    return Seen(statistics, labels, np.asarray(clip.truth.masks), clip.movers, grid)


def tokens_of(seen: Seen, number: int) -> Tokens:
    """The tokens of a clip, or some of them: dynamic where most pixels are."""
    moments = np.asarray(_centred(seen.statistics, seen.grid, moments_used())[0])
    moments = moments.reshape(-1, moments.shape[-1])
    dynamic = tokens_in(seen.moving, seen.grid)
    hard = np.zeros_like(dynamic) if seen.movers is None else tokens_in(seen.movers, seen.grid)
    if len(dynamic) > _TOKENS_PER_CLIP:
        some = np.random.default_rng((SEED.value, number)).choice(len(dynamic), _TOKENS_PER_CLIP, replace=False)
        moments, dynamic, hard = moments[some], dynamic[some], hard[some]
    return Tokens(moments, dynamic, hard)


def tokens_in(masks: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """(T h w,) bool, tokens of which more than half is in the masks (T, H, W)."""
    blocks = masks.reshape(len(masks), grid[0], masks.shape[1] // grid[0], grid[1], masks.shape[2] // grid[1])
    return (blocks.mean(axis=(2, 4)) > 0.5).ravel()


def readout_of(
    model: DUSt3R, weights: np.ndarray, bias: float, choice: tuple[float, float], count: int
) -> ReadoutConfig:
    """The read-out with these weights."""
    what = DATASET.value or CLIPS.value or f"rendered, seed {SEED.value}"
    return ReadoutConfig(
        num_layers=model.config.dec_depth,
        num_heads=model.config.dec_heads,
        weights=tuple(float(f"{w:.6g}") for w in weights),
        bias=float(f"{bias:.6g}"),
        at_least=0.0,
        origin=f"experiments.calibrate: {count} clips ({what}), twins' weight {choice[0]:g}, "
        f"regularisation {choice[1]:g}",
        moments=moments_used(),
    )


def write(readout: ReadoutConfig) -> None:
    """Writes the read-out to a file, or with a copy of the checkpoint to a folder."""
    output = output_path()
    if output.suffix == ".json":
        save_readout(output, readout)
        print(f"  read-out: {output} (--readout={output})")
        return
    source = EMBEDDED if CHECKPOINT.value == "embedded" else pathlib.Path(CHECKPOINT.value).expanduser()
    with atomic_folder(output, marker="config.json") as folder:
        if is_checkpoint(source):
            shutil.copytree(source, folder, dirs_exist_ok=True)
        else:
            convert.convert(source, folder)
        save_readout(folder / READOUT, readout)
    print(f"  checkpoint with its read-out: {output} (--checkpoint={output})")


def _numbers(holder: Any, low: float, below: float) -> list[float]:
    numbers = [flag_values.number_of(word) for word in holder.value.split(",")]
    known = [n for n in numbers if n is not None and low <= n < below and (n == 0 or n >= flag_values.LEAST_SIZE)]
    if len(known) < len(numbers):
        raise ConfigError(
            f"--{holder.name}={holder.value}: it must be numbers from {low:g} to below {below:g}, separated by commas."
        )
    return known


def _best_thresholds(rows: dict[Choice, Figures]) -> list[Choice]:
    """Each weight and regularisation with its best threshold."""
    of_pair: dict[tuple[float, float], Choice] = {}
    for choice in sorted(rows, key=lambda choice: rows[choice].joint.mean()):
        of_pair[choice[:2]] = choice
    return [of_pair[pair] for pair in dict.fromkeys(choice[:2] for choice in rows)]


def _shown(row: dict[str, float]) -> tuple[str, ...]:
    return tuple("–" if np.isnan(value) else f"{value:.3f}" for value in row.values())


_cluster = jax.jit(motion.cluster_labels, static_argnames=("grid", "config"))
_centred = jax.jit(motion.centred_moments, static_argnames=("grid", "moments"))
