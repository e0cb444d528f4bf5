"""Times every stage, whole programs and the loading of weights, each beside what the machine reaches.

    python -m experiments.benchmark --preset=embedded --frames=16
    python -m experiments.benchmark --preset=512-dpt --frames=4 --height=288 --width=512 --json=bench.json
    python -m experiments.benchmark --stages=alignment --frames=65 --height=288 --width=512 --iterations=10
    python -m experiments.benchmark --stages=process                   # the demo, without and with cached programs
    python -m experiments.benchmark --all                              # everything in docs/benchmarks.md
    python -m experiments.benchmark --page=docs/benchmarks.md          # the same, and writes it into the page

Weights are random (times do not depend on them), frames are noise. For each stage: the number of programs that the
first run compiles and the time that takes, the median time of `--repeats` runs, counted operations and bytes, and peak
memory. Rates are fractions of those of a large matrix product and of a large copy in the same process, measured before
and after the stage ("product" in GFLOP/s, "copy" in GB/s). With the network's stages: the cost of the attention
statistics, how often a frame is encoded in a full reconstruction, and how many programs are compiled after the first
batch.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from easi3r_jax.apps import cli
from easi3r_jax.apps.benchmark.page import check_page, write_page
from easi3r_jax.apps.benchmark.processes import checkpoint_stages, process_rows
from easi3r_jax.apps.benchmark.properties import full_reconstruction, statistics_cost
from easi3r_jax.apps.benchmark.stages import alignment_stages, flow_stage, network_stages, noise_frames
from easi3r_jax.apps.benchmark.suite import run_suite
from easi3r_jax.apps.benchmark.tables import as_text, remarks
from easi3r_jax.apps.benchmark.timing import PRODUCTS, StageTimer, highest, product_rate
from easi3r_jax.apps.compilation import Compilations
from easi3r_jax.apps.environment import device, versions
from easi3r_jax.apps.method_flags import precision_flag
from easi3r_jax.core.config import AlignConfig, PipelineConfig
from easi3r_jax.core.conversion import check_conversion
from easi3r_jax.core.errors import ConfigError
from easi3r_jax.inference import pipeline
from easi3r_jax.io.export import write_json
from easi3r_jax.models import policy, random_model
from easi3r_jax.models.config import PRESETS

_STAGES = ("network", "flow", "alignment", "process", "checkpoint")

FLAGS = cli.Flags(__doc__)
_WHAT = FLAGS.group("What is measured")
STAGES = _WHAT.string("stages", "network,flow,alignment", f"Some of {', '.join(_STAGES)}, separated by commas.")
PRESET = _WHAT.choice("preset", "embedded", list(PRESETS), "Architecture.")
FLOW = _WHAT.choice("flow", "sea-raft", ["sea-raft", "raft", "raft-small", "dis"], "Flow network, or dis.")
FRAMES = _WHAT.integer("frames", 16, "Frames of the clip.", at_least=3, at_most=100_000)
HEIGHT = _WHAT.integer("height", 0, "Pixels (0: the training size of the preset).", at_most=16384)
WIDTH = _WHAT.integer("width", 0, "Pixels (0: the training size of the preset).", at_most=16384)
GRAPH = _WHAT.string("graph", "swinstride-5-noncyclic", "Pair graph.")
ITERATIONS = _WHAT.integer("iterations", 300, "Iterations of the alignment.", at_least=1)
POINT_DTYPE = _WHAT.choice(
    "point_dtype", "float32", ["float32", "float16", "bfloat16"], "Number type of the aligned point maps."
)
FIRST = _WHAT.integer("first", 0, "Frames of the bundled clip for --stages=process (0: all).", at_least=0)
FULL_CHECKPOINT = _WHAT.boolean(
    "full_checkpoint", False, "For --stages=checkpoint, a .pth file of full size, 2.3 GB, instead of .7 GB."
)
PRECISION = precision_flag(_WHAT)
_HOW = FLAGS.group("How")
REPEATS = _HOW.integer("repeats", 3, "Timed runs of each stage, after one warm-up run.", at_least=1)
JSON = _HOW.output_file("json", "Also write the results to this file.")
_ALL = FLAGS.group("Everything")
ALL = _ALL.boolean(
    "all", False, "Measure all of docs/benchmarks.md, each part in a process. Of the flags above, --json counts."
)
PAGE = _ALL.output_file("page", "As --all, and write the results into this page, between its markers.")
QUICK = _ALL.boolean("quick", False, "With --all: smaller and fewer, to try the program.")
DRAFT = _ALL.boolean("draft", False, "With --page: allow --quick and changed files, and mark the page as a draft.")


def main() -> None:
    if ALL.value or PAGE.value:
        measure_everything()
        return
    if QUICK.value or DRAFT.value:
        raise ConfigError("--quick and --draft go with --all or --page.")
    found = measured()
    print(as_text(found["stages"]))
    for line in remarks(found):
        print(f"  {line}")
    memory = ", ".join(f"{where} {size / 1e9:.2f} GB" for where, size in found["peak_memory_bytes"].items())
    print(f"  peak memory: {memory}")
    for name, rate in found.get("product_flops_per_s", {}).items():
        print(f"  large product, {name}: {rate / 1e12:.1f} TFLOP/s")
    if JSON.value:
        write_json(JSON.value, _plain(found))


def measure_everything() -> None:
    """`--all` and `--page`."""
    if PAGE.value:
        check_page(PAGE.value, draft=DRAFT.value, quick=QUICK.value)
    found = run_suite(quick=QUICK.value)
    if JSON.value:
        write_json(JSON.value, {name: _plain(run) for name, run in found.items()})
    if PAGE.value:
        command = " ".join(["python -m experiments.benchmark", *FLAGS.changed()])
        write_page(PAGE.value, found, command=command, draft=DRAFT.value)
        print(f"Written: {PAGE.value}")


def measured() -> dict[str, Any]:
    """Measures one configuration: rows ("stages") and properties."""
    chosen = STAGES.value.split(",")
    if not set(chosen) <= set(_STAGES):
        raise ConfigError(f"--stages={STAGES.value}: it must be some of {', '.join(_STAGES)}, separated by commas.")
    config = PRESETS[PRESET.value]()
    precision = policy(PRECISION.value)
    check_conversion(POINT_DTYPE.value)
    size = (HEIGHT.value or config.image_size[0], WIDTH.value or config.image_size[1])
    if size[0] % config.patch_size or size[1] % config.patch_size:
        raise ConfigError(f"{size[1]}x{size[0]} does not divide into patches of {config.patch_size}.")
    frames = noise_frames(FRAMES.value, *size)
    edges = pipeline.clip_edges(FRAMES.value, GRAPH.value)
    options = PipelineConfig(
        graph=GRAPH.value, point_dtype=POINT_DTYPE.value, alignment=AlignConfig(iterations=ITERATIONS.value)
    )
    found: dict[str, Any] = {"versions": versions()}
    if {"network", "flow", "alignment"} & set(chosen):
        print(f"  {FRAMES.value} frames of {size[1]}x{size[0]}, {len(edges)} pairs, {device()}", flush=True)
        found |= {"frames": FRAMES.value, "size": size, "pairs": len(edges)}

    compilations = Compilations()
    kind = "exact"
    if chosen == ["network"]:
        kind = "half" if precision.layers == "bfloat16" else precision.products
    stage = StageTimer(compilations, REPEATS.value, kind)
    if "process" in chosen:
        stage.rows |= process_rows(FIRST.value, REPEATS.value)
    if "checkpoint" in chosen:
        checkpoint_stages(stage, full=FULL_CHECKPOINT.value)
    if "alignment" in chosen:
        alignment_stages(stage, frames, edges, options)
    if "flow" in chosen:
        flow_stage(stage, FLOW.value, precision, frames, edges)
    if "network" in chosen:
        model = random_model(config, precision=precision)
        network_stages(stage, model, frames, edges, options)
        found |= {
            "preset": PRESET.value,
            "precision": precision.name,
            "statistics_cost": statistics_cost(model, frames, REPEATS.value),
            "reconstruction": full_reconstruction(model, frames, options, compilations),
        }
    peak = highest(row.peak_memory_bytes for row in stage.rows.values())
    if jax.default_backend() != "cpu":
        found["product_flops_per_s"] = {kind: product_rate(kind) for kind in PRODUCTS}  # for `experiments.cost`
    return found | {"stages": stage.rows, "peak_memory_bytes": peak}


def _plain(found: dict[str, Any]) -> dict[str, Any]:
    """For JSON."""
    return found | {"stages": {name: dataclasses.asdict(row) for name, row in found["stages"].items()}}
