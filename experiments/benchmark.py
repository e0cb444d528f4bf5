"""Times every stage, counts its operations and checks three promises of the design.

    python -m experiments.benchmark --preset=embedded --frames=16
    python -m experiments.benchmark --preset=512-dpt --frames=4 --height=288 --width=512 --json=bench.json

Weights are random (times do not depend on them), frames are noise. For each stage: compilation apart, the median of
`--repeats` runs, counted operations, and the rate reached as a share of what a large matrix product reaches in the
same process. Then: what the attention statistics cost, how often a frame is encoded in a whole reconstruction, and
how often anything is compiled after the first batch.
"""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from easi3r_jax import align, motion, pipeline
from easi3r_jax.config import PRESETS, AlignConfig, DUSt3RConfig, PipelineConfig
from easi3r_jax.errors import ConfigError
from easi3r_jax.export import write_json
from easi3r_jax.models import attention, random_model
from easi3r_jax.models.encoder import Encoder
from easi3r_jax.types import Frames
from experiments import cli, flops
from experiments.environment import device, layer_dtype, peak_memory_bytes, versions
from experiments.progress import table

FLAGS = cli.Flags(__doc__)
_WHAT = FLAGS.group("What is measured")
PRESET = _WHAT.choice("preset", "embedded", list(PRESETS), "Architecture.")
FRAMES = _WHAT.integer("frames", 16, "Frames of the clip.", at_least=3)
HEIGHT = _WHAT.integer("height", 0, "Pixels (0: what the preset was trained at).", at_least=0)
WIDTH = _WHAT.integer("width", 0, "Pixels (0: what the preset was trained at).", at_least=0)
GRAPH = _WHAT.string("graph", "swinstride-5-noncyclic", "Pair graph.")
ITERATIONS = _WHAT.integer("iterations", 300, "Of the alignment.", at_least=1)
DTYPE = _WHAT.choice("dtype", "auto", ["auto", "float32", "bfloat16"], "Of the network's layers.")
_HOW = FLAGS.group("How")
REPEATS = _HOW.integer("repeats", 3, "Timed runs of each stage, after one that is not counted.", at_least=1)
JSON = _HOW.string("json", "", "Also write the figures here.")


def main() -> None:
    config = PRESETS[PRESET.value]()
    dtype = layer_dtype(DTYPE.value)
    size = (HEIGHT.value or config.image_size[0], WIDTH.value or config.image_size[1])
    if size[0] % config.patch_size or size[1] % config.patch_size:
        raise ConfigError(f"{size[1]}x{size[0]} does not divide into patches of {config.patch_size}.")
    model = random_model(config, dtype=dtype)
    frames = noise_frames(FRAMES.value, *size)
    print(f"  {PRESET.value}, {FRAMES.value} frames of {size[1]}x{size[0]}, {dtype}, {device()}")

    peak = matmul_rate(dtype)
    compilations = Compilations()
    stages = measure_stages(model, frames, compilations)
    peak = max(peak, matmul_rate(dtype))  # a roof: other work on the machine must not lower it
    figures = {
        "preset": PRESET.value,
        "frames": FRAMES.value,
        "size": size,
        "dtype": dtype,
        "versions": versions(),
        "matmul_flops_per_s": peak,
        "stages": stages,
        "statistics_cost": statistics_cost(model, frames),
        "reconstruction": whole_reconstruction(model, frames, compilations),
        "peak_memory_bytes": peak_memory_bytes(),
    }
    print(report(figures))
    if JSON.value:
        write_json(JSON.value, figures)


def noise_frames(count: int, height: int, width: int) -> Frames:
    """A clip of random pixels."""
    rgb = np.random.default_rng(0).integers(0, 256, (count, height, width, 3), np.uint8)
    return Frames(
        rgb=jnp.asarray(rgb),
        source_index=np.arange(count),
        time=np.arange(count) / 24.0,
        frame_from_source=np.eye(3),
        source_size=np.array([height, width]),
    )


class Compilations:
    """Counts what XLA compiles and how long it takes, through JAX's own monitoring events."""

    def __init__(self):
        self.count, self.seconds = 0, 0.0
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event: str, duration_secs: float, **_) -> None:
        if event.endswith("backend_compile_duration"):
            self.count += 1
            self.seconds += duration_secs


def median_seconds(run: Callable[[], object], repeats: int) -> float:
    """Median wall-clock time of a call that waits for its result."""
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def matmul_rate(dtype: str) -> float:
    """FLOP/s of a large square matrix product: the roof for this process on this machine."""
    side = 2048 if jax.default_backend() == "cpu" else 8192
    a = jnp.ones((side, side), dtype)
    product = jax.jit(jnp.matmul)
    jax.block_until_ready(product(a, a))
    return 2 * side**3 / median_seconds(lambda: product(a, a), 5)


def measure_stages(model, frames: Frames, compilations: Compilations) -> dict[str, dict]:
    """Every stage on its own, with the one before it as input."""
    config: DUSt3RConfig = model.config
    num_frames, height, width = frames.rgb.shape[:3]
    grid = model.grid((height, width))
    edges = pipeline.clip_edges(num_frames, GRAPH.value)
    key = jax.random.key(0)
    options = PipelineConfig(graph=GRAPH.value, alignment=AlignConfig(iterations=ITERATIONS.value))

    results: dict[str, dict] = {}

    def stage(name: str, items: int, counted: float | None, run: Callable[[], Any]) -> Any:
        before, began = compilations.seconds, time.perf_counter()
        out = jax.block_until_ready(run())
        first = time.perf_counter() - began
        seconds = median_seconds(run, REPEATS.value)
        results[name] = {
            "items": items,
            "compile_seconds": compilations.seconds - before,
            "first_seconds": first,
            "seconds": seconds,
            "flops": counted,
        }
        return out

    per_pair = flops.decoder_flops(config, grid) + flops.statistics_flops(config, grid)
    with_heads = per_pair + flops.heads_flops(config, grid)
    features = stage(
        "encode", num_frames, num_frames * flops.encoder_flops(config, grid), lambda: pipeline.encode(model, frames)
    )
    temporal = stage(
        "first pass", len(edges), len(edges) * per_pair, lambda: pipeline.attention_pass(model, features, edges, grid)
    )
    cluster = jax.jit(motion.cluster_labels, static_argnames=("grid", "config"))
    labels = stage("k-means", num_frames, None, lambda: cluster(features, grid, options.segmentation, key))
    _, masks = stage(
        "masks",
        num_frames,
        None,
        lambda: pipeline.segment(temporal, labels, (height, width), options.segmentation),
    )
    dynamic = motion.token_masks(masks.masks, config.patch_size)
    predictions, _ = stage(
        "second pass",
        len(edges),
        len(edges) * with_heads,
        lambda: pipeline.prediction_pass(model, features, edges, grid, dynamic=dynamic),
    )
    aligning = flops.alignment_flops(len(edges), height * width, ITERATIONS.value)
    stage("alignment", ITERATIONS.value, aligning, lambda: align.align(predictions, num_frames, options.alignment))
    return results


def statistics_cost(model, frames: Frames) -> dict[str, Any]:
    """Median time of the decoder with its statistics over that of one that computes none, taken in turn."""
    grid = model.grid(frames.rgb.shape[1:3])
    features = pipeline.encode(model, frames)
    batch = min(len(features) - 1, max(1, 2048 // (grid[0] * grid[1])))
    arguments = (model, features[:batch], features[1 : batch + 1])

    def decode(model, a, b):
        decoded = model.decode(a, b, grid)
        return decoded.tokens_i, decoded.tokens_j, decoded.stats

    def nothing(queries, keys):
        return jnp.zeros((queries.shape[0], queries.shape[2], keys.shape[1]), jnp.float32)

    with_statistics = jax.jit(decode).lower(*arguments).compile()
    with mock.patch.object(attention, "mean_logits", nothing):
        without = jax.jit(lambda *a: decode(*a)).lower(*arguments).compile()
    ratios = []
    began = time.perf_counter()
    while len(ratios) < 9 or (len(ratios) < 201 and time.perf_counter() - began < 7 * REPEATS.value):
        pair = [median_seconds(lambda f=f: f(*arguments), 1) for f in (with_statistics, without)]
        ratios.append(pair[0] / pair[1])
    low, median, high = statistics.quantiles(ratios, n=4)
    counted = flops.statistics_flops(model.config, grid) / flops.decoder_flops(model.config, grid)
    return {"time_ratio_quartiles": (low, median, high), "runs": len(ratios), "counted_flops_share": counted}


@contextlib.contextmanager
def counted_encodings() -> Iterator[list[int]]:
    """Counts, while the program runs, the frames that go through the encoder."""
    seen: list[int] = []
    original = Encoder.__call__

    def counting(self, images, dtype, **options):
        jax.debug.callback(lambda: seen.append(images.shape[0]))
        return original(self, images, dtype, **options)

    with mock.patch.object(Encoder, "__call__", counting):
        jax.clear_caches()
        yield seen
        jax.effects_barrier()
    jax.clear_caches()


def whole_reconstruction(model, frames: Frames, compilations: Compilations) -> dict[str, float]:
    """Frames encoded per frame of the clip, and compilations after the first batch of each pass."""
    after_first: dict[str, int] = {}
    at_first: dict[str, int] = {}

    def observe(stage: str, done: int, total: int, note: str) -> None:
        del note
        if stage in ("attention", "predict") and 0 < done < total:  # before every batch but the first
            at_first.setdefault(stage, compilations.count)
            after_first[stage] = compilations.count - at_first[stage]

    num_frames = len(frames.rgb)
    # Batches that divide the clip: padding rows would be counted too.
    batch = math.gcd(num_frames, 4)
    alignment = AlignConfig(iterations=ITERATIONS.value)
    options = PipelineConfig(graph=GRAPH.value, frame_batch=batch, alignment=alignment)
    with counted_encodings() as seen:
        began = time.perf_counter()
        jax.block_until_ready(pipeline.reconstruct(model, frames, options, observer=observe))
        seconds = time.perf_counter() - began
    return {
        "seconds_with_compilation": seconds,
        "encodings_per_frame": sum(seen) / num_frames,
        "compilations_between_pair_batches": sum(after_first.values()),
    }


def report(figures: dict) -> str:
    """The figures as a table."""
    rows = []
    for name, f in figures["stages"].items():
        rate = f["flops"] / f["seconds"] if f["flops"] else None
        rows.append(
            (
                name,
                str(f["items"]),
                f"{f['compile_seconds']:.2f}",
                f"{f['seconds']:.3f}",
                f"{1000 * f['seconds'] / f['items']:.2f}",
                f"{f['flops'] / 1e9:.1f}" if rate else "-",
                f"{rate / 1e9:.1f}" if rate else "-",
                f"{100 * rate / figures['matmul_flops_per_s']:.0f} %" if rate else "-",
            )
        )
    header = ("stage", "items", "compile s", "median s", "ms/item", "GFLOP", "GFLOP/s", "of matmul")
    cost, whole = figures["statistics_cost"], figures["reconstruction"]
    low, median, high = cost["time_ratio_quartiles"]
    memory = ", ".join(f"{where} {size / 1e9:.2f} GB" for where, size in figures["peak_memory_bytes"].items())
    return "\n".join(
        [
            table(rows, header),
            f"  large matrix product: {figures['matmul_flops_per_s'] / 1e9:.1f} GFLOP/s",
            f"  decoder with statistics / without: median {median:.3f}, quartiles {low:.3f} to {high:.3f} of "
            f"{cost['runs']} pairs of runs (counted operations: +{100 * cost['counted_flops_share']:.3f} %)",
            f"  encodings per frame in a whole reconstruction: {whole['encodings_per_frame']:g}",
            f"  compilations between pair batches: {whole['compilations_between_pair_batches']}",
            f"  peak memory: {memory}",
        ]
    )


if __name__ == "__main__":
    FLAGS.run(main)
