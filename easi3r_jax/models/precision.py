"""Which part of the networks computes in which number type: one policy for all of them.

| policy | encoder, decoder | heads, optical flow | for |
|---|---|---|---|
| exact | float32 | float32 | CPUs; parity |
| tf32 | TF32 products | TF32 products | a network that bfloat16 harms |
| bf16 | bfloat16, weights too | TF32 products | GPUs and TPUs |

"TF32 products" are products of float32 arrays at `jax.lax.Precision.HIGH`: a GPU rounds their factors to TF32's 10 bits
of mantissa, a TPU adds three bfloat16 products, a CPU computes them exactly. The residual stream, norms, softmax and
the attention's statistics are float32 in every policy, as is everything after the networks.
"""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Literal, get_args

import jax

from easi3r_jax.core.errors import ConfigError

Products = Literal["exact", "tf32"]
_PRECISIONS = {"exact": "highest", "tf32": "high"}


@dataclasses.dataclass(frozen=True)
class Precision:
    """Number types and products of the networks. The default is the policy "exact".

    Attributes:
      layers: number type in which the layers of encoder and decoder compute, and in which their weights are stored. In
        "float64", in which gradients are checked, everything is float64.
      products: how the layers multiply float32 arrays.
      heads: how the prediction heads and the flow networks do; these are float32.
    """

    layers: Literal["float32", "bfloat16", "float64"] = "float32"
    products: Products = "exact"
    heads: Products = "exact"

    def __post_init__(self):
        if self.layers not in ("float32", "bfloat16", "float64"):
            raise ConfigError(f"Layers compute in float32, bfloat16 or float64, not {self.layers!r}.")
        for products in (self.products, self.heads):
            if products not in get_args(Products):
                raise ConfigError(f"Products are 'exact' or 'tf32', not {products!r}.")

    @property
    def name(self) -> str:
        """Name of the policy; its fields if it has none."""
        named = {policy: name for name, policy in POLICIES.items()}
        return named.get(self, f"{self.layers}, products {self.products}, heads {self.heads}")


#: The policies that have a name.
POLICIES = {
    "exact": Precision(),
    "tf32": Precision(products="tf32", heads="tf32"),
    "bf16": Precision(layers="bfloat16", heads="tf32"),
}


def policy(precision: Precision | str = "auto") -> Precision:
    """The policy of a name: "exact", "tf32", "bf16", or "auto": bf16 on accelerators, exact on CPUs.

    Raises:
      ConfigError: an unknown name.
    """
    if isinstance(precision, Precision):
        return precision
    if precision == "auto":
        return POLICIES["exact" if jax.default_backend() == "cpu" else "bf16"]
    if precision not in POLICIES:
        raise ConfigError(f"Unknown precision {precision!r}: auto, {', '.join(POLICIES)}, or a Precision.")
    return POLICIES[precision]


def multiplying(products: Products) -> contextlib.AbstractContextManager:
    """Within it, products of float32 arrays that do not say otherwise are computed this way."""
    return jax.default_matmul_precision(_PRECISIONS[products])
