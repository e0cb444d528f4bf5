"""Shows that a long clip fits into a device by windows: memory counted by the compiler, and a run of small frames.

    python -m experiments.long_clips --output=docs/images/long_clips.png
    python -m experiments.long_clips --topology=v5e:2x2                 # the TPU's compiler, which needs libtpu, no TPU

Counted, for every stage of a window and of the whole clip: the compiled program's arguments, results and temporary
arrays, and what else is in memory meanwhile, with the networks' batches as on an accelerator. Nothing is computed for
it. The run reconstructs noise of half the embedded network's size, and prints how memory and time per window change
along the clip.
"""

from __future__ import annotations

import io

import numpy as np

from easi3r_jax.alignment import window_ranges
from easi3r_jax.apps import cli
from easi3r_jax.apps.environment import processor
from easi3r_jax.apps.long_clips.figure import long_clips_figure
from easi3r_jax.apps.long_clips.memory import MemoryCounter, StageMemory, device_of
from easi3r_jax.apps.long_clips.run import WindowRecord, run_windows
from easi3r_jax.apps.progress import Stages, clock, table
from easi3r_jax.core.atomic import atomic_file
from easi3r_jax.core.errors import ConfigError
from easi3r_jax.models.config import PRESETS
from easi3r_jax.models.precision import POLICIES
from easi3r_jax.weights.load import load_model

FLAGS = cli.Flags(__doc__)
_WHAT = FLAGS.group("What is counted")
PRESET = _WHAT.choice("preset", "512-dpt", list(PRESETS), "Architecture.")
HEIGHT = _WHAT.integer("height", 288, "Pixels.", at_least=16, at_most=16384)
WIDTH = _WHAT.integer("width", 512, "Pixels.", at_least=16, at_most=16384)
FRAMES = _WHAT.integer("frames", 1000, "Frames of the clip, of both parts.", at_least=3, at_most=100_000)
WINDOW = _WHAT.integer("window", 32, "Frames of a window.", at_least=3, at_most=100_000)
OVERLAP = _WHAT.integer("overlap", 8, "Frames that a window shares with the one before.", at_least=1)
GRAPH = _WHAT.string("graph", "swinstride-5-noncyclic", "Pair graph.")
PRECISION = _WHAT.choice("precision", "bf16", list(POLICIES), "What the networks compute in, see docs/precision.md.")
TOPOLOGY = _WHAT.string("topology", "", "TPU to compile for, e.g. v5e:2x2; it need not exist (default: this machine).")
LIMIT = _WHAT.number("limit_gb", 16.0, "Memory of the device; more is an error.", at_least=0.1)
_RUN = FLAGS.group("What is run")
RUN = _RUN.boolean("run", True, "Also run a clip of small frames.")
ITERATIONS = _RUN.integer("iterations", 20, "Iterations of its alignment.", at_least=1)
_OUTPUT = FLAGS.group("Output")
OUTPUT = _OUTPUT.output_file("output", "Draw both into this picture, a .png.")


def main() -> None:
    config, size = PRESETS[PRESET.value](), (HEIGHT.value, WIDTH.value)
    if size[0] % config.patch_size or size[1] % config.patch_size:
        raise ConfigError(f"{size[1]}x{size[0]} does not divide into patches of {config.patch_size}.")
    if OUTPUT.value and not (RUN.value and OUTPUT.value.endswith(".png")):
        raise ConfigError("--output is a .png and shows the run, too: omit --norun.")
    windows = len(window_ranges(FRAMES.value, WINDOW.value, OVERLAP.value))
    counter = MemoryCounter(
        config, size, GRAPH.value, POLICIES[PRECISION.value], int(LIMIT.value * 1e9), device_of(TOPOLOGY.value)
    )
    lengths = sorted({*(n for n in (8, 128) if n < FRAMES.value), WINDOW.value, FRAMES.value})
    counted = {n: counter.count(n) for n in lengths}
    where = TOPOLOGY.value or processor()
    print(f"  {PRESET.value}, {size[1]}x{size[0]}, {PRECISION.value}, compiled for {where}; GB of device memory")
    print(memory_table(counted))
    needed = _peak(counted[min(WINDOW.value, FRAMES.value)])
    print(f"  {FRAMES.value} frames in {windows} windows of {WINDOW.value}: {needed / 1e9:.2f} GB of {LIMIT.value:g}")
    if RUN.value:
        records, seconds = _run()
        print(describe_run(records, seconds))
        if OUTPUT.value:
            at_once = {n: _peak(stages) for n, stages in counted.items()}
            name = f"{size[1]}x{size[0]}"
            figure = long_clips_figure(at_once, WINDOW.value, needed, 1e9 * LIMIT.value, records, name)
            picture = io.BytesIO()
            figure.savefig(picture, format="png")
            with atomic_file(OUTPUT.value) as temporary:
                temporary.write_bytes(picture.getvalue())
            print(f"  written: {OUTPUT.value}")
    if needed > 1e9 * LIMIT.value:
        raise ConfigError(
            f"Windows of {WINDOW.value} frames need more than {LIMIT.value:g} GB: use a shorter --window."
        )


def _run() -> tuple[list[WindowRecord], float]:
    stages = Stages(leave=False)
    try:
        return run_windows(
            load_model("embedded"),
            FRAMES.value,
            window=WINDOW.value,
            overlap=OVERLAP.value,
            iterations=ITERATIONS.value,
            progress=stages,
        )
    finally:
        stages.close()


def memory_table(counted: dict[int, dict[str, StageMemory]]) -> str:
    """GB of every stage, by the number of frames."""
    names = list(next(iter(counted.values())))
    rows = [
        (str(n), *(f"{stages[name].total / 1e9:.2f}" for name in names), f"{_peak(stages) / 1e9:.2f}")
        for n, stages in counted.items()
    ]
    return table(rows, ("frames", *names, "peak"))


def describe_run(records: list[WindowRecord], seconds: float) -> str:
    """How the second and the last quarter of the windows differ."""
    steps = np.diff([r.seconds for r in records])
    quarter = max(1, len(steps) // 4)
    early, late = (np.median(steps[part]) for part in (slice(quarter, 2 * quarter), slice(-quarter, None)))
    lines = [f"  run: {records[-1].frames} frames, {len(records)} windows, {clock(seconds)}"]
    lines.append(f"  seconds per window, median of the second and the last quarter: {early:.2f}, {late:.2f}")
    for name, text in (("array_bytes", "arrays on the device"), ("process_bytes", "process")):
        sizes = np.array([getattr(r, name) for r in records]) / 1e9
        lines.append(f"  GB of the {text}, likewise: {_ends(sizes, quarter)}")
    return "\n".join(lines)


def _ends(sizes: np.ndarray, quarter: int) -> str:
    return f"{np.median(sizes[quarter : 2 * quarter]):.3f}, {np.median(sizes[-quarter:]):.3f}"


def _peak(stages: dict[str, StageMemory]) -> int:
    return max(stage.total for stage in stages.values())
