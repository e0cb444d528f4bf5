"""Checkpoint files and state-dict manifests."""

from __future__ import annotations

import json
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from easi3r_jax.apps.parity.report import NETWORK, Row, at_most, compare
from easi3r_jax.apps.parity.weights import golden_model, golden_tensor
from easi3r_jax.core.errors import CheckpointError
from easi3r_jax.models import DUSt3R, VGGTConfig
from easi3r_jax.models.config import DUSt3RConfig, FlowConfig
from easi3r_jax.weights import convert
from easi3r_jax.weights.checkpoint import load_checkpoint
from easi3r_jax.weights.convert import flow_table, table, vggt_shapes
from easi3r_jax.weights.convert.model_string import parse_model_string
from easi3r_jax.weights.convert.tensors import LazyTensor, OpenedWeights


def check_checkpoints(folder: pathlib.Path) -> Iterator[Row]:
    """Valid files give the golden weights exactly; damaged, incomplete or malicious ones are refused."""
    index = json.loads((folder / "index.json").read_text())
    config = parse_model_string(index["model_string"])
    golden = golden_model(config, index["weight_seed"], index["gains"])
    listed = {name: facts for name, facts in index["files"].items() if (folder / name).is_file()}
    for name, facts in listed.items():
        refuse = name.startswith(("bad", "evil", "extra")) or not facts.get("loads_upstream", False)
        if refuse:
            yield at_most(folder.name, f"{name} is refused", float(_load(folder / name) is not None), 0)
        else:
            yield _same_weights(folder.name, name, _load(folder / name), golden, copied="no_dec_blocks2" in name)
    for path in sorted(folder.glob("bad*.safetensors")):
        yield at_most(folder.name, f"{path.name} is refused", float(_load(path) is not None), 0)
    if (folder / "hf_tiny").is_dir():
        model = _load(folder / "hf_tiny")
        yield _same_weights(folder.name, "hf_tiny", model, golden)
        if model is not None and (folder / "tiny_forward_plain_dust3r.npz").is_file():
            yield from _check_forward(folder, model)


def _load(path: pathlib.Path) -> DUSt3R | None:
    """The file's network; None if it is refused."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            convert.convert(path, pathlib.Path(folder) / "out")
            return load_checkpoint(pathlib.Path(folder) / "out")[1]
        except CheckpointError:
            return None


def _same_weights(stage: str, name: str, ours: DUSt3R | None, golden: DUSt3R, *, copied: bool = False) -> Row:
    """Largest difference of any parameter; with `copied` the second decoder must be a copy of the first."""
    if ours is None:
        return Row(stage, f"{name} loads", np.inf, np.inf, 0.0)
    wanted = nnx.to_pure_dict(nnx.state(golden))
    if copied:
        wanted["decoder"]["branch2"] = wanted["decoder"]["branch1"]
    differences = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), nnx.to_pure_dict(nnx.state(ours)), wanted)
    return at_most(stage, f"{name} loads, weights", max(jax.tree.leaves(differences)), 0)


def _check_forward(folder: pathlib.Path, model: DUSt3R) -> Iterator[Row]:
    with np.load(folder / "tiny_forward_plain_dust3r.npz") as file:
        golden = dict(file)
    rgb = jnp.asarray(golden["frames_u8"])
    grid = model.grid((rgb.shape[1], rgb.shape[2]))

    @jax.jit
    def forward(model, rgb):
        features = model.encode(rgb)
        return model.predict(features[:1], features[1:], model.decode(features[:1], features[1:], grid), grid)

    for name, ours in zip(("pts3d_1", "conf_1", "pts3d_2", "conf_2"), forward(model, rgb), strict=True):
        yield compare(f"{folder.name}/hf_tiny forward", name, ours[0], golden[name], NETWORK)


def is_manifest(path: pathlib.Path) -> bool:
    """Whether the file lists the state dict of a supported network."""
    record = json.loads(path.read_text())
    return isinstance(record, dict) and "entries" in record and _network(record) is not None


def _network(record: dict[str, Any]) -> DUSt3RConfig | VGGTConfig | FlowConfig | None:
    text = record.get("args_model_string") or record.get("load_time_string")
    if text and "AsymmetricCroCo3DStereo" in text:
        return parse_model_string(text)
    if (flow := flow_table.network_of(record["entries"])) is not None:
        return flow
    return vggt_shapes.network_of({name: tuple(shape) for name, (shape, _) in record["entries"].items()})


def check_manifests(folder: pathlib.Path) -> Iterator[Row]:
    """Every name and shape of a released network maps onto ours, and no parameter of ours stays unset."""
    for path in sorted(folder.glob("*.json")):
        if not is_manifest(path):
            continue
        record = json.loads(path.read_text())
        config = _network(record)
        assert config is not None
        aliases = record.get("aliases", {})
        tensors = {
            name: LazyTensor(tuple(shape), dtype, _no_numbers, identity=aliases.get(name, name))
            for name, (shape, dtype) in record["entries"].items()
        }
        source = OpenedWeights(path.name, (), config, tensors, ())
        try:
            recipes, dropped, _ = table.match(source)
            counters = sum(name.endswith(table.STEP_COUNTER) for name in set(tensors) - set(aliases))
            placed = len(dropped) + sum(len(r.tensors) for r in recipes.values()) + counters
            unplaced = len(tensors) - len(aliases) - placed
        except CheckpointError:
            unplaced = len(tensors)
        yield at_most(folder.name, f"{path.stem}: tensors without a place", unplaced, 0)


def _no_numbers() -> np.ndarray:
    raise AssertionError("a manifest has only names and shapes")


def check_test_vectors() -> Iterator[Row]:
    """The format's own samples: checks that our deterministic weights are the intended ones."""
    for seed, name, shape, first in (
        (1, "enc_norm.weight", (64,), (1.1008920669555664, 0.9529634118080139, 1.0747483968734741)),
        (
            1,
            "patch_embed.proj.weight",
            (64, 3, 16, 16),
            (-0.006122744642198086, -0.10795513540506363, 0.04633716493844986),
        ),
    ):
        yield compare("weights", name, golden_tensor(seed, name, shape, {}).ravel()[:3], np.array(first), 1e-7)
