"""Applies the conversion tables: from the tensors of a checkpoint to our parameters, and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from easi3r_jax.core.errors import CheckpointError
from easi3r_jax.models import parameter_shapes
from easi3r_jax.models.config import DUSt3RConfig, FlowConfig
from easi3r_jax.models.vggt import VGGTConfig
from easi3r_jax.weights.convert import dust3r_table, flow_table, vggt_table
from easi3r_jax.weights.convert.rules import Rule, Shape, Transform
from easi3r_jax.weights.convert.tensors import FLOATS, LazyTensor, OpenedWeights

#: Suffix of the training step counters of batch norms. Inference does not need them, so they are ignored.
STEP_COUNTER = ".num_batches_tracked"


def rules(config: DUSt3RConfig | VGGTConfig | FlowConfig) -> list[Rule]:
    """The table for a network of this architecture."""
    if isinstance(config, VGGTConfig):
        return vggt_table.rules(config)
    return flow_table.rules(config) if isinstance(config, FlowConfig) else dust3r_table.rules(config)


def unused(config: DUSt3RConfig | VGGTConfig | FlowConfig) -> dict[str, Shape]:
    """Tensors in every checkpoint that inference does not need: checked like the others, then dropped."""
    if isinstance(config, VGGTConfig):
        return vggt_table.unused(config)
    return {} if isinstance(config, FlowConfig) else dust3r_table.unused(config)


def official_tensors(config: DUSt3RConfig, parameters: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Our parameters with the released names and layouts; the inverse of `match` and its recipes.

    Tensors that inference does not need are filled with zeros.
    """
    tensors = {name: np.zeros(shape, np.float32) for name, shape in unused(config).items()}
    for rule in rules(config):
        value = np.asarray(parameters[rule.target])
        blocks = {rule.source.format(n): block for n, block in enumerate(value)} if "{}" in rule.source else None
        for name, block in (blocks or {rule.source: value}).items():
            tensors[name] = np.ascontiguousarray(rule.transform.undo(block))
            if rule.alias is not None:
                tensors[rule.alias] = tensors[name]
    return tensors


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How to make one parameter: from one tensor, or from one tensor per block of a stack."""

    tensors: tuple[tuple[str, LazyTensor], ...]
    transform: Transform
    stacked: bool
    shape: Shape


def match(source: OpenedWeights) -> tuple[dict[str, Recipe], dict[str, LazyTensor], list[str]]:
    """Matches a source with the table.

    Returns:
      recipes: one for each of our parameters.
      dropped: tensors that inference does not need.
      notices: sentences for the user.

    Raises:
      CheckpointError: lists all missing, unknown, duplicate and misshapen tensors together.
    """
    tensors, notices = {n: t for n, t in source.tensors.items() if not n.endswith(STEP_COUNTER)}, []
    if not any(name.startswith("dec_blocks2.") for name in tensors):
        # As in the released loader: checkpoints of the pretraining have a decoder of one branch.
        copies = {
            n.replace("dec_blocks.", "dec_blocks2.", 1): t for n, t in tensors.items() if n.startswith("dec_blocks.")
        }
        if copies:
            notices.append(
                "There is no second decoder (dec_blocks2): the first is copied, as the released loader does."
            )
        tensors |= copies

    problems: dict[str, list[str]] = {"missing": [], "unknown": [], "duplicate": sorted(source.duplicates)}
    problems |= {"of the wrong shape": [], "without floating-point numbers": [], "different under their two names": []}
    left = dict(tensors)

    def take(name: str, shape: Shape) -> LazyTensor | None:
        tensor = left.pop(name, None)
        if tensor is None:
            problems["missing"].append(name)
        elif tensor.shape != shape:
            problems["of the wrong shape"].append(f"{name} {list(tensor.shape)} instead of {list(shape)}")
        elif tensor.dtype not in FLOATS:
            problems["without floating-point numbers"].append(f"{name} ({tensor.dtype})")
        else:
            return tensor
        return None

    recipes = {}
    shapes = parameter_shapes(source.config)
    for rule in rules(source.config):
        shape = shapes.pop(rule.target)
        stacked = "{}" in rule.source
        their_shape = rule.transform.their_shape(shape[1:] if stacked else shape)
        names = [rule.source.format(n) for n in range(shape[0])] if stacked else [rule.source]
        if rule.alias is not None and rule.alias in left:
            if rule.source not in left:  # a file without duplicates has either name
                names = [rule.alias]
            elif (alias := take(rule.alias, their_shape)) is not None and not _equal(left[rule.source], alias):
                problems["different under their two names"].append(f"{rule.source} and {rule.alias}")
        taken = [(name, take(name, their_shape)) for name in names]
        found = tuple((name, tensor) for name, tensor in taken if tensor is not None)
        recipes[rule.target] = Recipe(found, rule.transform, stacked, shape)
    assert not shapes, f"parameters without a rule: {sorted(shapes)}"
    dropped = {
        name: tensor for name, shape in unused(source.config).items() if (tensor := take(name, shape)) is not None
    }
    problems["unknown"] += sorted(left)

    if any(problems.values()):
        raise CheckpointError(f"Cannot use {source.name}: {_report(problems)}.")
    return recipes, dropped, notices


def _equal(first: LazyTensor, second: LazyTensor) -> bool:
    if first.identity == second.identity:
        return True
    return first.shape == second.shape and bool(np.array_equal(first.read(), second.read(), equal_nan=True))


def _report(problems: Mapping[str, list[str]], max_names: int = 40) -> str:
    """All problems in one line. For a checkpoint of another network the lists are long: they are cut, with a count."""
    parts = []
    for kind, names in problems.items():
        if names:
            more = f", and {len(names) - max_names} more" if len(names) > max_names else ""
            count = "1 tensor" if len(names) == 1 else f"{len(names)} tensors"
            parts.append(f"{count} {kind}: {', '.join(map(_printable, names[:max_names]))}{more}")
    return "; ".join(parts)


def _printable(name: str) -> str:
    """Names come from the file and are printed to a terminal: no line breaks, no control sequences."""
    return name[:200] if name.isprintable() else ascii(name[:200])
