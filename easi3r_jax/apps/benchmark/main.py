"""Times every stage, counts its operations and bytes, and measures three properties of the design.

    python -m experiments.benchmark --preset=embedded --frames=16
    python -m experiments.benchmark --preset=512-dpt --frames=4 --height=288 --width=512 --json=bench.json
    python -m experiments.benchmark --stages=alignment --frames=65 --height=288 --width=512 --iterations=10

Weights are random (times do not depend on them), frames are noise. For each stage: the compilation time, the median
time of `--repeats` runs, counted operations and bytes, the rates as fractions of what a large matrix product and a
large copy reach in the same process, and the process's peak memory so far. With the network's stages: the cost of the
attention statistics, how often a frame is encoded in a full reconstruction, and how many programs are compiled after
the first batch.
"""

from __future__ import annotations

from easi3r_jax.apps import cli
from easi3r_jax.apps.benchmark.properties import full_reconstruction, statistics_cost
from easi3r_jax.apps.benchmark.stages import alignment_stages, flow_stage, network_stages, noise_frames
from easi3r_jax.apps.benchmark.timing import Compilations, StageTimer, copy_rate, matmul_rate
from easi3r_jax.apps.environment import device, peak_memory_bytes, versions
from easi3r_jax.apps.method_flags import precision_flag
from easi3r_jax.apps.progress import table
from easi3r_jax.core.config import AlignConfig, PipelineConfig
from easi3r_jax.core.conversion import check_conversion
from easi3r_jax.core.errors import ConfigError
from easi3r_jax.inference import pipeline
from easi3r_jax.io.export import write_json
from easi3r_jax.models import policy, random_model
from easi3r_jax.models.config import PRESETS

FLAGS = cli.Flags(__doc__)
_WHAT = FLAGS.group("What is measured")
STAGES = _WHAT.string("stages", "network,flow,alignment", "Some of network, flow and alignment, separated by commas.")
PRESET = _WHAT.choice("preset", "embedded", list(PRESETS), "Architecture.")
FLOW = _WHAT.choice("flow", "sea-raft", ["sea-raft", "raft", "raft-small", "dis"], "Flow network, or dis.")
FRAMES = _WHAT.integer("frames", 16, "Frames of the clip.", at_least=3)
HEIGHT = _WHAT.integer("height", 0, "Pixels (0: the training size of the preset).", at_least=0)
WIDTH = _WHAT.integer("width", 0, "Pixels (0: the training size of the preset).", at_least=0)
GRAPH = _WHAT.string("graph", "swinstride-5-noncyclic", "Pair graph.")
ITERATIONS = _WHAT.integer("iterations", 300, "Iterations of the alignment.", at_least=1)
POINT_DTYPE = _WHAT.choice(
    "point_dtype", "float32", ["float32", "float16", "bfloat16"], "Number type of the aligned point maps."
)
PRECISION = precision_flag(_WHAT)
_HOW = FLAGS.group("How")
REPEATS = _HOW.integer("repeats", 3, "Timed runs of each stage, after one warm-up run.", at_least=1)
JSON = _HOW.string("json", "", "Also write the results to this file.")


def main() -> None:
    chosen = STAGES.value.split(",")
    if not set(chosen) <= {"network", "flow", "alignment"}:
        raise ConfigError(
            f"--stages={STAGES.value}: it must be some of network, flow and alignment, separated by commas."
        )
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
    print(f"  {FRAMES.value} frames of {size[1]}x{size[0]}, {len(edges)} pairs, {device()}")

    compilations = Compilations()
    stage = StageTimer(compilations, REPEATS.value)
    found = {"frames": FRAMES.value, "size": size, "pairs": len(edges), "versions": versions()}
    if "alignment" in chosen:  # first: its peak memory is only visible before other stages exceed it
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
    found |= {
        "stages": stage.results,
        "peak_memory_bytes": peak_memory_bytes(),
        # Upper bounds: other work on the machine must not lower them.
        "matmul_flops_per_s": max(matmul_rate(precision.layers) for _ in range(2)),
        "copy_bytes_per_s": max(copy_rate() for _ in range(2)),
    }
    print(report(found))
    if JSON.value:
        write_json(JSON.value, found)


def report(found: dict) -> str:
    """The results as a table."""
    rows = []
    for name, f in found["stages"].items():
        shares = [
            (f"{f[counted] / 1e9:.1f}", f"{100 * f[counted] / f['seconds'] / found[roof]:.0f} %")
            if f[counted]
            else ("-", "-")
            for counted, roof in (("flops", "matmul_flops_per_s"), ("bytes", "copy_bytes_per_s"))
        ]
        rows.append(
            (
                name,
                str(f["items"]),
                f"{f['compile_seconds']:.2f}",
                f"{f['seconds']:.3f}",
                f"{1000 * f['seconds'] / f['items']:.2f}",
                *shares[0],
                *shares[1],
                f"{max(f['peak_memory_bytes'].values()) / 1e9:.2f}",
            )
        )
    header = ("stage", "items", "compile s", "median s", "ms/item", "GFLOP", "of matmul", "GB", "of copy", "peak GB")
    lines = [
        table(rows, header),
        f"  large matrix product: {found['matmul_flops_per_s'] / 1e9:.1f} GFLOP/s, "
        f"large copy: {found['copy_bytes_per_s'] / 1e9:.1f} GB/s",
    ]
    if "reconstruction" in found:
        cost, full = found["statistics_cost"], found["reconstruction"]
        low, median, high = cost["time_ratio_quartiles"]
        lines += [
            f"  decoder with statistics / without: median {median:.3f}, quartiles {low:.3f} to {high:.3f} of "
            f"{cost['runs']} pairs of runs (counted operations: +{100 * cost['counted_flops_share']:.3f} %)",
            f"  encodings per frame in a full reconstruction: {full['encodings_per_frame']:g}",
            f"  compilations between pair batches: {full['compilations_between_pair_batches']}",
        ]
    memory = ", ".join(f"{where} {size / 1e9:.2f} GB" for where, size in found["peak_memory_bytes"].items())
    return "\n".join([*lines, f"  peak memory: {memory}"])
