"""Bytes that VGGT needs on one device for a clip, by a compiler's count. Nothing is run.

    python tests/vggt_memory.py --frames=200 --stage=first
    PYTHONPATH=.:FOLDER_WITH_LIBTPU python tests/vggt_memory.py --frames=200 --stage=masked --platform=tpu

The released network in bfloat16; weights and frames are shapes only. Stages: encode; aggregate (no statistics, no
masks); masked (with the cue's statistics, and dynamic tokens left out); heads (cameras, depth and confidence); first
(aggregate with statistics, and heads: the first pass of `reconstruct_multiview`). The TPU's compiler needs no TPU, but
takes minutes. Of a CPU, arguments, results and temporaries are added up.
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
    if stage == "first":

        def first_pass(model: Any, x: Any) -> Any:
            found = model.aggregate(x, grid, bands=bands)
            return model.cameras(found), model.depth(found, grid), found.statistics

        return first_pass, (model, features)
    levels, cameras = array(4, frames, tokens, 2 * config.dim), array(frames, 2 * config.dim)
    return lambda m, a: (m.cameras(a), m.depth(a, grid)), (model, Aggregated(levels, cameras, array(0, 0, 0), {}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=200)
    parser.add_argument("--height", type=int, default=294)
    parser.add_argument("--width", type=int, default=518)
    parser.add_argument("--stage", choices=("encode", "aggregate", "masked", "heads", "first"), default="first")
    parser.add_argument("--platform", choices=("cpu", "tpu"), default="cpu")
    options = parser.parse_args()
    on_tpu = options.platform == "tpu"
    topology = compiler.topology(TOPOLOGY) if on_tpu else None  # before JAX looks for a TPU
    import jax

    from easi3r_jax.core import target

    device = topology[0] if topology is not None else jax.devices("cpu")[0]
    function, arguments = program(options.stage, options.frames, (options.height, options.width), device)
    began = time.perf_counter()
    with target.traced_for(options.platform, MEMORY):
        memory = jax.jit(function).trace(*arguments).lower().compile().memory_analysis()
    parts = [memory.argument_size_in_bytes, memory.output_size_in_bytes, memory.temp_size_in_bytes]
    total = memory.peak_memory_in_bytes if on_tpu else sum(parts)
    print(
        f"{options.stage}, {options.platform}, {options.frames} frames of {options.width}x{options.height}: "
        f"{total / 1e9:.1f} GB (arguments {parts[0] / 1e9:.1f}, results {parts[1] / 1e9:.1f}, temporaries "
        f"{parts[2] / 1e9:.1f}; compiled in {time.perf_counter() - began:.0f} s)"
    )


if __name__ == "__main__":
    main()
