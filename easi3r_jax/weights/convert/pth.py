"""Finds the weights in what a file of `torch.save` holds, and says what else is there."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from easi3r_jax.core.errors import CheckpointError
from easi3r_jax.models.config import FlowConfig
from easi3r_jax.models.vggt import VGGTConfig
from easi3r_jax.weights.convert import flow_table, vggt_shapes, vggt_table
from easi3r_jax.weights.convert.model_string import parse_model_string
from easi3r_jax.weights.convert.pickled import Placeholder, TensorSpec
from easi3r_jax.weights.convert.tensors import LazyTensor, OpenedWeights, without_wrappers
from easi3r_jax.weights.convert.torch_file import open_torch_file, refuse

#: Entries that may hold the weights, the best first. Averages of the weights are never chosen for the user.
_NAMES = ("model", "state_dict", "model_state_dict")
#: In names of entries whose tensors no network needs, in any file of a training.
_OF_TRAINING = ("optim", "sched", "scaler", "rng", "random", "amp", "args", "config")
_MAX_VISITS = 300_000
_SAVE = "with PyTorch, save the weights that you want as {'args': ..., 'model': ...}"


def open_pth(path: pathlib.Path) -> OpenedWeights:
    """Opens an official checkpoint: {"args": Namespace(model=...), "model": state dict, ...}, or a bare state dict.

    Other entries, such as the optimiser's state, are not read. Files of VGGT and of flow networks are state dicts.

    Raises:
      CheckpointError: not a file of `torch.save`, damaged, unsafe, or without the weights of a network.
    """
    file = open_torch_file(path)
    root = file.root
    if not isinstance(root, dict):
        refuse(path, f"it holds no dictionary, but {_kind(root)}: {_SAVE}")
    name = _weights_of(root)
    if name is None:
        if isinstance(root, Placeholder):
            refuse(path, f"it holds an object of {root.name!r}: with PyTorch, save its state_dict() as 'model'")
        refuse(path, f"it has no 'model' with the weights of a network, but {_contents(root)}: {_SAVE}")
    weights = root[name] if name else root
    where = f"in its {name!r}" if name else "in it"
    duplicates = [key for key in getattr(root, "duplicates", ()) if key in (name, "args")]
    if duplicates:
        refuse(path, f"it has two entries named {duplicates[0]!r}")
    is_tensor = {key: isinstance(key, str) and isinstance(value, TensorSpec) for key, value in weights.items()}
    if isinstance(weights, Placeholder) and not any(is_tensor.values()):
        refuse(path, f"{where} is an object of {weights.name!r}: with PyTorch, save its state_dict() as 'model'")
    tensors = without_wrappers({key: file.lazy(value) for key, value in weights.items() if is_tensor[key]})
    config, licence = _named_network(path, tensors)
    if config is None:
        arguments = root.get("args")
        string = arguments.get("model") if isinstance(arguments, dict) else None
        if not isinstance(string, str):
            refuse(
                path,
                f"it does not say which network it is for ('args.model' is missing); it has {_contents(root)}: {_SAVE}",
            )
    odd = next((key for key, fits in is_tensor.items() if not fits), None)
    if odd is not None:
        refuse(path, f"{where}, {str(odd)[:80]!r} is not a named tensor, but {_kind(weights[odd])}")
    if config is None:
        try:
            config = parse_model_string(string)
        except CheckpointError as error:
            refuse(path, str(error), error)
    repeated = tuple(getattr(weights, "duplicates", ()))
    return OpenedWeights(str(path), (path,), config, tensors, repeated, licence, _notices(root, name))


def _named_network(
    path: pathlib.Path, tensors: Mapping[str, LazyTensor]
) -> tuple[FlowConfig | VGGTConfig | None, str | None]:
    """The network that the names of its tensors say, and the licence of its weights; None of those that they do not."""
    if (flow := flow_table.network_of(tensors)) is not None:
        return flow, flow_table.LICENCE
    try:
        vggt = vggt_shapes.network_of({name: tensor.shape for name, tensor in tensors.items()})
    except CheckpointError as error:
        refuse(path, str(error), error)
    return vggt, None if vggt is None else vggt_table.LICENCE


def _weights_of(root: dict[Any, Any]) -> str | None:
    """The entry with the weights; "": the file is only the state dict of a network; None: there is none."""
    if any(isinstance(value, TensorSpec) for value in root.values()):
        names = {key: None for key, value in root.items() if isinstance(key, str) and isinstance(value, TensorSpec)}
        plain = without_wrappers(names)
        if flow_table.network_of(plain) is not None or vggt_shapes.is_vggt(plain):
            return ""
    found = [name for name in _NAMES if isinstance(root.get(name), dict)]
    filled = [name for name in found if any(isinstance(value, TensorSpec) for value in root[name].values())]
    return (filled or [name for name in found if name == "model"] or [None])[0]


def _notices(root: dict[Any, Any], name: str) -> tuple[str, ...]:
    """What else there is that may be weights, such as averages of them."""
    if not name:
        return ()
    others = [
        shown
        for key, shown in _entries(root)
        if key != name and "tensor" in shown and not any(part in str(key).lower() for part in _OF_TRAINING)
    ]
    if not others:
        return ()
    return (f"{name!r} is used, and not {_list(others)}. For those, save them with PyTorch as 'model', beside 'args'.",)


def _contents(root: dict[Any, Any]) -> str:
    """The entries of a file, for a message."""
    return _list([shown for _, shown in _entries(root)]) or "nothing"


def _list(shown: list[str]) -> str:
    return ", ".join(shown[:8]) + (f" and {len(shown) - 8} more" if len(shown) > 8 else "")


def _entries(root: dict[Any, Any]) -> list[tuple[Any, str]]:
    """Every entry, and its name with the number of its tensors."""
    left = iter(range(_MAX_VISITS))
    entries = []
    for key, value in root.items():
        count = sum(1 for _ in _tensors(value, left))
        text = repr(str(key)[:40])
        if count and not isinstance(value, TensorSpec):
            text += " (1 tensor)" if count == 1 else f" ({count} tensors)"
        elif count:
            text += " (a tensor)"
        entries.append((key, text))
    return entries


def _tensors(value: Any, left: Iterator[int]) -> Iterator[TensorSpec]:
    """The tensors in an object, as long as numbers are left: objects may contain themselves, or each other often."""
    seen, waiting = set(), [value]
    while waiting and next(left, None) is not None:
        value = waiting.pop()
        if isinstance(value, TensorSpec):
            yield value
        elif isinstance(value, (dict, list, tuple)) and id(value) not in seen:
            seen.add(id(value))
            waiting.extend(value.values() if isinstance(value, dict) else value)


def _kind(value: Any) -> str:
    return repr(value.name) if isinstance(value, Placeholder) else type(value).__name__
