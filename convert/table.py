"""Which tensor of a DUSt3R checkpoint becomes which parameter of ours, and how. The table, its check and its inverse.

Left: names of the released networks' state dict; right: paths of `DUSt3R` (see `easi3r_jax.models`). "{}" stands for
a block's number on the left; on the right, the blocks of a stack are stacked along a leading axis.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from convert.tensors import FLOATS, LazyTensor, Source
from easi3r_jax.checkpoint import parameter_shapes
from easi3r_jax.config import DUSt3RConfig
from easi3r_jax.errors import CheckpointError

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Transform:
    """A change of layout.

    Attributes:
      apply: their array to ours (a view where possible).
      undo: ours to theirs.
      their_shape: our shape to theirs.
    """

    apply: Callable[[np.ndarray], np.ndarray]
    undo: Callable[[np.ndarray], np.ndarray]
    their_shape: Callable[[Shape], Shape]


def _their_patch_shape(shape: Shape) -> Shape:
    side = math.isqrt(shape[0] // 3)
    return (shape[1], 3, side, side)


def _their_patch(x: np.ndarray) -> np.ndarray:
    out, channels, *sides = _their_patch_shape(x.shape)
    return x.reshape(*sides, channels, out).transpose(3, 2, 0, 1)


SAME = Transform(lambda x: x, lambda x: x, lambda s: s)
# (out, in) → (in, out)
LINEAR = Transform(lambda x: x.T, lambda x: x.T, lambda s: (s[1], s[0]))
# OIHW → HWIO
CONV = Transform(
    lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1), lambda s: (s[3], s[2], s[0], s[1])
)
# A 1x1 convolution is a linear layer.
POINTWISE = Transform(lambda x: x[:, :, 0, 0].T, lambda x: x.T[:, :, None, None], lambda s: (s[1], s[0], 1, 1))
# IOHW → IHWO
TRANSPOSED = Transform(
    lambda x: x.transpose(0, 2, 3, 1), lambda x: x.transpose(0, 3, 1, 2), lambda s: (s[0], s[3], s[1], s[2])
)
# OIHW → (y x channel, out)
PATCH = Transform(lambda x: x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0]), _their_patch, _their_patch_shape)


@dataclasses.dataclass(frozen=True)
class Rule:
    """One row of the table.

    Attributes:
      source: name in the checkpoint, "{}" for the number of a stack's block.
      target: our path.
      transform: change of layout.
      alias: a second name that the checkpoint may hold the same tensor under.
    """

    source: str
    target: str
    transform: Transform = SAME
    alias: str | None = None


def _layer(source: str, target: str, transform: Transform) -> list[Rule]:
    return [Rule(f"{source}.weight", f"{target}.kernel", transform), Rule(f"{source}.bias", f"{target}.bias")]


def _norm(source: str, target: str) -> list[Rule]:
    return [Rule(f"{source}.weight", f"{target}.scale"), Rule(f"{source}.bias", f"{target}.bias")]


def _self_attention(source: str, target: str, name: str) -> list[Rule]:
    return [
        *_norm(f"{source}.norm1", f"{target}.norm1"),
        *_layer(f"{source}.attn.qkv", f"{target}.{name}.qkv", LINEAR),
        *_layer(f"{source}.attn.proj", f"{target}.{name}.proj", LINEAR),
        *_norm(f"{source}.norm2", f"{target}.norm2"),
        *_layer(f"{source}.mlp.fc1", f"{target}.mlp.fc1", LINEAR),
        *_layer(f"{source}.mlp.fc2", f"{target}.mlp.fc2", LINEAR),
    ]


def _decoder_branch(source: str, target: str) -> list[Rule]:
    cross_source, cross_target = f"{source}.cross_attn", f"{target}.cross_attention"
    return [
        *_self_attention(source, target, "self_attention"),
        *_norm(f"{source}.norm_y", f"{target}.norm_y"),
        *_layer(f"{cross_source}.projq", f"{cross_target}.q", LINEAR),
        *_layer(f"{cross_source}.projk", f"{cross_target}.k", LINEAR),
        *_layer(f"{cross_source}.projv", f"{cross_target}.v", LINEAR),
        *_layer(f"{cross_source}.proj", f"{cross_target}.proj", LINEAR),
        *_norm(f"{source}.norm3", f"{target}.norm3"),
    ]


def _linear_head(n: int) -> list[Rule]:
    return _layer(f"downstream_head{n}.proj", f"head{n}.proj", LINEAR)


def _dpt_head(n: int) -> list[Rule]:
    source, target = f"downstream_head{n}.dpt", f"head{n}"
    resample, scratch = f"{source}.act_postprocess", f"{source}.scratch"
    rules = [
        *_layer(f"{resample}.0.1", f"{target}.enlarge4", TRANSPOSED),
        *_layer(f"{resample}.1.1", f"{target}.enlarge2", TRANSPOSED),
        *_layer(f"{resample}.3.1", f"{target}.shrink", CONV),
        *_layer(f"{source}.head.0", f"{target}.conv1", CONV),
        *_layer(f"{source}.head.2", f"{target}.conv2", CONV),
        *_layer(f"{source}.head.4", f"{target}.out", POINTWISE),
    ]
    for level in range(4):
        fusion, fusion_target = f"{scratch}.refinenet{level + 1}", f"{target}.fusions.{level}"
        rules += _layer(f"{resample}.{level}.0", f"{target}.project.{level}", POINTWISE)
        rules += [
            Rule(
                f"{scratch}.layer{level + 1}_rn.weight",
                f"{target}.level_convs.{level}.kernel",
                CONV,
                alias=f"{scratch}.layer_rn.{level}.weight",
            )
        ]
        rules += _layer(f"{fusion}.out_conv", f"{fusion_target}.out_conv", POINTWISE)
        for unit in (1, 2) if level < 3 else (2,):  # the coarsest level has nothing to add to: its first unit is unused
            for conv in (1, 2):
                unit_source = f"{fusion}.resConfUnit{unit}.conv{conv}"
                rules += _layer(unit_source, f"{fusion_target}.residual{unit}.conv{conv}", CONV)
    return rules


def rules(config: DUSt3RConfig) -> list[Rule]:
    """The table for a network of this architecture."""
    head = _dpt_head if config.head == "dpt" else _linear_head
    return [
        *_layer("patch_embed.proj", "encoder.patch_embed", PATCH),
        *_self_attention("enc_blocks.{}", "encoder.blocks", "attention"),
        *_norm("enc_norm", "encoder.norm"),
        *_layer("decoder_embed", "decoder.embed", LINEAR),
        *_decoder_branch("dec_blocks.{}", "decoder.branch1"),
        *_decoder_branch("dec_blocks2.{}", "decoder.branch2"),
        *_norm("dec_norm", "decoder.norm"),
        *head(1),
        *head(2),
    ]


def unused(config: DUSt3RConfig) -> dict[str, Shape]:
    """Tensors that every checkpoint holds and no prediction needs: checked like the others, then dropped."""
    shapes: dict[str, Shape] = {"mask_token": (1, 1, config.dec_dim)}  # of the pretraining
    if config.head == "dpt":
        for n in (1, 2):
            for conv in (1, 2):
                name = f"downstream_head{n}.dpt.scratch.refinenet4.resConfUnit1.conv{conv}"
                shapes |= {f"{name}.weight": (256, 256, 3, 3), f"{name}.bias": (256,)}
    return shapes


def official_tensors(config: DUSt3RConfig, parameters: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Our parameters under the released networks' names and in their layout; the inverse of `match` and its recipes.

    What every released checkpoint holds and no prediction needs is filled with zeros.
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
    """How one parameter is made: of one tensor, or of those of a stack's blocks."""

    tensors: tuple[tuple[str, LazyTensor], ...]
    transform: Transform
    stacked: bool
    shape: Shape

    def read(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yields (name, tensor in our layout) for every block."""
        for name, tensor in self.tensors:
            yield name, self.transform.apply(tensor.read())


def match(source: Source) -> tuple[dict[str, Recipe], dict[str, LazyTensor], list[str]]:
    """Lays the table on a source.

    Returns:
      recipes: for each of our parameters.
      dropped: the tensors that no prediction needs.
      notices: what a user should know, a sentence each.

    Raises:
      CheckpointError: names everything that is missing, unknown, given twice or of the wrong shape, all at once.
    """
    tensors, notices = dict(source.tensors), []
    if not any(name.startswith("dec_blocks2.") for name in tensors):
        # As the released loader does with checkpoints of the pretraining, whose decoder has one branch.
        copies = {
            n.replace("dec_blocks.", "dec_blocks2.", 1): t for n, t in tensors.items() if n.startswith("dec_blocks.")
        }
        if copies:
            notices.append("There is no second decoder (dec_blocks2): it becomes a copy of the first, as released.")
        tensors |= copies

    problems: dict[str, list[str]] = {"missing": [], "unknown": [], "given twice": sorted(source.duplicates)}
    problems |= {"of the wrong shape": [], "not of floating-point numbers": [], "different under their two names": []}
    left = dict(tensors)

    def take(name: str, shape: Shape) -> LazyTensor | None:
        tensor = left.pop(name, None)
        if tensor is None:
            problems["missing"].append(name)
        elif tensor.shape != shape:
            problems["of the wrong shape"].append(f"{name} {list(tensor.shape)} instead of {list(shape)}")
        elif tensor.dtype not in FLOATS:
            problems["not of floating-point numbers"].append(f"{name} ({tensor.dtype})")
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
            if rule.source not in left:  # files that hold no tensor twice keep either name
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


def _report(problems: Mapping[str, list[str]], most: int = 40) -> str:
    """All problems in one line. A checkpoint of another network would fill pages: long lists end in a count."""
    parts = []
    for kind, names in problems.items():
        if names:
            more = f", and {len(names) - most} more" if len(names) > most else ""
            count = "1 tensor" if len(names) == 1 else f"{len(names)} tensors"
            parts.append(f"{count} {kind}: {', '.join(map(_printable, names[:most]))}{more}")
    return "; ".join(parts)


def _printable(name: str) -> str:
    """Names come from the file and go to a terminal: no line breaks, no control sequences."""
    return name[:200] if name.isprintable() else ascii(name[:200])
