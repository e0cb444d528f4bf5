"""The golden checkpoint files, their weights, and checkpoints made from given tensors."""

import functools
import json
import pathlib
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from easi3r_jax.models import parameter_shapes
from easi3r_jax.weights.convert import table
from tests import torch_writer


def golden_param(seed: int, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The recipe in tests/golden/checkpoints/README.md."""
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    if len(shape) >= 2:
        weight = rng.standard_normal(shape) * np.sqrt(1.0 / np.prod(shape[1:]))
    elif name.endswith(".weight"):
        weight = 1.0 + 0.1 * rng.standard_normal(shape)
    else:
        weight = 0.02 * rng.standard_normal(shape)
    return weight.astype(np.float32)


@pytest.fixture(scope="session")
def files(golden) -> pathlib.Path:
    """Folder of small checkpoint files, valid and invalid."""
    return golden / "checkpoints"


@pytest.fixture(scope="session")
def index(files) -> dict[str, Any]:
    """Model string, seed and names of the golden files."""
    return json.loads((files / "index.json").read_text())


@pytest.fixture(scope="session")
def weights(index) -> dict[str, np.ndarray]:
    """Weights of every valid golden file, by the released names."""
    arrays = {}
    for name, (shape, _) in index["manifest"].items():
        gain = next((g for end, g in index["gains"].items() if name.endswith(end)), 1.0)
        arrays[name] = golden_param(index["weight_seed"], name, tuple(shape)) * np.float32(gain)
    return arrays


#: Writes a `.pth` file of the given tensors, optionally with another model string, and returns its path.
MakePth = Callable[..., pathlib.Path]


@pytest.fixture
def make_pth(tmp_path, index) -> MakePth:
    def make(tensors: dict[str, np.ndarray], string: str = index["model_string"], name: str = "made.pth"):
        keys = {tensor: str(key) for key, tensor in enumerate(tensors)}
        model = {n: torch_writer.Tensor(keys[n], a.shape, str(a.dtype)) for n, a in tensors.items()}
        root = {"args": torch_writer.namespace(model=string), "model": model, "epoch": 1}
        torch_writer.write(tmp_path / name, root, [(keys[n], np.ascontiguousarray(a)) for n, a in tensors.items()])
        return tmp_path / name

    return make


@pytest.fixture
def quick_shapes(monkeypatch) -> None:
    """Traces the abstract network once per architecture instead of once per file."""
    monkeypatch.setattr(table, "parameter_shapes", lambda config: dict(_shapes(config)))


_shapes = functools.cache(parameter_shapes)
