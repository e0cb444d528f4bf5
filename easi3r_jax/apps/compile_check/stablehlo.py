"""What is in a program for NVIDIA GPUs, before their compiler: it is lowered here, and compiled nowhere."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

from easi3r_jax.apps import flops
from easi3r_jax.apps.compile_check.programs import Clip, Program
from easi3r_jax.core import target

#: Largest share of the operations of a program's products that may keep all bits of float32, where layers compute in
#: half precision: the attention's statistics, the upsampling of flow; everything that is geometry. By stage, or by
#: stage and program.
EXACT_SHARE = {
    "flow": 0.01,
    "encode": 0.0,
    "first pass": 0.01,
    "first pass, moments": 1.0,
    "masks": 1.0,
    "second pass": 0.01,
    "alignment": 1.0,
    "alignment with flow": 1.0,
    "training": 0.01,
}
#: Calls of the fused attention kernel in each program, where the network computes in half precision: the encoder's
#: block; self- and cross-attention of both branches; masked cross-attention twice; forwards and backwards in training.
FUSED_CALLS = {
    "encode, network": 1,
    "first pass, network": 4,
    "second pass, network, heads": 5,
    "training, step": 10,
}
# A version that serves every call. JAX asks the installed library, which only a machine with a GPU has.
_CUDNN_VERSION = 91000
#: Bytes of the GPU that programs are traced for, on which batch sizes depend.
MEMORY = 80 * 10**9
_CALL = re.compile(r"custom_call @__cudnn\$fmha\w*\(.*?\) \{.*\} : \((.*?)\) ->")
_TENSOR = re.compile(r"tensor<([\dx]+)x\w+>")


@dataclasses.dataclass(frozen=True)
class Lowered:
    """What is in a program for a GPU.

    Attributes:
      fused: calls of the fused attention kernel, by the number type of queries, keys and values.
      quadratic: types of arrays with two axes of N tokens.
      products: operations of products and convolutions, loops included, without the fused kernel's, by kind.
    """

    fused: dict[str, int]
    quadratic: list[str]
    products: dict[str, float]

    @property
    def exact_share(self) -> float:
        """Share of the operations of products that keep all bits of float32."""
        return self.products.get("exact", 0) / max(1.0, sum(self.products.values()))


@contextmanager
def traced_for_gpu() -> Iterator[None]:
    """Within it, programs are traced for NVIDIA GPUs of compute capability 8.0 or later."""
    from jax._src.cudnn import fused_attention_stablehlo as cudnn  # private: only where it is needed

    with target.traced_for("gpu", MEMORY), mock.patch.object(cudnn, "check_cudnn_version", return_value=_CUDNN_VERSION):
        yield


def lower(program: Program, tokens: int) -> Lowered:
    """Lowers a program for CUDA; to be called within `traced_for_gpu`.

    Args:
      program: without placement on devices.
      tokens: N.
    """
    traced = program.trace()
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    return inspected(text, flops.products(traced.jaxpr.jaxpr), tokens)


def inspected(text: str, products: dict[str, float], tokens: int) -> Lowered:
    """What is in a program's StableHLO."""
    fused: Counter[str] = Counter()
    for operands in _CALL.findall(text):
        types = {kind.rsplit("x", 1)[1] for kind in re.findall(r"tensor<([^>]*x[a-z]+\d+)>", operands)[:3]}
        fused["/".join(sorted(types))] += 1
    quadratic = {shape for shape in _TENSOR.findall(text) if shape.split("x").count(str(tokens)) > 1}
    return Lowered(dict(fused), sorted(quadratic), products)


def complaints(program: Program, found: Lowered, clip: Clip) -> list[str]:
    """What a program has and should not have, or lacks."""
    name = f"{program.stage}, {program.name}"
    wrong = []
    most = EXACT_SHARE.get(name, EXACT_SHARE[program.stage])
    if found.exact_share > most:
        wrong.append(f"{100 * found.exact_share:.1f} % of its products are exact float32, at most {100 * most:g} %")
    if clip.precision.layers == "bfloat16" and name in FUSED_CALLS:
        if found.fused != {"bf16": FUSED_CALLS[name]}:
            calls = ", ".join(f"{count} in {dtype}" for dtype, count in found.fused.items()) or "none"
            wrong.append(f"{FUSED_CALLS[name]} calls of fused attention in bf16 expected, found: {calls}")
        if found.quadratic:
            wrong.append(f"arrays of {clip.tokens} x {clip.tokens} tokens: {', '.join(found.quadratic[:3])}")
    return wrong
