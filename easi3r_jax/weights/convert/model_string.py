"""Parses the architecture of a checkpoint: `args.model` of a training checkpoint, or a hub folder's `config.json`.

    AsymmetricCroCo3DStereo(pos_embed='RoPE100', img_size=(512, 512), head_type='dpt', depth_mode=('exp', -inf, inf), …)

MASt3R's is a call of `AsymmetricMASt3R` with the head "catmlp+dpt", `output_mode='pts3d+desc24'`, `two_confs=True` and
`desc_conf_mode`. That its points are metric is in neither: networks of this kind are taken to be, and all others not,
unless an argument of ours, `metric`, says otherwise.

The string is Python source, which the released programs evaluate. Here it is only parsed: one call of that name whose
keyword arguments are literals. Nothing in it is executed.
"""

from __future__ import annotations

import ast
import math
import re
import warnings
from collections.abc import Mapping
from typing import Any

from easi3r_jax.core.errors import CheckpointError, ConfigError
from easi3r_jax.models.config import DUSt3RConfig

_CLASS = "AsymmetricCroCo3DStereo"
_CLASS_WITH_DESCRIPTORS = "AsymmetricMASt3R"
#: The head of networks with descriptors.
_DESCRIBES = "catmlp+dpt"
_MAX_DESCRIPTOR = 4096
_MAX_LENGTH = 10_000
#: Larger than any network: nonsense is refused before it costs time or memory.
_MAX_DEPTH, _MAX_WIDTH, _MAX_IMAGE = 256, 16384, 65536

#: Arguments that change the computation, and their supported values.
_ONLY = {
    "depth_mode": (("exp", -math.inf, math.inf),),
    # The order of patches of portrait images in training batches; the weights are the same.
    "patch_embed_cls": ("PatchEmbedDust3R", "ManyAR_PatchEmbed"),
    # True in training only: the released program uses every checkpoint with False.
    "landscape_only": (True, False),
    "freeze": ("none", "mask", "encoder"),  # parameters that training did not change
    "norm_im2_in_dec": (True,),
}
#: Sizes: argument of the released network → field of `DUSt3RConfig`.
WIDTHS = {
    "enc_embed_dim": "enc_dim",
    "enc_depth": "enc_depth",
    "enc_num_heads": "enc_heads",
    "dec_embed_dim": "dec_dim",
    "dec_depth": "dec_depth",
    "dec_num_heads": "dec_heads",
}


def parse_model_string(text: str) -> DUSt3RConfig:
    """Parses `args.model`.

    Raises:
      CheckpointError: not a call of one of the two networks with literal arguments, or an unknown network.
    """
    call = None
    if len(text) <= _MAX_LENGTH:
        try:
            with warnings.catch_warnings(action="ignore"):  # about invalid escapes in its strings
                call = ast.parse(text.strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            call = None
    if (
        not isinstance(call, ast.Call)
        or not isinstance(call.func, ast.Name)
        or call.func.id not in (_CLASS, _CLASS_WITH_DESCRIPTORS)
        or call.args
        or any(keyword.arg is None for keyword in call.keywords)
        or len({keyword.arg for keyword in call.keywords}) < len(call.keywords)
    ):
        raise CheckpointError(
            f"its model string ({text[:16]!r}…) is not of the form {_CLASS}(name=value, …); it was not executed"
        )
    arguments = {}
    for keyword in call.keywords:
        try:
            arguments[keyword.arg] = _literal(keyword.value)
        except (ValueError, RecursionError):
            raise CheckpointError(
                f"in its model string, the value of {str(keyword.arg)[:40]!r} is not a literal; it was not executed"
            ) from None
    config = parse_arguments(arguments)
    if (config.descriptor_dim > 0) != (call.func.id == _CLASS_WITH_DESCRIPTORS):
        raise CheckpointError(
            f"its network is a {call.func.id} with the head {config.head!r}, which do not go together"
        )
    return config


def parse_arguments(arguments: Mapping[str, Any]) -> DUSt3RConfig:
    """The configuration for the constructor's keyword arguments.

    Raises:
      CheckpointError: missing, unsupported or unknown arguments; unknown ones might change the computation.
    """
    left = {key: _as_tuple(value) for key, value in arguments.items()}
    for key, values in _ONLY.items():
        if (value := left.pop(key, values[0])) not in values:
            allowed = " or ".join(repr(v) for v in values)
            raise CheckpointError(f"its network has {key}={str(value)[:40]!r}; only {allowed} is supported")
    missing = [key for key in (*WIDTHS, "img_size", "head_type", "pos_embed") if key not in left]
    if missing:
        raise CheckpointError(f"its description of the network lacks {', '.join(missing)}")
    fields: dict[str, Any] = {ours: _size(left.pop(theirs), theirs) for theirs, ours in WIDTHS.items()}
    fields["image_size"] = _image_size(left.pop("img_size"))
    fields["head"] = left.pop("head_type")
    fields["rope_base"] = _rope_base(left.pop("pos_embed"))
    fields["confidence_range"] = _confidence_range(left.pop("conf_mode", ("exp", 1, math.inf)))
    fields["patch_size"] = _size(left.pop("patch_size", 16), "patch_size")
    fields["mlp_ratio"] = _number(left.pop("mlp_ratio", 4.0), "mlp_ratio")
    fields |= _descriptors(left, fields)
    if left:
        raise CheckpointError(f"its network has unknown options: {', '.join(sorted(map(ascii, left)))[:200]}")
    if not isinstance(fields["head"], str):
        raise CheckpointError("its head_type is not a string")
    try:
        return DUSt3RConfig(**fields)
    except ConfigError as error:
        raise CheckpointError(f"its network is unsupported: {error}") from error


def _descriptors(left: dict[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields about descriptors and their confidence, and whether points are metric; takes their arguments."""
    output, describes = left.pop("output_mode", "pts3d"), fields["head"] == _DESCRIBES
    found = re.fullmatch(r"pts3d\+desc(\d{1,4})", output) if isinstance(output, str) else None
    dim = int(found[1]) if found else 0
    if (output != "pts3d" or describes) and not (describes and 0 < dim <= _MAX_DESCRIPTOR):
        wanted = "'pts3d+desc<channels>'" if describes else "'pts3d'"
        raise CheckpointError(
            f"its network has output_mode={str(output)[:40]!r}; only {wanted} is supported with the head "
            f"{str(fields['head'])[:40]!r}"
        )
    metric = left.pop("metric", describes)
    if not isinstance(metric, bool):
        raise CheckpointError(f"its metric is {str(metric)[:40]!r}, neither true nor false")
    if not describes:
        return {"metric": metric}
    if left.pop("two_confs", False) is not True:
        raise CheckpointError("its descriptors have no confidence of their own; only two_confs=True is supported")
    # As in the released program, which then bounds it from below by 1 as that of the points.
    bounds = left.pop("desc_conf_mode", None)
    bounds = fields["confidence_range"] if bounds is None else _confidence_range(bounds, "desc_conf_mode")
    return {"descriptor_dim": dim, "descriptor_confidence_range": bounds, "metric": metric}


def _literal(node: ast.expr) -> Any:
    if isinstance(node, ast.Constant) and isinstance(node.value, (str, int, float, bool, type(None))):
        return node.value
    if isinstance(node, ast.Name) and node.id == "inf":
        return math.inf
    if isinstance(node, (ast.Tuple, ast.List)):
        return tuple(_literal(item) for item in node.elts)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = _literal(node.operand)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return -value
    raise ValueError("not a literal")


def _as_tuple(value: Any, depth: int = 0) -> Any:
    if not isinstance(value, (list, tuple)):
        return value
    if depth > 3:
        raise CheckpointError("its description of the network has too deeply nested lists")
    return tuple(_as_tuple(item, depth + 1) for item in value)


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < _MAX_WIDTH:
        raise CheckpointError(f"its {name} is {str(value)[:40]!r}, not a number between 0 and {_MAX_WIDTH}")
    return float(value)


def _size(value: Any, name: str) -> int:
    maximum = _MAX_DEPTH if name.endswith("depth") else _MAX_WIDTH
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= maximum:
        raise CheckpointError(f"its {name} is {str(value)[:40]!r}, not an integer from 1 to {maximum}")
    return value


def _image_size(value: Any) -> tuple[int, int]:
    sides = (value, value) if isinstance(value, int) else value
    if (
        not isinstance(sides, tuple)
        or len(sides) != 2
        or any(isinstance(side, bool) or not isinstance(side, int) or not 0 < side <= _MAX_IMAGE for side in sides)
    ):
        raise CheckpointError(f"its img_size is {str(value)[:40]!r}, not two positive numbers")
    return sides


def _rope_base(value: Any) -> float:
    base = value.removeprefix("RoPE") if isinstance(value, str) and value.startswith("RoPE") else ""
    try:
        number = float(base)
    except ValueError:
        number = math.nan
    if not 1 < number < 1e9:
        raise CheckpointError(f"its pos_embed is {str(value)[:40]!r}; only 'RoPE<base>', e.g. 'RoPE100', is supported")
    return number


def _confidence_range(value: Any, name: str = "conf_mode") -> tuple[float, float]:
    numbers = (int, float)
    if (
        not isinstance(value, tuple)
        or len(value) != 3
        or value[0] != "exp"
        or not all(isinstance(bound, numbers) and not isinstance(bound, bool) for bound in value[1:])
        or not -math.inf < value[1] < value[2]
    ):
        raise CheckpointError(f"its {name} is {str(value)[:60]!r}; only ('exp', low, high) is supported")
    return float(value[1]), float(value[2])
