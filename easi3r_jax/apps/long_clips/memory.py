"""Device memory of every stage for a clip or a window, as the compiler counts it. Nothing is computed."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from easi3r_jax import alignment, motion
from easi3r_jax.core.batches import accelerator_budget, batch_size
from easi3r_jax.core.config import AlignConfig
from easi3r_jax.core.errors import ConfigError
from easi3r_jax.core.types import PairPredictions
from easi3r_jax.inference import passes
from easi3r_jax.inference.clip import clip_edges
from easi3r_jax.models import abstract_model
from easi3r_jax.models.config import DUSt3RConfig
from easi3r_jax.models.precision import Precision

#: Pixels of a block of pairs, as on an accelerator; see `problem`.
_PIXELS = 1 << 21
#: Programs that never run need no optimised machine code. Memory is assigned before there is any.
_SLOW_CODE = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
#: The TPU's library looks for a TPU, and reports at length that there is none.
_QUIET = {"TPU_SKIP_MDS_QUERY": "1", "TPU_STDERR_LOG_LEVEL": "3", "TPU_MIN_LOG_LEVEL": "3"}


@dataclasses.dataclass(frozen=True)
class StageMemory:
    """Bytes of a stage on one device.

    Attributes:
      program: arguments, results and temporary arrays of its largest compiled program.
      beside: other arrays that are in memory meanwhile: weights, features, statistics, flow, point maps.
    """

    program: int
    beside: int

    @property
    def total(self) -> int:
        """Bytes."""
        return self.program + self.beside


def device_of(topology: str) -> Any:
    """A device to compile for: of a TPU topology that need not exist, e.g. v5e:2x2; "" for this process's own, None.

    Raises:
      ConfigError: the TPU's compiler is not installed, or does not know the topology.
    """
    if not topology:
        return None
    for variable, value in _QUIET.items():
        os.environ.setdefault(variable, value)
    try:
        return topologies.get_topology_desc(topology, platform="tpu").devices[0]
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"--topology={topology} needs libtpu (no TPU) and a topology that it knows: {reason}"
        ) from error


class MemoryCounter:
    """Counts the memory of clips of any length; programs that do not depend on the length are compiled once.

    Args:
      config: the network.
      size: (height, width) of the frames.
      graph: pair graph.
      precision: what the network computes in.
      limit: bytes of the device's memory.
      device: from `device_of`.
    """

    def __init__(
        self,
        config: DUSt3RConfig,
        size: tuple[int, int],
        graph: str,
        precision: Precision,
        limit: int,
        device: Any = None,
    ):
        self._config, self._size, self._graph, self._device = config, size, graph, device
        self._model = abstract_model(config, precision=precision)
        self._limit = limit
        self._grid = size[0] // config.patch_size, size[1] // config.patch_size
        self._known: dict[Any, int] = {}
        on_cpu = device is None and jax.default_backend() == "cpu"
        self._options = _SLOW_CODE if on_cpu else None

    def count(self, frames: int) -> dict[str, StageMemory]:
        """Stage -> memory, for a clip or window of so many frames with optical flow, in the order of the pipeline."""
        config, size, model = self._config, self._size, self._model
        tokens, num_pairs = self._grid[0] * self._grid[1], len(clip_edges(frames, self._graph))
        most = max(1, int(accelerator_budget(self._limit) / (passes.BYTES_PER_TOKEN * tokens)))
        pairs = batch_size(num_pairs, most)
        features = _shape(frames, tokens, config.enc_dim)
        moments = jax.eval_shape(partial(motion.init_temporal, frames, config.dec_depth, config.dec_heads, tokens))
        maps, flow = self._point_maps(num_pairs, frames), _shape(num_pairs, *size, 2)
        rgb = _shape(batch_size(frames, most), *size, 3, dtype=jnp.uint8)
        of_pair, marked = _shape(pairs, tokens, config.enc_dim), _shape(pairs, tokens, dtype=bool)

        def first(model: Any, a: Any, b: Any) -> Any:
            return model.decode(a, b, self._grid).stats

        def second(model: Any, a: Any, b: Any, masks: Any) -> Any:
            decoded = model.decode(a, b, self._grid, masks)
            return decoded.stats, model.predict(a, b, decoded, self._grid)

        masks = _shape(frames, *size, dtype=bool)
        align = AlignConfig(flow_start=0.0)
        # On a CPU, `make_problem` chooses for a CPU.
        block = None if self._options else max(1, _PIXELS // (size[0] * size[1]))
        problem = jax.eval_shape(
            lambda p, f, m: alignment.make_problem(p, align, flow=f, dynamic_mask=m, block=block), maps, flow, masks
        )
        shapes = ((num_pairs, 8), (frames, 7), (frames, *size), (1,))
        state = jax.eval_shape(partial(alignment.make_state, shared_focal=True), *(_shape(*s) for s in shapes))
        adam = jax.eval_shape(alignment.init_moments, state)
        rates, active = _shape(1), _shape(1, dtype=bool)
        laid_out = jax.eval_shape(_channels_first, maps.points_i)
        after = (flow, features, moments)  # `reconstruct` holds them to its end
        return {
            "encoding": self._stage(lambda m, x: m.encode(x), (model, rgb), (flow, features)),
            "first pass": self._stage(first, (model, of_pair, of_pair), after),
            "second pass": self._stage(second, (model, of_pair, of_pair, (marked, marked)), (maps, *after)),
            "layout": StageMemory(_bytes(maps) + _bytes(laid_out), _bytes((model, *after))),
            "alignment": self._stage(
                alignment.adam_steps, (state, adam, problem, rates, active), (model, flow, *after)
            ),
        }

    def _point_maps(self, pairs: int, frames: int) -> Any:
        points, confidence = _shape(pairs, *self._size, 3), _shape(pairs, *self._size)
        edges: Any = _shape(pairs, 2, dtype=jnp.int32)
        return PairPredictions(edges, points, points, confidence, confidence, num_frames=frames)

    def _stage(self, function: Callable[..., Any], arguments: tuple[Any, ...], beside: Any) -> StageMemory:
        key = (function.__qualname__, jax.tree.structure(arguments), *((x.shape, x.dtype) for x in _leaves(arguments)))
        if key not in self._known:
            self._known[key] = self._compiled(function, arguments)
        return StageMemory(self._known[key], _bytes(beside))

    def _compiled(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> int:
        if self._device is not None:
            place = SingleDeviceSharding(self._device)
            arguments = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), arguments)
        found = jax.jit(function).lower(*arguments).compile(self._options).memory_analysis()
        assert found is not None
        parts = found.argument_size_in_bytes + found.output_size_in_bytes + found.temp_size_in_bytes
        return int(parts - found.alias_size_in_bytes)


def _shape(*shape: int, dtype: Any = jnp.float32) -> Any:
    return jax.ShapeDtypeStruct(shape, dtype)


def _channels_first(points: Any) -> Any:
    return jnp.moveaxis(points, -1, 1)


def _leaves(tree: Any) -> list[Any]:
    return jax.tree.leaves(tree)


def _bytes(tree: Any) -> int:
    return sum(int(np.prod(x.shape)) * x.dtype.itemsize for x in _leaves(tree))
