"""Compares motion cues on clips with moving objects and on their motionless twins.

    python -m experiments.study                                    # the embedded network on clips rendered here
    python -m experiments.study --tuned=runs/tuned/model           # compared with one fine-tuned on dynamic clips
    python -m experiments.study --clips=clips/ --num=16            # on clips of experiments.synthesize
    python -m experiments.study --systems=plain,flow,flow+attention,flow+truth --notwins

Scores of the first pass are compared, and full reconstructions by --systems: each is its parts, joined by +. Parts:
plain (DUSt3R alone), flow (by dense inverse search), a source of masks (attention, formula, gram, rigid, match; truth:
the true masks), single-pass (masks count for the flow only, not in the attention of a second pass), reprojection (masks
refined by reprojection). --systems= compares scores alone.

Metrics of a clip are reported beside those of its twin (reconstructions: unless --notwins): the same scene, camera path
and noise without motion. "AUC, still" scores the objects that would move against the rest of the twin: 0.5 means that a
score responds to nothing but motion. Choices are made on development clips and evaluated on test clips. The result is a
folder: results.json with every metric of every clip, and report.md with the tables.
"""

from __future__ import annotations

import itertools
import pathlib
import time
from collections.abc import Iterator

from easi3r_jax.apps import cli
from easi3r_jax.apps.environment import versions
from easi3r_jax.apps.method_flags import precision_flag
from easi3r_jax.apps.progress import Stages, table
from easi3r_jax.apps.study import clips as study_clips
from easi3r_jax.apps.study import report, scores, systems
from easi3r_jax.apps.study.clips import Twins
from easi3r_jax.core.atomic import atomic_folder, ensure_writable
from easi3r_jax.core.config import AlignConfig, PipelineConfig, SegmentationConfig
from easi3r_jax.core.errors import ConfigError, InputError
from easi3r_jax.core.pairs import make_edges
from easi3r_jax.inference import pipeline
from easi3r_jax.io import export
from easi3r_jax.models import DUSt3R
from easi3r_jax.synthetic.clips import ClipConfig
from easi3r_jax.weights.load import load_model_and_metadata

FLAGS = cli.Flags(__doc__, cached=True)

_NETWORK = FLAGS.group("Networks")
CHECKPOINT = _NETWORK.string("checkpoint", "embedded", "Weights, as for experiments.reconstruct.")
TUNED = _NETWORK.string("tuned", "", "Weights of the same network after fine-tuning on dynamic clips.")
PRECISION = precision_flag(_NETWORK)

_CLIPS = FLAGS.group("Clips")
CLIPS = _CLIPS.string("clips", "", "Folder of clips NAME with twins NAME_still; the first by name are for development.")
NUM = _CLIPS.integer("num", 24, "Test clips (with --clips: the maximum).", at_least=1)
DEV_NUM = _CLIPS.integer("dev_num", 8, "Development clips, distinct from the test clips.", at_least=1)
NUM_FRAMES = _CLIPS.integer("num_frames", 16, "Frames of a rendered clip.", at_least=2, at_most=10_000)
SEED = _CLIPS.seed("seed", 0, "Seed of rendered clips, k-means and RANSAC.")

_METHOD = FLAGS.group("Method")
GRAPH = _METHOD.string("graph", "swinstride-5-noncyclic", "Which frames are paired.")
CLUSTERS = _METHOD.integer("clusters", 64, "k-means clusters.", at_least=1, at_most=100_000)
ITERATIONS = _METHOD.integer("iterations", 300, "Alignment steps.", at_least=1)
SYSTEMS = _METHOD.string(
    "systems",
    "plain,flow,flow+formula,flow+attention,flow+match,flow+truth,flow+attention+single-pass,flow+truth+single-pass,"
    "flow+attention+reprojection",
    "Reconstructions to compare with the first of them.",
    may_be_empty=True,
)
TWINS = _METHOD.boolean("twins", True, "Reconstruct the motionless twins too.")

_OUTPUT = FLAGS.group("Output")
OUTPUT = _OUTPUT.output_folder("output", "results/study", "Folder of the result. An existing one is replaced.")
MARKER = "results.json"


def main() -> None:
    began = time.perf_counter()
    config = PipelineConfig(
        graph=GRAPH.value,
        seed=SEED.value,
        segmentation=SegmentationConfig(num_clusters=CLUSTERS.value),
        alignment=AlignConfig(iterations=ITERATIONS.value),
    )
    compared = systems.parse(SYSTEMS.value)
    make_edges(NUM_FRAMES.value, GRAPH.value)
    output = pathlib.Path(OUTPUT.value)
    ensure_writable(output, marker=MARKER)
    stages = Stages()
    networks = {"": load_model_and_metadata(CHECKPOINT.value, PRECISION.value, progress=stages)}
    if TUNED.value:
        networks["tuned"] = load_model_and_metadata(TUNED.value, PRECISION.value, progress=stages)
    model = networks[""][0]
    for other, _ in networks.values():
        if (other.config.image_size, other.config.patch_size) != (model.config.image_size, model.config.patch_size):
            raise ConfigError("--checkpoint and --tuned must have the same image size and patch size.")
    stages.close()
    development, test, counts = find_clips(model)
    print(f"  {counts[0]} development and {counts[1]} test clips, each with its twin")

    reconstructed = ("", ", still") if TWINS.value else ("",)
    total = sum(counts) + len(reconstructed) * counts[1] * len(networks) * len(compared)
    evaluated: list[dict] = []
    per_clip: list[dict] = []
    names = []
    done = 0
    for number, twins in enumerate(itertools.chain(development, test)):
        stages("clips", done, total, twins.name)
        kinds = {"": twins.moving, ", still": twins.still}
        features = {kind: pipeline.encode(model, clip.frames) for kind, clip in kinds.items()}
        evaluated.append(scores.evaluated(model, twins, (features[""], features[", still"]), config))
        names.append(twins.name)
        done += 1
        if number < counts[0] or not compared:
            continue
        per_clip.append({})
        flows = {}
        if any(system.flow for system in compared):
            flows = {kind: systems.flow_of(kinds[kind], config) for kind in reconstructed}
        for network, (weights, _) in networks.items():
            if weights is not model:
                features = {kind: pipeline.encode(weights, kinds[kind].frames) for kind in reconstructed}
            for system in compared:
                for kind in reconstructed:
                    stages("clips", done, total, twins.name)
                    name = f"{'fine-tuned: ' if network else ''}{system.name}{kind}"
                    per_clip[-1][name] = systems.measured(
                        weights, kinds[kind], features[kind], system, config, flows.get(kind)
                    )
                    done += 1
    stages("clips", total, total)

    developed, tested = (report.over_clips(part) for part in (evaluated[: counts[0]], evaluated[counts[0] :]))
    reconstructions = report.over_clips(per_clip)
    differences = report.differences(per_clip)
    layers = scores.layer_names(model.config.dec_depth)
    tables = report.score_tables(tested, developed, layers)
    tables += report.system_tables(reconstructions, differences) if reconstructions else []
    record = {
        "options": FLAGS.values(),
        "pipeline": config,
        "checkpoints": {name or "network": metadata for name, (_, metadata) in networks.items()},
        "versions": versions(),
        "clips": {"development": names[: counts[0]], "test": names[counts[0] :]},
        "development": _named(developed),
        "test": _named(tested),
        "chosen": {kind: score.name for kind, score in report.choose(developed).items()},
        "reconstructions": _named(reconstructions),
        "differences": _named(differences),
        "per_clip": {"scores": [_named(clip) for clip in evaluated], "reconstructions": per_clip},
    }
    with atomic_folder(output, marker=MARKER) as folder:
        export.write_json(folder / MARKER, record)
        (folder / "report.md").write_text(document(tables, counts), encoding="utf-8")
    for each in tables:
        print(f"\n  {each.title}\n{table(each.rows, each.header)}")
    print(f"\n  {time.perf_counter() - began:.0f} s, result: {output}")


def find_clips(model: DUSt3R) -> tuple[Iterator[Twins], Iterator[Twins], tuple[int, int]]:
    """Development and test clips, read or rendered one at a time, and their numbers."""
    if not CLIPS.value:
        config = ClipConfig(size=model.config.image_size, num_frames=NUM_FRAMES.value)
        counts = (DEV_NUM.value, NUM.value)
        development, test = (study_clips.rendered(SEED.value, split, n, config) for split, n in enumerate(counts))
        return development, test, counts
    found = study_clips.folders(pathlib.Path(CLIPS.value).expanduser())
    if len(found) <= DEV_NUM.value:
        raise InputError(
            f"{CLIPS.value} has {len(found)} clips with twins; with --dev_num={DEV_NUM.value} none is left for testing."
        )
    parts = found[: DEV_NUM.value], found[DEV_NUM.value :][: NUM.value]
    development, test = ((study_clips.read(path, model.config) for path in part) for part in parts)
    return development, test, (len(parts[0]), len(parts[1]))


def document(tables: list[report.Table], counts: tuple[int, int]) -> str:
    """report.md."""
    flags = [flag for flag in FLAGS.changed() if not flag.startswith("--output=")]
    command = " ".join(["python -m experiments.study", *flags])
    head = [
        f"    {command}",
        "",
        f"Means over {counts[1]} test clips (choices: {counts[0]} other clips) and their standard errors. *Still*: the "
        "same clips without motion; their AUC is that of the objects that would move.",
        "",
    ]
    return "\n".join([*head, *(each.markdown() for each in tables)])


def _named(results: dict) -> dict:
    """Keys and means as JSON values."""
    return {
        key if isinstance(key, str) else key.name: {
            metric: value._asdict() if isinstance(value, report.Mean) else value for metric, value in values.items()
        }
        for key, values in results.items()
    }
