"""Everything that is to be measured on a GPU, in at most nine minutes: `make gpu-check`.

    python -m tests.gpu_check --output=runs/gpu_check           # needs an NVIDIA GPU and the extra cuda12 or cuda13
    python -m tests.gpu_check --output=runs/gpu_check --small   # tries the script itself on any device, in minutes

Each step is a process of its own with a limit, its output in `NAME.log` and its numbers in `NAME.json`; `summary.md`
has them all, with the device that they ran on. A step that fails or is out of time does not stop the others. What JAX
compiles is kept in the folder, so a second call measures more in the same time. Exit status: 1 if a step failed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

ROOT = pathlib.Path(__file__).parents[1]
#: Seconds in all.
BUDGET = 540.0


@dataclasses.dataclass(frozen=True)
class Step:
    """One measurement.

    Attributes:
      name: of its files.
      limit: seconds.
      command: arguments of Python; "{json}" stands for the file of its numbers.
    """

    name: str
    limit: float
    command: tuple[str, ...]


def steps(*, small: bool) -> list[Step]:
    """In the order of their worth: what comes last may be left out for want of time."""
    preset, size = ("embedded", (64, 96)) if small else ("512-dpt", (288, 512))
    shape = (f"--preset={preset}", f"--height={size[0]}", f"--width={size[1]}")
    clips, train = ((5, 8), 2) if small else ((65, 200), 4)
    alignment = ("--frames=6", "--iterations=20") if small else ("--frames=65", "--iterations=100")
    flow = ("--flow=raft-small", "--frames=3") if small else ("--flow=sea-raft", "--frames=12")
    own, benchmark = ("-m", "tests.gpu_check", "--json={json}"), ("-m", "experiments.benchmark", "--json={json}")
    found = [
        Step("fused", 60, (*own, "--step=fused")),
        Step("clip", 150, (*own, "--step=clip", *shape, f"--frames={clips[0]}")),
        Step("alignment", 60, (*benchmark, *shape, "--stages=alignment", *alignment, "--repeats=2")),
        Step("flow", 90, (*benchmark, *shape, "--stages=flow", *flow, "--repeats=1")),
        Step("training", 90, (*own, "--step=training", *shape, f"--frames={train}")),
        Step("parity", 150, ("-m", "experiments.parity", "--golden=tests/golden")),
        Step("long", 150, (*own, "--step=clip", *shape, f"--frames={clips[1]}")),
    ]
    # A CPU may be slow and busy.
    return [dataclasses.replace(step, limit=10 * step.limit) for step in found] if small else found


# --- what the steps measure -----------------------------------------------------------------------------------------


def fused_attention() -> dict[str, Any]:
    """The network's attention against float32 of all bits, and whether it calls the fused kernel.

    Errors are relative to the largest value; bfloat16 has eight bits, so .004 is rounding.
    """
    import jax
    import jax.numpy as jnp

    from easi3r_jax.models.attention import dot_product_attention, masked_attention

    found: dict[str, Any] = {}
    for tokens, heads, width in ((576, 16, 64), (575, 12, 64), (60, 4, 32)):
        keys = jax.random.split(jax.random.key(tokens), 5)
        qkv = [jax.random.normal(k, (2, tokens, heads, width)).astype(jnp.bfloat16) for k in keys[:3]]
        masks = [jax.random.bernoulli(k, 0.3, (2, tokens)) for k in keys[3:]]
        for name, attend in (
            ("plain", dot_product_attention),
            ("masked", lambda q, k, v, masks=masks: masked_attention(q, k, v, *masks)),
        ):

            def total(q, k, v, attend=attend):
                return jnp.sum(jnp.square(attend(q, k, v).astype(jnp.float32)))

            with jax.default_matmul_precision("highest"):
                wide = [x.astype(jnp.float32) for x in qkv]
                exact = jax.tree.leaves((attend(*wide), jax.grad(total, (0, 1, 2))(*wide)))
            ours = jax.tree.leaves((jax.jit(attend)(*qkv), jax.jit(jax.grad(total, (0, 1, 2)))(*qkv)))
            errors = [
                float(jnp.max(jnp.abs(a.astype(jnp.float32) - b)) / jnp.max(jnp.abs(b)))
                for a, b in zip(ours, exact, strict=True)
            ]
            found[f"{name}, {tokens} tokens, head width {width}"] = {"output": errors[0], "gradient": max(errors[1:])}
    text = jax.jit(dot_product_attention).lower(*qkv).as_text()
    worst = max(max(errors.values()) for errors in found.values())
    found["fused kernel called"] = "__cudnn$fmha" in text
    if worst > 0.02:
        raise SystemExit(f"attention differs by {worst:.3f} from float32: {found}")
    if jax.default_backend() == "gpu" and not found["fused kernel called"]:
        raise SystemExit("this GPU does not get the fused kernel")
    return found


def reconstructed_clip(preset: str, size: tuple[int, int], frames: int) -> dict[str, Any]:
    """A clip of noise through the whole method with random weights: seconds of each stage, and the peak memory."""
    import jax

    from easi3r_jax.apps.benchmark.stages import noise_frames
    from easi3r_jax.apps.environment import peak_memory_bytes
    from easi3r_jax.core.config import PipelineConfig
    from easi3r_jax.inference import pipeline
    from easi3r_jax.models import policy, random_model
    from easi3r_jax.models.config import PRESETS

    model, clip = random_model(PRESETS[preset](), precision=policy()), noise_frames(frames, *size)
    found: dict[str, Any] = {"frames": frames, "pairs": len(pipeline.clip_edges(frames, PipelineConfig().graph))}
    for run in ("first", "second"):
        stages: dict[str, float] = {}
        begun: dict[str, float] = {}

        def observe(stage: str, done: int, total: int, note: str, stages=stages, begun=begun) -> None:
            del note
            now = time.perf_counter()
            if not done:
                begun[stage] = now
            if done == total and stage in begun:
                stages[stage] = stages.get(stage, 0.0) + now - begun.pop(stage)

        began = time.perf_counter()
        jax.block_until_ready(pipeline.reconstruct(model, clip, progress=observe).scene.depth)
        found[run] = {"seconds": time.perf_counter() - began, "stages": stages}
        if found["first"]["seconds"] > 60:  # leave the time to the other steps
            break
    return found | {"peak_memory_bytes": peak_memory_bytes()}


def training_rate(preset: str, size: tuple[int, int], pairs: int) -> dict[str, Any]:
    """Steps of training on random pairs with DUSt3R's objective and optimiser."""
    import jax
    import jax.numpy as jnp

    from easi3r_jax.apps.benchmark.timing import median_seconds
    from easi3r_jax.apps.environment import peak_memory_bytes
    from easi3r_jax.core import sharding
    from easi3r_jax.models import parameters_of, policy, random_model
    from easi3r_jax.models.config import PRESETS
    from easi3r_jax.training.batch import ViewPairs
    from easi3r_jax.training.config import TrainConfig
    from easi3r_jax.training.step import init_state, make_step

    config = dataclasses.replace(TrainConfig.dust3r(), batch_size=pairs, warmup_samples=0)
    network, mesh = PRESETS[preset](), sharding.data_mesh(1)
    state = init_state(parameters_of(random_model(network)), config)
    step = make_step(network, config, mesh, precision=policy())
    focal = float(size[1])
    intrinsics = jnp.asarray([[focal, 0, size[1] / 2], [0, focal, size[0] / 2], [0, 0, 1]], jnp.float32)
    data = ViewPairs(
        rgb=jax.random.randint(jax.random.key(0), (pairs, 2, *size, 3), 0, 256).astype(jnp.uint8),
        depth=jax.random.uniform(jax.random.key(1), (pairs, 2, *size), minval=1.0, maxval=3.0),
        intrinsics=jnp.broadcast_to(intrinsics, (pairs, 2, 3, 3)),
        world_from_cam=jnp.broadcast_to(jnp.eye(4), (pairs, 2, 4, 4)),
    )

    def again() -> Any:
        nonlocal state
        state, terms = step(state, data)
        return terms

    began = time.perf_counter()
    jax.block_until_ready(again())
    first = time.perf_counter() - began
    seconds = median_seconds(again, 5)
    return {
        "pairs": pairs,
        "first_seconds": first,
        "seconds": seconds,
        "pairs_per_second": pairs / seconds,
        "peak_memory_bytes": peak_memory_bytes(),
    }


# --- the script -----------------------------------------------------------------------------------------------------


def device() -> dict[str, Any]:
    """What JAX finds, asked in a process of its own, which gives the device back."""
    code = "import json, jax; from easi3r_jax.apps import environment as e; print(json.dumps({**e.versions(), "
    code += "'platform': jax.default_backend()}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def run_steps(
    chosen: Sequence[Step], output: pathlib.Path, budget: float, *, clock: Callable[[], float] = time.monotonic
) -> dict[str, dict[str, Any]]:
    """Runs the steps within the budget. Returns for each its outcome, seconds and numbers."""
    ends, results = clock() + budget, {}
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(output / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
    }
    for step in chosen:
        limit, numbers = min(step.limit, ends - clock()), output / f"{step.name}.json"
        numbers.unlink(missing_ok=True)
        if limit < 5:
            results[step.name] = {"outcome": "left out: no time"}
            continue
        command = [sys.executable, *(part.replace("{json}", str(numbers)) for part in step.command)]
        began = clock()
        with (output / f"{step.name}.log").open("w", encoding="utf-8") as log:
            try:
                options = {"cwd": ROOT, "env": environment, "stdout": log, "stderr": subprocess.STDOUT}
                done = subprocess.run(command, **options, timeout=limit, check=False)
                outcome = "ok" if done.returncode == 0 else f"FAILED: exit status {done.returncode}"
            except subprocess.TimeoutExpired:
                outcome = f"FAILED: not done in {limit:.0f} s"
        results[step.name] = {"outcome": outcome, "seconds": clock() - began}
        if numbers.exists():
            results[step.name]["numbers"] = json.loads(numbers.read_text(encoding="utf-8"))
        print(f"  {step.name:10s} {results[step.name]['seconds']:6.1f} s  {outcome}", flush=True)
    return results


def summary(found: dict[str, Any], results: dict[str, dict[str, Any]], *, small: bool) -> str:
    """All numbers, as Markdown."""
    lines = [f"# {found['device']}, platform {found['platform']}, jax {found['jax']}", ""]
    if found["platform"] != "gpu" or small:
        lines += ["**No measurement of a GPU at full size**: a trial of the script.", ""]
    for name, result in results.items():
        lines += [f"## {name}: {result['outcome']}", ""]
        if "numbers" in result:
            lines += ["```json", json.dumps(result["numbers"], indent=1), "```", ""]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("runs/gpu_check"))
    parser.add_argument("--small", action="store_true", help="a small network on any device")
    parser.add_argument("--budget", type=float, help=f"seconds ({BUDGET:.0f}; with --small ten times as many)")
    parser.add_argument("--only", default="", help="names of steps, separated by commas")
    for name in ("step", "preset", "json"):
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    for name in ("height", "width", "frames"):
        parser.add_argument(f"--{name}", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.step:
        size = (options.height, options.width)
        measured = {
            "fused": fused_attention,
            "clip": lambda: reconstructed_clip(options.preset, size, options.frames),
            "training": lambda: training_rate(options.preset, size, options.frames),
        }[options.step]()
        pathlib.Path(options.json).write_text(json.dumps(measured), encoding="utf-8")
        print(json.dumps(measured, indent=1))
        return 0
    found = device()
    if found["platform"] != "gpu" and not options.small:
        print(f"error: JAX finds no GPU ({found['device']}). Install '.[cuda12]', or try --small.", file=sys.stderr)
        return 1
    output = options.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    print(f"  {found['device']}, platform {found['platform']}; results in {options.output}", flush=True)
    only = options.only.split(",") if options.only else None
    chosen = [step for step in steps(small=options.small) if only is None or step.name in only]
    results = run_steps(chosen, output, options.budget or BUDGET * (10 if options.small else 1))
    (output / "summary.md").write_text(summary(found, results, small=options.small), encoding="utf-8")
    return int(any(result["outcome"] != "ok" for result in results.values()))


if __name__ == "__main__":
    sys.exit(main())
