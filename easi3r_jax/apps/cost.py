"""Estimates the cost of an evaluation: operations and bytes are counted, seconds follow from your device's rates.

    python -m experiments.cost                                                  # 65 frames of 512x288, one device
    python -m experiments.cost --sequences=10000 --devices=8 --flow
    python -m experiments.cost --sequences=10000 --records=evaluations/davis    # simulated from measured times
    python -m experiments.cost --half_tflops=0.209 --tf32_tflops=0.209 --exact_tflops=0.209 --copy_gbs=31  # a CPU

Operations and bytes are counted from the architecture and the pair graph; nothing is computed. Each kind of work has
its own rate, as `--precision=bf16` has them: products in half precision (encoder and decoder), TF32 products (heads,
flow networks), products that keep all bits of float32 (statistics, k-means), and bytes (the alignment). Rates are those
of large matrix products and a large copy.
`python -m experiments.benchmark` measures them on your device, together with the fractions of them that the stages
reach. `python -m experiments.compile_check` prints what a TPU's compiler counts.
With --records, workers of a cluster are simulated: they get sequences in the order in which `evaluate --cluster`
distributes them, each as long as one of that evaluation without its compilation, drawn at random. A worker compiles
once for each shape.
k-means is counted with its maximum number of iterations. Not counted: reading frames, RANSAC, metrics.
"""

from __future__ import annotations

import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from easi3r_jax.apps import cli, flops
from easi3r_jax.apps.cluster.simulation import simulated_seconds
from easi3r_jax.apps.cluster.tasks import Task
from easi3r_jax.apps.evaluate import records
from easi3r_jax.apps.progress import table
from easi3r_jax.core.batches import bucket_size
from easi3r_jax.core.config import SegmentationConfig
from easi3r_jax.core.errors import ConfigError, InputError
from easi3r_jax.inference import pipeline
from easi3r_jax.inference.flow import network_size
from easi3r_jax.models import abstract_model, flow_network
from easi3r_jax.models.config import PRESETS, FlowConfig
from easi3r_jax.models.flow_layers import ITERATIONS as FLOW_ITERATIONS

#: Sequences that are simulated: each is an object.
_MOST_SIMULATED = 10**6

FLAGS = cli.Flags(__doc__)
_WHAT = FLAGS.group("What is evaluated")
PRESET = _WHAT.choice("preset", "512-dpt", list(PRESETS), "Architecture.")
FRAMES = _WHAT.integer("frames", 65, "Frames of a sequence.", at_least=3, at_most=100_000)
HEIGHT = _WHAT.integer("height", 288, "Pixels.", at_least=16, at_most=16384)
WIDTH = _WHAT.integer("width", 512, "Pixels.", at_least=16, at_most=16384)
GRAPH = _WHAT.string("graph", "swinstride-5-noncyclic", "Pair graph.")
ITERATIONS = _WHAT.integer("iterations", 300, "Iterations of the alignment.", at_least=1)
WITH_FLOW = _WHAT.boolean("flow", False, 'Include optical flow by SEA-RAFT "M".')
SEQUENCES = _WHAT.integer("sequences", 1, "Number of sequences.", at_least=1, at_most=10**9)
_WHERE = FLAGS.group("Where")
DEVICES = _WHERE.integer(
    "devices", 1, "Devices over which sequences, or the pairs of each, are distributed.", at_least=1
)
HALF = _WHERE.number("half_tflops", 400.0, "TFLOP/s of a large bfloat16 product on one device.", at_least=1e-6)
TF32 = _WHERE.number("tf32_tflops", 200.0, "TFLOP/s of a large TF32 product.", at_least=1e-6)
EXACT = _WHERE.number(
    "exact_tflops", 45.0, "TFLOP/s of a large product of float32 numbers that keeps all their bits.", at_least=1e-6
)
COPY = _WHERE.number("copy_gbs", 2000.0, "GB/s read and written by a large copy on one device.", at_least=1e-6)
NETWORK_SHARE = _WHERE.number(
    "network_share", 0.5, "Fraction of these rates that all but the alignment reach.", at_least=1e-6, at_most=1.0
)
ALIGN_SHARE = _WHERE.number(
    "alignment_share", 0.25, "Fraction of --copy_gbs that the alignment reaches.", at_least=1e-6, at_most=1.0
)
_WORKERS = FLAGS.group("Simulated workers")
RECORDS = _WORKERS.string("records", "", "Folder of an evaluation: simulate --sequences like those that it has timed.")
START = _WORKERS.number("start_seconds", 60.0, "Seconds until a worker is ready.", at_least=0.0)
COMPILATION = _WORKERS.number(
    "compile_seconds", 60.0, "Seconds that a worker adds to its first sequence of each shape.", at_least=0.0
)


class Work(NamedTuple):
    """What a stage computes and moves.

    Attributes:
      half: operations in half precision.
      tf32: operations on float32 numbers whose factors are rounded (TensorFloat-32; on TPUs, three bfloat16 products).
      exact: operations that keep all bits of float32.
      moved: bytes.
    """

    half: float
    tf32: float
    exact: float
    moved: float

    def seconds(self, share: float) -> float:
        """On one device that reaches this fraction of its rates: products one after the other, beside the bytes."""
        rates = (HALF.value, TF32.value, EXACT.value)
        products = sum(n / rate for n, rate in zip((self.half, self.tf32, self.exact), rates, strict=True))
        return max(products / (1e12 * NETWORK_SHARE.value), self.moved / (1e9 * COPY.value * share))


def main() -> None:
    if RECORDS.value:
        simulate(pathlib.Path(RECORDS.value).expanduser())
    else:
        count()


def simulate(folder: pathlib.Path) -> None:
    """Prints how long 1 to 64 workers take."""
    if not folder.is_dir():
        raise InputError(f"--records={folder}: there is no such folder.")
    timed = [record for record in records.latest(records.read(folder)).values() if record.error is None]
    if not timed:
        raise InputError(f"--records={folder}: no sequence was evaluated there.")
    number = SEQUENCES.value
    if number > _MOST_SIMULATED:
        raise ConfigError(
            f"--sequences={number}: with --records at most {_MOST_SIMULATED}; hours of more grow in proportion."
        )
    drawn = np.random.default_rng(0).integers(len(timed), size=number)
    kinds = [(record.seconds - (record.compile_seconds or 0.0), bucket_size(record.num_frames)) for record in timed]
    tasks = [Task("", None, *kinds[k]) for k in drawn.tolist()]
    total, rows = sum(task.cost for task in tasks), []
    for workers in (1, 2, 4, 8, 16, 32, 64):
        seconds, busy = simulated_seconds(tasks, workers, start=START.value, compilation=COMPILATION.value)
        rows.append((str(workers), f"{seconds / 3600:.2f}", f"{total / workers / seconds:.3f}", f"{busy - total:.0f}"))
    shapes = len({task.shape for task in tasks})
    print(f"  {number} sequences of {shapes} shapes, {total / 3600:.2f} h of work as timed in {folder}")
    if older := sum(record.compile_seconds is None for record in timed):
        print(f"  {older} of {len(timed)} timed sequences do not say how long they compiled: that is counted as work.")
    print(table(rows, ("workers", "hours", "efficiency", "s of compilation")))


def count() -> None:
    """Prints operations, bytes and seconds of every stage."""
    config = PRESETS[PRESET.value]()
    size = (HEIGHT.value, WIDTH.value)
    if size[0] % config.patch_size or size[1] % config.patch_size:
        raise ConfigError(f"{size[1]}x{size[0]} does not divide into patches of {config.patch_size}.")
    edges = len(pipeline.clip_edges(FRAMES.value, GRAPH.value))
    work = counted(edges)
    rows = []
    seconds = {
        name: amounts.seconds(ALIGN_SHARE.value if name == "alignment" else NETWORK_SHARE.value)
        for name, amounts in work.items()
    }
    total = sum(seconds.values())
    sums = Work(*(sum(amounts) for amounts in zip(*work.values(), strict=True)))
    for name, (*products, moved), spent in [(n, work[n], seconds[n]) for n in work] + [("total", sums, total)]:
        amounts = [f"{count / FRAMES.value / 1e9:.1f}" for count in products]
        amounts.append(f"{moved / FRAMES.value / 1e9:.2f}")
        rows.append((name, *amounts, _short(spent / FRAMES.value), _short(spent)))
    print(f"  {FRAMES.value} frames of {size[1]}x{size[0]}, {edges} directed pairs, {PRESET.value}")
    print(table(rows, ("stage", "GFLOP/frame half", "tf32", "exact", "GB/frame", "s/frame", "s/sequence")))
    kept = 32 * size[0] * size[1] * edges
    longer = len(pipeline.clip_edges(bucket_size(FRAMES.value), GRAPH.value))
    print(
        f"  Point maps of all pairs: {kept / 1e9:.1f} GB ({kept / DEVICES.value / 1e9:.1f} GB per device if a sequence "
        f"is sharded over {DEVICES.value}); with shapes shared by clips: pairs x {longer / edges:.3f}."
    )
    hours = SEQUENCES.value * total / DEVICES.value / 3600
    print(
        f"  {SEQUENCES.value} such sequences on {DEVICES.value} devices, each device with its own: {hours:.2f} h, "
        f"plus at most {total / 60:.1f} min for the last ones; {SEQUENCES.value * 2e3 / 1e6:.1f} MB of records."
    )


def counted(num_edges: int) -> dict[str, Work]:
    """Stage -> operations and bytes of one sequence.

    Bytes of the networks are those of float32 weights, once per frame or pair, as if there were no batches. They
    exclude activations, which a compiler may or may not keep on the chip.
    """
    config = PRESETS[PRESET.value]()
    grid = (HEIGHT.value // config.patch_size, WIDTH.value // config.patch_size)
    pixels, frames, iterations = HEIGHT.value * WIDTH.value, FRAMES.value, ITERATIONS.value
    model = abstract_model(config)
    size = {
        name: 4.0 * sum(leaf.size for leaf in jax.tree.leaves(part))
        for name, part in (
            ("encoder", model.encoder),
            ("decoder", model.decoder),
            ("heads", (model.head1, model.head2)),
        )
    }
    decoder, moments = flops.decoder_flops(config, grid), flops.statistics_flops(config, grid)
    heads = flops.heads_flops(config, grid)
    work = {
        "encoder": Work(frames * flops.encoder_flops(config, grid), 0, 0, frames * size["encoder"]),
        "first pass": Work(num_edges * decoder, 0, num_edges * moments, num_edges * size["decoder"]),
        "second pass, heads": Work(
            num_edges * decoder,
            num_edges * heads,
            num_edges * moments,
            num_edges * (size["decoder"] + size["heads"]),
        ),
    }
    if WITH_FLOW.value:
        network = jax.eval_shape(lambda: flow_network(FlowConfig("sea-raft")))
        image = jax.ShapeDtypeStruct((1, *network_size(HEIGHT.value, WIDTH.value), 3), jnp.float32)
        per_pair = flops.traced_flops(lambda f, a, b: f(a, b, FLOW_ITERATIONS)[0], network, image, image)
        weights = 4.0 * sum(leaf.size for leaf in jax.tree.leaves(network))
        work["optical flow"] = Work(0, num_edges * per_pair, 0, num_edges * weights)
    clusters = SegmentationConfig()
    distances = 2.0 * frames * grid[0] * grid[1] * clusters.num_clusters * config.enc_dim
    rounds = clusters.restarts * clusters.kmeans_iterations  # each round: distances, and sums over clusters
    moved = 8.0 * rounds * frames * grid[0] * grid[1] * config.enc_dim
    work["k-means, at most"] = Work(0, 0, 2 * rounds * distances, moved)
    options = {"with_flow": WITH_FLOW.value}
    work["alignment"] = Work(
        0,
        0,
        flops.alignment_flops(num_edges, pixels, iterations, **options),
        flops.alignment_bytes(frames, num_edges, pixels, iterations, **options),
    )
    return work


def _short(seconds: float) -> str:
    return f"{seconds:.3f}" if seconds < 10 else f"{seconds:.1f}"
