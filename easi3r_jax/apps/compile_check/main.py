"""Compiles every stage for TPUs, or lowers it for NVIDIA GPUs, on a machine that has neither.

    python -m experiments.compile_check                                       # 65 frames of 512x288 for v5e:4x4
    python -m experiments.compile_check --topology=v5p:2x2x1 --stages=training --layout=single
    python -m experiments.compile_check --platform=gpu

Weights and frames are shapes only. For a TPU, each program is compiled for one chip and for all chips of the topology,
and listed with the memory that one chip needs, what else is in its memory meanwhile, operations, bytes and collectives.
The compiler counts a loop's body once; operations of matrix products and convolutions are counted here, with loops, by
their arithmetic. The TPU's compiler runs on a CPU: pip install 'easi3r_jax[tpu]'. The released network takes it minutes
for each program.

For a GPU, programs are lowered only (StableHLO): whether attention calls the fused kernel in bfloat16, whether an array
has N x N tokens, and which share of the products keeps all bits of float32.

The exit status is 1 if a program does not compile, does not fit into the memory, or has what it should not have.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import jax

from easi3r_jax.apps import cli
from easi3r_jax.apps.compile_check import compiler, stablehlo
from easi3r_jax.apps.compile_check.programs import STAGES, Clip, Program, programs
from easi3r_jax.apps.progress import table
from easi3r_jax.core import target
from easi3r_jax.core.config import PipelineConfig
from easi3r_jax.core.errors import ConfigError
from easi3r_jax.io.export import write_json
from easi3r_jax.models.config import PRESETS
from easi3r_jax.models.precision import POLICIES
from easi3r_jax.training.config import TrainConfig

FLAGS = cli.Flags(__doc__)
_WHAT = FLAGS.group("What is compiled")
PRESET = _WHAT.choice("preset", "512-dpt", list(PRESETS), "Architecture.")
FRAMES = _WHAT.integer("frames", 65, "Frames of the clip.", at_least=3, at_most=100_000)
HEIGHT = _WHAT.integer("height", 288, "Pixels.", at_least=16, at_most=16384)
WIDTH = _WHAT.integer("width", 512, "Pixels.", at_least=16, at_most=16384)
GRAPH = _WHAT.string("graph", "swinstride-5-noncyclic", "Pair graph.")
PRECISION = _WHAT.choice("precision", "bf16", list(POLICIES), "What the networks compute in, see docs/precision.md.")
POINT_DTYPE = _WHAT.choice(
    "point_dtype", "float32", ["float32", "float16", "bfloat16"], "Number type of the aligned point maps."
)
PAIR_BATCH = _WHAT.integer("pair_batch", 0, "Pairs at a time (0: as the programs choose).")
TRAINING = _WHAT.choice("training", "dust3r", ["dust3r", "monst3r"], "Training run: all parameters, or MonST3R's.")
PAIRS = _WHAT.integer("pairs", 1, "Pairs per device in a training step.", at_least=1)
STAGE_NAMES = _WHAT.string("stages", "", f"Some of {', '.join(STAGES)}, separated by commas. Empty: all.")
_WHERE = FLAGS.group("For what")
PLATFORM = _WHERE.choice("platform", "tpu", ["tpu", "gpu"], "TPUs (compiled) or NVIDIA GPUs (lowered).")
TOPOLOGY = _WHERE.string("topology", "v5e:4x4", "TPU and layout of its chips.")
LAYOUT = _WHERE.choice("layout", "both", ["both", "single", "sharded"], "One chip, all chips of the topology, or both.")
JSON = _WHERE.output_file("json", "Also write the results to this file.")


def main() -> None:
    jax.config.update("jax_platforms", "cpu")
    chosen: list[str] = STAGE_NAMES.value.split(",") if STAGE_NAMES.value else [*STAGES]
    if unknown := set(chosen) - set(STAGES):
        raise ConfigError(f"--stages={','.join(sorted(unknown))}: they are {', '.join(STAGES)}.")
    config, size = PRESETS[PRESET.value](), (HEIGHT.value, WIDTH.value)
    if size[0] % config.patch_size or size[1] % config.patch_size:
        raise ConfigError(f"{size[1]}x{size[0]} does not divide into patches of {config.patch_size}.")
    clip = Clip(
        config,
        FRAMES.value,
        size,
        precision=POLICIES[PRECISION.value],
        pipeline=PipelineConfig(graph=GRAPH.value, point_dtype=POINT_DTYPE.value, pair_batch=PAIR_BATCH.value),
        training=TrainConfig.dust3r() if TRAINING.value == "dust3r" else TrainConfig.monst3r(),
        pairs_per_device=PAIRS.value,
    )
    print(
        f"  {clip.frames} frames of {size[1]}x{size[0]}, {len(clip.edges)} directed pairs, {PRESET.value}, "
        f"{clip.precision.name}, jax {jax.__version__}"
    )
    # As a program runs it: whoever calls this one may have chosen otherwise.
    with jax.default_matmul_precision(None):  # pyright: ignore[reportArgumentType]
        wrong = _lowered(clip, chosen) if PLATFORM.value == "gpu" else _compiled(clip, chosen)
    if wrong:
        raise ConfigError(f"{'; '.join(wrong)}.")


def _chosen(clip: Clip, stages: list[str]) -> Iterator[Program]:
    return (program for program in programs(clip) if program.stage in stages)


def _lowered(clip: Clip, stages: list[str]) -> list[str]:
    """Lowers for GPUs, prints the table and returns what is wrong."""
    rows, wrong, found = [], [], []
    with stablehlo.traced_for_gpu():
        for program in _chosen(clip, stages):
            lowered = stablehlo.lower(program, clip.tokens)
            complaints = stablehlo.complaints(program, lowered, clip)
            calls = ", ".join(f"{count} {dtype}" for dtype, count in lowered.fused.items()) or "-"
            products = f"{sum(lowered.products.values()) / 1e9:.1f}"
            shares = [f"{100 * lowered.exact_share:.2f} %", str(len(lowered.quadratic))]
            verdict = "WRONG" if complaints else "ok"
            rows.append((program.stage, program.name, program.items, products, *shares, calls, verdict))
            wrong += [f"{program.stage}, {program.name}: {complaint}" for complaint in complaints]
            found.append(_named(program) | dataclasses.asdict(lowered))
    print(table(rows, ("stage", "program", "at a time", "GFLOP", "exact", "N x N", "fused attention", "")))
    _write(found)
    return wrong


def _compiled(clip: Clip, stages: list[str]) -> list[str]:
    """Compiles for TPUs, prints the tables and returns what is wrong."""
    devices = compiler.topology(TOPOLOGY.value)
    memory = compiler.MEMORY[TOPOLOGY.value.split(":")[0]]
    layouts = {"single": {"device": devices[0]}, "sharded": {"mesh": compiler.mesh_of(devices)}}
    wrong, found = [], []
    for layout, where in layouts.items():
        if LAYOUT.value not in ("both", layout):
            continue
        print(f"  {TOPOLOGY.value}, {'one chip' if layout == 'single' else f'sharded over {len(devices)} chips'}:")
        rows = []
        with target.traced_for("tpu", int(memory)):
            for program in _chosen(dataclasses.replace(clip, **where), stages):
                print(f"    compiling {program.stage}, {program.name} ...", flush=True)
                compiled = compiler.compile_program(program)
                name = f"{program.stage}, {program.name} ({layout})"
                said = {"error": compiled} if isinstance(compiled, str) else dataclasses.asdict(compiled)
                found.append(_named(program) | {"layout": layout} | said)
                _write(found)  # each time: all of them take hours
                if isinstance(compiled, str):
                    wrong.append(f"{name} does not compile: {compiled}")
                    continue
                rows.append(_row(program, compiled))
                if compiled.memory + compiled.beside > memory:
                    needed = (compiled.memory + compiled.beside) / 1e9
                    wrong.append(f"{name} needs {needed:.3g} GB of {memory / 1e9:g} GB")
        header = ("stage", "program", "at a time", "compile s", "GB", "beside", "GFLOP", "exact", "GB moved")
        print(table(rows, (*header, "collectives")))
    return wrong


def _row(program: Program, compiled: compiler.Compiled) -> tuple[str, ...]:
    products = sum(compiled.products.values())
    said = [f"{count} {kind} {size / 1e6:.1f} MB" for kind, (count, size) in compiled.collectives.items()]
    return (
        program.stage,
        program.name,
        program.items,
        f"{compiled.seconds:.0f}",
        f"{compiled.memory / 1e9:.2f}",
        f"{compiled.beside / 1e9:.2f}",
        f"{products / 1e9:.1f}",
        f"{100 * compiled.products.get('exact', 0) / max(1.0, products):.1f} %",
        f"{compiled.moved / 1e9:.2f}",
        ", ".join(said) or "-",
    )


def _named(program: Program) -> dict[str, str]:
    return {"stage": program.stage, "program": program.name, "items": program.items}


def _write(found: list[dict]) -> None:
    if JSON.value:
        write_json(JSON.value, found)
