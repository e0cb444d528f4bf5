"""The compiled programs of every stage with the shapes of a clip, in place of arrays.

They are the functions that the pipeline calls, and so are private to its modules. `tests/apps/test_compile_check.py`
compares their shapes with those of a run.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from easi3r_jax.alignment import assembly, clean, descent, problem
from easi3r_jax.alignment.state import AlignState
from easi3r_jax.alignment.terms import DEFAULT_TERMS
from easi3r_jax.core import sharding
from easi3r_jax.core.batches import Batches, batch_size, pad_pairs
from easi3r_jax.core.batches import _keep as keep
from easi3r_jax.core.config import PipelineConfig
from easi3r_jax.core.sharding import REPLICATED, ROWS
from easi3r_jax.inference import flow, passes, pipeline
from easi3r_jax.models import abstract_model, flow_network, parameters_of
from easi3r_jax.models.config import DUSt3RConfig, FlowConfig
from easi3r_jax.models.flow_layers import ITERATIONS as FLOW_ITERATIONS
from easi3r_jax.models.precision import POLICIES, Precision
from easi3r_jax.training.batch import ViewPairs
from easi3r_jax.training.config import TrainConfig
from easi3r_jax.training.step import init_state, make_step

#: Stages, in the order of the pipeline; training comes last.
STAGES = ("flow", "encode", "first pass", "masks", "second pass", "alignment", "alignment with flow", "training")


@dataclasses.dataclass(frozen=True)
class Clip:
    """What is compiled: a network, a clip, and the devices.

    Attributes:
      config: the network.
      frames: of the clip.
      size: (height, width) of the frames.
      precision: what the networks compute in.
      pipeline: options of the stages.
      training: the training run; its batch is `pairs_per_device` for each device.
      pairs_per_device: pairs of a training step.
      device: of a single-device program; None: unspecified, for lowering only.
      mesh: of a sharded program; None: single device.
    """

    config: DUSt3RConfig
    frames: int
    size: tuple[int, int]
    precision: Precision = POLICIES["bf16"]
    pipeline: PipelineConfig = PipelineConfig()
    training: TrainConfig = dataclasses.field(default_factory=TrainConfig.dust3r)
    pairs_per_device: int = 1
    device: Any = None
    mesh: Mesh | None = None

    def place(self, tree: Any, spec: PartitionSpec = REPLICATED) -> Any:
        """The shapes of a tree, on the device, or on the mesh with its rows sharded or replicated."""
        if self.mesh is not None:
            where = NamedSharding(self.mesh, spec)
        else:
            where = None if self.device is None else SingleDeviceSharding(self.device)
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), tree)

    def array(self, *shape: int, dtype: Any = jnp.float32, spec: PartitionSpec = REPLICATED) -> Any:
        """One array's shape, placed: a `jax.ShapeDtypeStruct`, which stands for an array."""
        return self.place(jax.ShapeDtypeStruct(shape, dtype), spec)

    def rows(self, *shape: int, dtype: Any = jnp.float32) -> Any:
        """As `array`, sharded by its first axis."""
        return self.array(*shape, dtype=dtype, spec=ROWS)

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) tokens."""
        return self.size[0] // self.config.patch_size, self.size[1] // self.config.patch_size

    @property
    def tokens(self) -> int:
        """N."""
        return math.prod(self.grid)

    @property
    def edges(self) -> np.ndarray:
        """(E, 2) pairs, padded for the devices."""
        return pad_pairs(pipeline.clip_edges(self.frames, self.pipeline.graph), 0, self.mesh)[0]

    def batch(self, most: int, chosen: int = 0) -> int:
        """Pairs in a batch: the chosen number, or at most so many on a device."""
        return len(Batches(self.edges, most, self.mesh, batch=chosen)[0][0])

    def network(self) -> Any:
        """The network's parameters."""
        return self.place(abstract_model(self.config, precision=self.precision))

    def features(self) -> Any:
        """Of all frames."""
        return self.array(self.frames, self.tokens, self.config.enc_dim)

    def point_maps(self) -> tuple[Any, ...]:
        """Points and confidence of both sides of all pairs, as the second pass stores them."""
        count, dtype = len(self.edges), self.pipeline.point_dtype
        shapes = ((3,), (), (3,), ())
        return tuple(self.rows(count, *self.size, *channels, dtype=dtype) for channels in shapes)

    def flow(self) -> Any:
        """Optical flow of all pairs."""
        return self.rows(len(self.edges), *self.size, 2)


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled function and its arguments.

    Attributes:
      stage: one of `STAGES`.
      name: what it does.
      items: how much of it at a time.
      function: compiled by `jax.jit`.
      arguments, options: with shapes in place of arrays.
      beside: arrays that are in memory meanwhile and are not among the arguments.
    """

    stage: str
    name: str
    items: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    beside: Any = ()

    def trace(self) -> Any:
        """`jax.stages.Traced`."""
        return self.function.trace(*self.arguments, **self.options)  # pyright: ignore[reportFunctionMemberAccess]


def bytes_of(tree: Any) -> int:
    """Bytes of a tree's arrays on one device."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        place = leaf.sharding
        shape = leaf.shape if place is None else place.shard_shape(leaf.shape)
        total += math.prod(shape) * leaf.dtype.itemsize
    return total


def programs(clip: Clip) -> Iterator[Program]:
    """The large programs of every stage. To be called within `target.traced_for`."""
    yield from _flow(clip)
    yield from _passes(clip)
    yield from _alignment(clip)
    yield _training(clip)


def _flow(clip: Clip) -> Iterator[Program]:
    network = clip.place(jax.eval_shape(lambda: flow_network(FlowConfig(), precision=clip.precision)))
    most = flow._most_at_once(math.prod(flow.network_size(*clip.size)))
    images = clip.rows(clip.batch(most), *clip.size, 3, dtype=jnp.uint8)
    yield Program(
        "flow",
        "network",
        f"{images.shape[0]} pairs",
        flow._flow_batch,
        (network, images, images, FLOW_ITERATIONS, clip.mesh),
        beside=(clip.network(), clip.flow()),
    )


def _passes(clip: Clip) -> Iterator[Program]:
    config, grid, mesh = clip.config, clip.grid, clip.mesh
    model, features = clip.network(), clip.features()
    most, shards = passes._most_at_once(grid), sharding.num_shards(mesh)
    at_once = shards * batch_size(-(-clip.frames // shards), most)
    rgb = clip.rows(at_once, *clip.size, 3, dtype=jnp.uint8)
    held = (clip.flow(), features)
    yield Program("encode", "network", f"{at_once} frames", passes._encode_batch, (model, rgb, mesh), beside=held)

    batch = clip.batch(most, clip.pipeline.pair_batch)
    pair = clip.rows(batch, clip.tokens, config.enc_dim)
    masks = clip.rows(batch, clip.tokens, dtype=bool)
    sizes = (clip.frames, config.dec_depth, config.dec_heads, clip.tokens)
    temporal = clip.place(jax.eval_shape(lambda: passes.motion.init_temporal(*sizes)))
    network, heads = ({"gram": False, "heads": heads} for heads in (False, True))
    arguments = (model, pair, pair, None, grid, mesh)
    stats = jax.eval_shape(lambda *a: passes._network_batch(*a, None, grid, None, **network)[0], *arguments[:3])
    held, at_a_time = (*held, temporal), f"{batch} pairs"
    yield Program("first pass", "network", at_a_time, passes._network_batch, arguments, network, held)
    arguments = (
        temporal,
        clip.place(stats),
        clip.array(batch, 2, dtype=jnp.int32),
        clip.array(batch, dtype=bool),
        grid,
    )
    yield Program("first pass", "moments", at_a_time, passes._merge_batch, arguments, beside=(model, *held))

    key, options = clip.place(jax.eval_shape(lambda: jax.random.key(0))), clip.pipeline.segmentation
    labels = clip.array(clip.frames, *grid, dtype=jnp.int32)
    held, frames = (model, clip.flow()), f"{clip.frames} frames"
    arguments = (features, grid, options, key, None)
    yield Program("masks", "clusters", frames, pipeline._cluster, arguments, beside=(*held, temporal))
    arguments = (temporal, labels, clip.size, options)
    yield Program("masks", "scores and threshold", frames, pipeline.segment, arguments, beside=(*held, features))

    store = clip.point_maps()
    held = (clip.flow(), features, temporal, store)
    arguments = (model, pair, pair, (masks, masks), grid, mesh)
    yield Program("second pass", "network, heads", at_a_time, passes._network_batch, arguments, heads, held)
    values = tuple(clip.rows(batch, *x.shape[1:]) for x in store)
    held = (model, clip.flow(), features, temporal)
    yield Program("second pass", "storing", at_a_time, keep, (store, values, 0, mesh), beside=held)


def _alignment(clip: Clip) -> Iterator[Program]:
    mesh, (height, width) = clip.mesh, clip.size
    frames, pixels, count = clip.frames, height * width, len(clip.edges)
    store, model, moving = clip.point_maps(), clip.network(), clip.flow()
    dtype = jnp.dtype(clip.pipeline.point_dtype)
    world = clip.array(frames, height, width, 3)
    held, pairs = (model, moving), f"{count} pairs"
    arguments = (store[0], store[1], world, clip.rows(count, dtype=jnp.int32), mesh)
    yield Program("alignment", "registration", pairs, assembly._register, arguments, beside=(*held, store[2:]))
    layout = problem._layout_of(count, pixels, None, mesh)
    blocks = (layout.shards * layout.groups, layout.block)
    arguments = (store[0], layout, clip.array(count, dtype=bool))
    yield Program("alignment", "layout of points", pairs, problem._coordinates, arguments, beside=(*held, store[1:]))

    shapes = ((count, 8), (frames, 7), (frames, height, width), (1,))
    state = AlignState(*(clip.array(*shape) for shape in shapes))
    moments = clip.place(jax.eval_shape(descent.init_moments, state))
    bits = jnp.uint16 if dtype == jnp.bfloat16 else dtype
    scalar = clip.array()
    observed = problem.AlignProblem(
        edges=clip.rows(*blocks, 2, dtype=jnp.int32),
        points_i=(points := (clip.rows(*blocks, pixels, dtype=bits),) * 3),
        points_j=points,
        weights_i=(weights := clip.rows(*blocks, pixels, dtype=bits)),
        weights_j=weights,
        principal_point=clip.array(frames, 2),
        smoothing_weight=scalar,
        translation_weight=scalar,
        scale_known=clip.array(dtype=bool),
        mesh=mesh,
    )
    targets = problem.FlowTargets(
        flow=clip.rows(*blocks, 2, pixels),
        static=clip.array(frames, pixels, dtype=bool),
        weight=scalar,
        outlier=scalar,
        limit=scalar,
        counts=clip.array(dtype=bool),
    )
    rates, flags = clip.array(descent.CHUNK), clip.array(descent.CHUNK, dtype=bool)
    options, steps = {"terms": DEFAULT_TERMS, "with_flow": flags}, f"{descent.CHUNK} steps"
    for stage, what in (("alignment", observed), ("alignment with flow", dataclasses.replace(observed, flow=targets))):
        arguments = (state, moments, what, rates, flags)
        yield Program(stage, "descent", steps, descent._compiled_steps, arguments, options, held)
    depth = clip.array(frames, height, width)
    arguments = (clip.array(frames, 4, 4), clip.array(frames, 3, 3), depth, depth, scalar)
    yield Program("alignment", "clean-up", f"{frames} frames", clean._clean, arguments, beside=held)


def _training(clip: Clip) -> Program:
    mesh = clip.mesh
    if mesh is None:
        devices = jax.devices("cpu")[:1] if clip.device is None else [clip.device]
        mesh = Mesh(np.array(devices), (sharding.DATA,))
    on_mesh = dataclasses.replace(clip, mesh=mesh)
    batch = clip.pairs_per_device * mesh.size
    config = dataclasses.replace(clip.training, batch_size=batch, warmup_samples=0)
    parameters = parameters_of(abstract_model(clip.config))
    state = on_mesh.place(jax.eval_shape(lambda p: init_state(p, config), parameters))
    shape = (batch, 2, *clip.size)
    pairs = ViewPairs(
        rgb=on_mesh.rows(*shape, 3, dtype=jnp.uint8),
        depth=on_mesh.rows(*shape),
        intrinsics=on_mesh.rows(batch, 2, 3, 3),
        world_from_cam=on_mesh.rows(batch, 2, 4, 4),
    )
    step = make_step(clip.config, config, mesh, precision=clip.precision)
    return Program("training", "step", f"{batch} pairs", step, (state, pairs))
