"""Programs for accelerators, made on a CPU: their shapes are a run's, and what is in them is what should be."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import easi3r_jax as e3r
from easi3r_jax.alignment import assembly, clean, descent, problem
from easi3r_jax.apps import flops
from easi3r_jax.apps.compile_check import compiler, main
from easi3r_jax.apps.compile_check.programs import Clip, bytes_of, programs
from easi3r_jax.core import batches, target
from easi3r_jax.core.errors import ConfigError
from easi3r_jax.inference import passes, pipeline
from easi3r_jax.models import Precision, layers

ROOT = pathlib.Path(__file__).parents[2]
#: 60 tokens, a number that no other axis has.
SMALL = ("--preset=embedded", "--frames=5", "--height=48", "--width=80")


@pytest.fixture
def run(capsys):
    def run(*arguments):
        code = main.FLAGS.execute(main.main, ["", *arguments])
        return code, *capsys.readouterr()

    return run


def test_every_stage_is_lowered_for_gpus_as_it_should_be(run):
    code, out, errors = run("--platform=gpu", *SMALL)
    assert (code, errors) == (0, "")
    rows = [line for line in out.splitlines() if line.endswith(" ok")]
    assert len(rows) == 14 and "WRONG" not in out
    assert [line.split()[-3:-1] for line in rows if "bf16" in line] == [[str(n), "bf16"] for n in (1, 4, 5, 10)]


def test_products_in_exact_float32_are_found(run):
    """In float32 the encoder's products are exact, and its attention has no fused kernel: an N x N map."""
    code, out, errors = run("--platform=gpu", *SMALL, "--stages=encode", "--precision=exact")
    assert code == 1 and len(errors.splitlines()) == 1 and "WRONG" in out
    assert "encode, network: 100.0 % of its products are exact float32, at most 0 %" in errors


def test_attention_without_the_fused_kernel_is_found(run, monkeypatch):
    monkeypatch.setattr("easi3r_jax.models.attention._has_fused_kernel", lambda: False)
    code, _, errors = run("--platform=gpu", *SMALL, "--stages=encode")
    assert code == 1
    assert "1 calls of fused attention in bf16 expected, found: none" in errors
    assert "arrays of 60 x 60 tokens: 5x4x60x60" in errors


def test_a_program_for_another_platform_is_another_program():
    """A depthwise convolution is a sum on a CPU; afterwards the process is what it was."""
    convolution, x = layers.depthwise_conv2d(4, 3, rngs=nnx.Rngs(0)), jnp.zeros((1, 8, 8, 4))

    def has_convolution() -> bool:
        return "stablehlo.convolution" in jax.jit(lambda f, x: f(x)).lower(convolution, x).as_text()

    before = has_convolution()
    with target.traced_for("tpu"):
        within = has_convolution()
    assert within and has_convolution() == before == (jax.default_backend() != "cpu")


def test_products_are_counted_by_their_arithmetic():
    half, single = jnp.zeros((4, 8), jnp.bfloat16), jnp.zeros((4, 8))

    def function(a, b):
        exact = jax.lax.scan(lambda c, _: (c, jnp.matmul(b, b.T, precision="highest")), 0, None, length=3)[1]
        return exact, jnp.matmul(b, b.T, precision="high"), a @ a.T

    with jax.default_matmul_precision("default"):
        found = flops.products(jax.make_jaxpr(function)(half, single).jaxpr)
    assert found == {"exact": 3 * 256, "reduced": 256, "half": 256}


def test_communication_is_read_from_a_compiled_program():
    text = """
      %a = f32[8,4]{1,0:T(8,128)} all-reduce(%x), replica_groups={}
      %b = (bf16[2,4]{1,0}, bf16[4,4]{1,0:T(8,128)(2,1)}) all-gather-start(%y), dimensions={0}
      %c = bf16[4,4]{1,0} all-gather-done(%b)
    """
    assert compiler.collectives_of(text) == {"all-reduce": (1, 128.0), "all-gather": (1, 48.0)}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--topology=gpu:8",), "Unknown topology 'gpu:8': it begins with one of v4, v5e, v5p, v6e"),
        (("--stages=encode,heads",), "--stages=heads: they are flow, encode"),
        (("--height=290",), "512x290 does not divide into patches of 16"),
    ],
)
def test_bad_input_is_one_line(run, arguments, says):
    code, _, errors = run(*arguments)
    assert code == 1 and len(errors.splitlines()) == 1 and says in errors


def test_a_missing_compiler_is_named(monkeypatch):
    def absent(*_, **__):
        raise RuntimeError("JAX TPU support not installed")

    monkeypatch.setattr(compiler.topologies, "get_topology_desc", absent)
    with pytest.raises(ConfigError, match=r"easi3r_jax\[tpu\]"):
        compiler.topology("v5e:2x2")


# --- the programs are those of a run --------------------------------------------------------------------------------


def shapes(tree) -> list[tuple]:
    """Shapes and types of a tree's arrays, in order; numbers of Python's own are left out."""
    leaves = (x for x in jax.tree.leaves(tree) if hasattr(x, "dtype"))
    return [
        (tuple(x.shape), jnp.dtype(x.dtype) if not jnp.issubdtype(x.dtype, jax.dtypes.extended) else "key")
        for x in leaves
    ]


class Recorder:
    """Stands for a compiled function, and keeps the shapes of its arguments."""

    def __init__(self, function):
        self.function, self.calls = function, []

    def __call__(self, *arguments, **options):
        self.calls.append(shapes((arguments, options)))
        return self.function(*arguments, **options)


def test_the_programs_have_the_shapes_of_a_run(monkeypatch):
    model = e3r.load_model("embedded").with_readout(None)
    frames = e3r.load_frames("demo", e3r.FrameConfig.for_model(model, first=3))
    config = e3r.PipelineConfig(alignment=e3r.AlignConfig(iterations=20), graph="complete")
    places = {
        ("encode", "network"): (passes, "_encode_batch"),
        ("first pass", "moments"): (passes, "_merge_batch"),
        ("masks", "clusters"): (pipeline, "_cluster"),
        ("masks", "scores and threshold"): (pipeline, "segment"),
        ("second pass", "network, heads"): (passes, "_network_batch"),
        ("second pass", "storing"): (batches, "_keep"),
        ("alignment", "registration"): (assembly, "_register"),
        ("alignment", "layout of points"): (problem, "_coordinates"),
        ("alignment with flow", "descent"): (descent, "_compiled_steps"),
        ("alignment", "clean-up"): (clean, "_clean"),
    }
    clip = Clip(model.config, 3, frames.rgb.shape[1:3], precision=Precision(), pipeline=config)
    described = {(p.stage, p.name): p for p in programs(clip)}
    recorders = {}
    for key, (module, name) in places.items():
        recorders[key] = Recorder(getattr(module, name))
        monkeypatch.setattr(module, name, recorders[key])
    given = e3r.Given(flow=np.zeros((6, *clip.size, 2), np.float32))
    e3r.reconstruct(model, frames, config, given=given)
    assert set(described) - set(places) == {
        ("flow", "network"), ("first pass", "network"), ("alignment", "descent"), ("training", "step")
    }  # fmt: skip
    for key, recorder in recorders.items():
        program = described[key]
        expected = shapes((program.arguments, dict(program.options)))
        assert expected in recorder.calls, key
    # Of a point map, six pairs: four bytes for each of three coordinates and a confidence, on either side.
    assert bytes_of(clip.point_maps()) == 6 * 64 * 96 * 2 * 4 * 4


# --- with the TPU's compiler ----------------------------------------------------------------------------------------

#: Where `make test-tpu` installs it: in the environment itself JAX would look for a TPU in every process.
BESIDE = pathlib.Path(sys.prefix) / "tpu"


def with_libtpu() -> dict[str, str]:
    """The environment of a process that finds the TPU's compiler; skips the test without one."""
    if importlib.util.find_spec("libtpu") is None and not (BESIDE / "libtpu").is_dir():
        pytest.skip("the TPU's compiler is not installed: make test-tpu")
    paths = [str(BESIDE), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)}


def test_programs_are_compiled_for_tpus():
    """For one chip and for four: in a process of its own, since the TPU's library stays in one."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.apps.tpu_programs"],
        cwd=ROOT, env=with_libtpu(), capture_output=True, text=True, timeout=800, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    single, sharded = found["single"], found["sharded"]
    # An eighth of the pairs on each chip. The gradient by the frames' points, 12 bytes a pixel, is summed over chips.
    assert sharded["alignment"]["memory"] < single["alignment"]["memory"]
    assert not single["alignment"]["collectives"]
    count, size = sharded["alignment"]["collectives"]["all-reduce"]
    assert count >= 1 and size >= found["gradient_bytes"]
    assert sharded["encode"]["products"]["half"] == single["encode"]["products"]["half"] / 4
    assert not sharded["encode"]["collectives"]
    assert found["too_large"].startswith("RESOURCE_EXHAUSTED") and "\n" not in found["too_large"]
    code, message = found["does_not_fit"]
    assert code == 1 and message.startswith("error: encode, network (sharded) needs ")
