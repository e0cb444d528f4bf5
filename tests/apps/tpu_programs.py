"""Compiles a few small programs for TPUs and prints what the compiler says: see test_compile_check.py."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json

import jax
import jax.numpy as jnp

from easi3r_jax.apps.compile_check import compiler, main
from easi3r_jax.apps.compile_check.programs import Clip, Program, programs
from easi3r_jax.core import target
from tests.networks import small_network

#: Eight frames, so that four chips have two each, and pairs that they divide.
CLIP = Clip(small_network(image_size=(32, 48)), 8, (32, 48))
CHOSEN = {("encode", "network"): "encode", ("alignment", "descent"): "alignment"}


def too_large(device) -> str:
    """What the compiler says of a program whose argument is larger than a chip's memory."""
    x = Clip(CLIP.config, 8, CLIP.size, device=device).array(1 << 33)
    return str(compiler.compile_program(Program("encode", "doubling", "", jax.jit(lambda x: x * jnp.float32(2)), (x,))))


def does_not_fit() -> tuple[int, str]:
    """Exit status and message of the program where a chip has a megabyte."""
    errors = io.StringIO()
    compiler.MEMORY["v5e"] = 1e6
    arguments = (
        "--preset=embedded",
        "--frames=8",
        "--height=32",
        "--width=48",
        "--topology=v5e:2x2",
        "--stages=encode",
    )
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        code = main.FLAGS.execute(main.main, ["", *arguments, "--layout=sharded"])
    return code, errors.getvalue()


def run() -> None:
    jax.config.update("jax_platforms", "cpu")
    devices = compiler.topology("v5e:2x2")
    found: dict = {"gradient_bytes": 12 * CLIP.frames * CLIP.size[0] * CLIP.size[1]}
    with target.traced_for("tpu"):
        for layout, where in {"single": {"device": devices[0]}, "sharded": {"mesh": compiler.mesh_of(devices)}}.items():
            found[layout] = {}
            for program in programs(dataclasses.replace(CLIP, **where)):
                if name := CHOSEN.get((program.stage, program.name)):
                    compiled = compiler.compile_program(program)
                    assert isinstance(compiled, compiler.Compiled), compiled
                    found[layout][name] = dataclasses.asdict(compiled)
        found["too_large"] = too_large(devices[0])
    found["does_not_fit"] = does_not_fit()
    print(json.dumps(found))


if __name__ == "__main__":
    run()
