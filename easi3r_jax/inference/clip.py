"""Prepares a clip for the devices: checks sizes, pads frames and pairs, places inputs. All padding happens here."""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol, TypeAlias

import jax
import numpy as np

from easi3r_jax import alignment, motion
from easi3r_jax.core import sharding
from easi3r_jax.core.arrays import Array, Bool, Float, Int, Shaped, UInt8
from easi3r_jax.core.batches import bucket_size, pad_pairs, padded
from easi3r_jax.core.config import AlignConfig, PipelineConfig
from easi3r_jax.core.conversion import check_conversion
from easi3r_jax.core.errors import ConfigError, InputError
from easi3r_jax.core.pairs import make_edges
from easi3r_jax.core.types import (
    Frames,
    Geometry,
    Given,
    KnownCameras,
    MotionMaps,
    Progress,
    Reconstruction,
    Scene4D,
    frames_at,
    silent,
)
from easi3r_jax.models import VGGT, PairNetwork, check_pairwise

# Frames may be larger or smaller than the network's training size by this factor.
_MAX_SIZE_RATIO = 2


class MaskRefiner(Protocol):
    """Refines dynamic masks using the frames, e.g. `inference.refine.Sam2Refiner`. Works on host arrays."""

    def __call__(
        self, rgb: UInt8[np.ndarray, "T H W 3"], masks: Bool[np.ndarray, "T H W"], /, *, progress: Progress = silent
    ) -> Bool[np.ndarray, "T H W"]:
        """Refines the masks of a clip.

        Args:
          rgb: (T, H, W, 3) uint8 frames, read-only.
          masks: (T, H, W) bool, True where the frame is dynamic, read-only.
          progress: called while it works.

        Returns:
          (T, H, W) bool.
        """
        ...


class GeometryRefiner(Protocol):
    """A `MaskRefiner` that also reads cameras and depth, marked by `reads_geometry`; e.g. `ReprojectionRefiner`."""

    def __call__(
        self,
        rgb: UInt8[np.ndarray, "T H W 3"],
        masks: Bool[np.ndarray, "T H W"],
        /,
        *,
        geometry: Geometry,
        progress: Progress = silent,
    ) -> Bool[np.ndarray, "T H W"]:
        """Refines the masks of a clip.

        Args:
          rgb, masks, progress: as `MaskRefiner`.
          geometry: of an alignment with the unrefined masks, as host arrays; in a world of any scale.

        Returns:
          (T, H, W) bool.
        """
        ...


Refiner: TypeAlias = MaskRefiner | GeometryRefiner


def reads_geometry(refiner: GeometryRefiner) -> GeometryRefiner:
    """Marks a refiner of masks that reads geometry: `reconstruct` aligns the clip first, and passes `geometry=`.

    The refiner is called as `refiner(rgb, masks, geometry=geometry, progress=progress)`, with a `Geometry` of host
    arrays. A class may set `needs_geometry = True` instead.
    """
    refiner.needs_geometry = True  # type: ignore[attr-defined]
    return refiner


def needs_geometry(refiner: Refiner | None) -> bool:
    """Whether a refiner is marked by `reads_geometry`."""
    return getattr(refiner, "needs_geometry", False)


class FlowSource(Protocol):
    """Provides optical flow of directed pairs, e.g. `dense_flow` or `functools.partial(network_flow, network)`."""

    def __call__(
        self, frames: Frames, edges: Int[np.ndarray, "E 2"], /, *, progress: Progress
    ) -> tuple[Float[Array, "E H W 2"], Bool[Array, "E H W"] | None]:
        """Flow from i to j, and where it holds.

        Args:
          frames: the clip; padding repeats the last frame.
          edges: (E, 2) int32, pairs (i, j) of frame numbers; padding repeats the last pair.
          progress: called while it works.

        Returns:
          flow: (E, H, W, 2) float32 pixels (x, y).
          known: (E, H, W) bool, where the flow is to be used; None: everywhere.
        """
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class ClipInputs:
    """Inputs of the stages.

    Attributes:
      frames: padded if clips share shapes; `frames.valid` then marks the clip's own.
      length: number of frames without padding.
      edges: (E, 2) int32 pairs, padded if clips share shapes or devices need equal shards.
      valid: (E,) bool, which pairs are not padding; None: all.
      given: priors on the devices, padded likewise.
      cue: None for the published formula.
      finds_motion: whether motion is detected at all.
      grid: (h, w) tokens.
    """

    frames: Frames
    length: int
    edges: Int[np.ndarray, "E 2"]
    valid: Bool[np.ndarray, "E"] | None
    given: Given
    cue: motion.Cue | None
    finds_motion: bool
    grid: tuple[int, int]

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) pixels."""
        return self.frames.rgb.shape[1], self.frames.rgb.shape[2]

    @property
    def num_pairs(self) -> int:
        """Number of pairs without padding."""
        return len(self.edges) if self.valid is None else int(self.valid.sum())

    def padded(self, x: Any) -> Shaped[Array, "T *rest"]:
        """An array over the clip's frames, padded by repeating the last entry."""
        if self.frames.valid is not None:
            x = padded(sharding.on_host(x), len(self.frames.rgb))
        return x if isinstance(x, jax.Array) and not x.is_fully_addressable else jax.device_put(x)

    def without_padding(self, evidence: motion.Evidence) -> motion.Evidence:
        """The evidence as passed to a cue, which does not handle padding."""
        predictions = evidence.predictions
        if predictions is not None and self.valid is not None:
            pairs = dataclasses.replace(predictions, valid=None, num_frames=self.length)
            predictions = jax.tree.map(lambda x: x[: self.num_pairs], pairs)
        return dataclasses.replace(evidence, predictions=predictions)

    def result(
        self,
        scene: Scene4D,
        maps: MotionMaps | None,
        threshold: Float[Array, ""] | None,
        losses: Float[Array, "iterations"],
        config: PipelineConfig,
        unit: str,
    ) -> Reconstruction:
        """The result, as host arrays without padding. Cropped on the host, so that no length needs compiling."""

        def cut(x: Array) -> np.ndarray:
            return sharding.on_host(x)[: self.length]

        def cut_pairs(x: Array | None) -> np.ndarray | None:
            return None if x is None else sharding.on_host(x)[: self.num_pairs]

        frames = frames_at(dataclasses.replace(self.frames, valid=None), slice(self.length))
        given = dataclasses.replace(
            self.given,
            flow=cut_pairs(self.given.flow),
            flow_known=cut_pairs(self.given.flow_known),
            masks=None if self.given.masks is None else cut(self.given.masks),
        )
        return Reconstruction(
            scene=jax.tree.map(cut, scene),
            frames=frames,
            motion=None if maps is None else jax.tree.map(cut, maps),
            threshold=None if threshold is None else sharding.on_host(threshold),
            losses=np.asarray(losses),
            given=given,
            edges=self.edges[: self.num_pairs],
            record={"pipeline": dataclasses.asdict(config), "unit": unit},
        )


def prepare(
    model: PairNetwork,
    frames: Frames,
    config: PipelineConfig,
    given: Given,
    cue: motion.Cue | None,
    flow: FlowSource | None,
    progress: Progress,
) -> ClipInputs:
    """Checks the inputs, pads them if `config.shared_shapes` is set, and places them on the network's mesh.

    Clips with known cameras, or with a cue that reads point maps, are not padded: these do not handle padding.

    Raises:
      ConfigError, InputError: as `pipeline.reconstruct`.
    """
    if frames.valid is not None and not np.all(np.asarray(frames.valid)):
        raise InputError("The frames include padding: leave out those that are not `valid`.")
    check_pairwise(model)
    size = frames.rgb.shape[1], frames.rgb.shape[2]
    check_size(model, size)
    check_conversion(config.point_dtype)  # before the first pass, which may need no point maps
    length, mesh = len(frames.rgb), sharding.mesh_of(model)
    edges = clip_edges(length, config.graph)
    cue = cue_of(model, config) if cue is None else cue
    finds_motion = cue is not None or config.cue != "none"
    pads = config.shared_shapes and given.cameras is None and motion.handles_padding(cue)
    num_pairs = len(edges)
    pair_bucket = 0
    if pads:
        bucket = bucket_size(length)
        frames = dataclasses.replace(
            frames,
            **{name: padded(np.asarray(getattr(frames, name)), bucket) for name in ("rgb", "source_index", "time")},
            valid=jax.device_put(np.arange(bucket) < length),
        )
        pair_bucket = len(clip_edges(bucket, config.graph))
    edges, valid = pad_pairs(edges, pair_bucket, mesh)
    counts = (num_pairs, len(edges))
    if given.flow is None and flow is not None and length > 1:
        _check_given(dataclasses.replace(given, flow=_unknown_flow(edges, size)), config, counts, (length, *size))
        found = flow(frames, edges, progress=progress)
        if not isinstance(found, tuple) or len(found) != 2:
            raise InputError("A source of flow must return two things: the flow, and where it is known (or None).")
        given = dataclasses.replace(given, flow=found[0], flow_known=found[1])
    _check_given(given, config, counts, (length, *size))
    return ClipInputs(
        frames=frames,
        length=length,
        edges=edges,
        valid=valid,
        given=_placed(given, len(frames.rgb), len(edges), mesh),
        cue=cue,
        finds_motion=finds_motion,
        grid=model.grid(size),
    )


def cue_of(model: PairNetwork, config: PipelineConfig) -> motion.Cue | None:
    """The cue that the configuration names for this network; None for the published formula and for no cue."""
    if config.cue == "attention" and model.readout is not None:
        return motion.Readout.from_config(model.readout)
    return motion.find_cue(config.cue)


def unit_of(model: PairNetwork, config: AlignConfig, cameras: KnownCameras | None) -> str:
    """The unit of a reconstruction's lengths, see `Reconstruction.unit`."""
    if alignment.scale_is_known(cameras):
        return "known poses"
    return "metres" if model.config.metric and config.keep_metres else "arbitrary"


def clip_edges(num_frames: int, graph: str) -> Int[np.ndarray, "E 2"]:
    """Directed pairs of a clip, (E, 2) int32, that connect all frames. One frame is paired with itself.

    Raises:
      ConfigError: an unknown graph, or one that leaves frames unconnected.
      InputError: no frames.
    """
    if num_frames < 1:
        raise InputError("The clip has no frames.")
    if num_frames == 1:
        return np.zeros((1, 2), np.int32)
    edges = make_edges(num_frames, graph)
    alignment.check_edges(edges, num_frames)
    return edges


def check_size(model: PairNetwork | VGGT, size: tuple[int, int]) -> None:
    """Refuses frames whose size the network cannot take, or is far from its training size.

    Raises:
      InputError: with advice.
    """
    (height, width), patch, trained = size, model.config.patch_size, model.config.image_size
    advice = "Load them with FrameConfig.for_model(model)."
    if height % patch or width % patch:
        raise InputError(
            f"Frames of {width}x{height} are not divisible into the network's patches of {patch}. {advice}"
        )
    ratio = max(height, width) / max(trained)
    if not 1 / _MAX_SIZE_RATIO <= ratio <= _MAX_SIZE_RATIO:
        raise InputError(
            f"Frames of {width}x{height} do not fit a network trained at {trained[1]}x{trained[0]}: it only predicts "
            f"well near its own size. {advice}"
        )


def _unknown_flow(edges: Int[np.ndarray, "E 2"], size: tuple[int, int]) -> Float[np.ndarray, "E H W 2"]:
    """Stands for flow of the right shape, without memory: other priors are checked before flow is computed."""
    return np.broadcast_to(np.float32(0), (len(edges), *size, 2))


def _check_given(given: Given, config: PipelineConfig, pairs: tuple[int, int], size: tuple[int, int, int]) -> None:
    """Refuses masks from sources that are missing, and arrays of another clip."""
    for source, value in (("flow", given.flow), ("given", given.masks)):
        if source in config.masks and value is None and (source != "flow" or size[0] > 1):
            raise ConfigError(f"Masks from {source!r} were requested, but there is none: pass it in `given`.")
    if given.masks is not None and "given" not in config.masks:
        raise ConfigError("Masks are given, but not used: name them, e.g. PipelineConfig(masks=('motion', 'given')).")
    if given.flow is not None and (len(given.flow) not in pairs or given.flow.shape[1:] != (*size[1:], 2)):
        raise InputError(f"Flow of shape {given.flow.shape} does not fit {pairs[0]} pairs of {size[2]}x{size[1]}.")
    if given.flow_known is not None and (given.flow is None or given.flow_known.shape != given.flow.shape[:3]):
        flow = "there is no flow" if given.flow is None else f"the flow has {given.flow.shape}"
        raise InputError(f"Known flow of shape {given.flow_known.shape} does not fit: {flow}.")
    if given.masks is not None and given.masks.shape != size:
        raise InputError(f"Masks of shape {given.masks.shape} do not fit a clip of shape {size}.")
    if given.cameras is not None:
        alignment.check_known(given.cameras, size[0])


def _placed(given: Given, num_frames: int, num_pairs: int, mesh: jax.sharding.Mesh | None) -> Given:
    """Masks replicated on the devices of the mesh, flow sharded over them; both padded."""
    masks, flow, flow_known = given.masks, given.flow, given.flow_known
    if masks is not None:
        masks = sharding.replicate(jax.device_put(padded(sharding.on_host(masks), num_frames)), mesh)

    def place(x: Array) -> Array:
        if sharding.mesh_of_rows(x) is not None:
            return x
        longer = x if len(x) == num_pairs else padded(sharding.on_host(x), num_pairs)
        return jax.device_put(longer) if mesh is None else sharding.shard_rows(longer, mesh)

    return dataclasses.replace(
        given,
        masks=masks,
        flow=None if flow is None else place(flow),
        flow_known=None if flow_known is None else place(flow_known),
    )
