"""Bytes that VGGT needs on one device for a clip, by the TPU's compiler, which needs no TPU. Nothing is run.

    PYTHONPATH=.:FOLDER_WITH_LIBTPU python tests/vggt_memory.py --frames=200 --stage=masked

The released network in bfloat16; weights and frames are shapes only. Stages: encode; aggregate (no statistics, no
masks); masked (with the cue's statistics, and dynamic tokens left out); heads (cameras, depth and confidence). Each is
a program of its own, so that the largest one counts. The compiler takes minutes.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
import time
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))  # run as a script, it sees its own folder only

from easi3r_jax.apps.compile_check import compiler

TOPOLOGY, MEMORY = "v5p:2x2x1", int(95e9)


def program(stage: str, frames: int, size: tuple[int, int], device: Any) -> tuple[Any, tuple[Any, ...]]:
    """A function and its arguments, as shapes on a device."""
    import jax
    import jax.numpy as jnp

    from easi3r_jax import motion
    from easi3r_jax.models.precision import POLICIES
    from easi3r_jax.models.vggt import Aggregated, VGGTConfig, abstract_vggt

    config, place = VGGTConfig.released(), jax.sharding.SingleDeviceSharding(device)

    def placed(tree: Any) -> Any:
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree)

    def array(*shape: int, dtype: Any = jnp.float32) -> Any:
        return placed(jax.ShapeDtypeStruct(shape, dtype))

    model, grid = placed(abstract_vggt(config, precision=POLICIES["bf16"])), (size[0] // 14, size[1] // 14)
    tokens, bands = grid[0] * grid[1], motion.gram_bands(config.depth)
    features = array(frames, tokens, config.dim)
    if stage == "encode":
        return lambda m, x: m.encode(x), (model, array(frames, *size, 3, dtype=jnp.uint8))
    if stage == "aggregate":
        return lambda m, x: m.aggregate(x, grid), (model, features)
    if stage == "masked":
        dynamic = array(frames, tokens, dtype=bool)
        return lambda m, x, d: m.aggregate(x, grid, d, bands=bands), (model, features, dynamic)
    levels, cameras = array(4, frames, tokens, 2 * config.dim), array(frames, 2 * config.dim)
    return lambda m, a: (m.cameras(a), m.depth(a, grid)), (model, Aggregated(levels, cameras, array(0, 0, 0), {}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=200)
    parser.add_argument("--height", type=int, default=294)
    parser.add_argument("--width", type=int, default=518)
    parser.add_argument("--stage", choices=("encode", "aggregate", "masked", "heads"), default="masked")
    options = parser.parse_args()
    device = compiler.topology(TOPOLOGY)[0]
    import jax

    from easi3r_jax.core import target

    function, arguments = program(options.stage, options.frames, (options.height, options.width), device)
    began = time.perf_counter()
    with target.traced_for("tpu", MEMORY):
        memory = jax.jit(function).trace(*arguments).lower().compile().memory_analysis()
    print(
        f"{options.stage}, {options.frames} frames of {options.width}x{options.height}: "
        f"{memory.peak_memory_in_bytes / 1e9:.1f} GB at the peak, of which arguments "
        f"{memory.argument_size_in_bytes / 1e9:.1f}, results {memory.output_size_in_bytes / 1e9:.1f} "
        f"(compiled in {time.perf_counter() - began:.0f} s)"
    )


if __name__ == "__main__":
    main()
