"""The pytrees passed between stages.

One alphabet of axes everywhere:

    T  frames            E  directed pairs (edges)   L  decoder layers   A  heads
    N  tokens (= h * w)  h w  token grid             H W  pixels         C  channels

Names carry the frames of reference: `world_from_cam` maps camera coordinates to world coordinates. Cameras have
OpenCV axes (x right, y down, z forward). Pixel coordinates are *integers at pixel centres*: the grid is 0..W-1 by
0..H-1 and DUSt3R's principal point is (W/2, H/2). See docs/conventions.md.

Every class is a frozen dataclass registered as a pytree, so `jax.jit`, `jax.vmap` and `jax.tree.map` take it.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np

from easi3r_jax.core.arrays import Array, Bool, Float, Int, UInt8, pytree_dataclass, static_field
from easi3r_jax.core.errors import InputError
from easi3r_jax.core.lens import Lens

#: Called with (stage, done, total, note) at the start (done = 0), during and at the end (done = total) of a stage.
Progress: TypeAlias = Callable[[str, int, int, str], None]


def silent(stage: str, done: int, total: int, note: str) -> None:
    """Ignores progress."""
    del stage, done, total, note


@pytree_dataclass
class Frames:
    """A clip, resized and cropped for the network.

    Attributes:
      rgb: (T, H, W, 3) uint8; H and W are multiples of the patch size. The network sees (rgb / 255 - 0.5) / 0.5.
      source_index: (T,) int32, the number of each frame in the source (before taking every n-th).
      time: (T,) float64 seconds since the first frame of the source.
      frame_from_source: (3, 3) float64, maps homogeneous pixel coordinates of the *original* image (x, y, 1) to
        those of `rgb`: a scaling followed by a crop. Known intrinsics are mapped through it, exports through its
        inverse.
      source_size: (2,) int32, (height, width) of the original images after EXIF orientation.
      valid: (T,) bool, False for padding at the end, which repeats the last frame; None: no padding.
      names: file name of each frame's original, for a folder of images; else None.
      lens: whose distortion was removed from the originals; None: none was. `Original` always means without it.

    `source_index`, `frame_from_source` and `source_size` are None in results of older versions, which lack them.
    """

    rgb: UInt8[Array, "T H W 3"]
    source_index: Int[Array, "T"] | None
    time: Float[Array, "T"]
    frame_from_source: Float[Array, "3 3"] | None
    source_size: Int[Array, "2"] | None
    valid: Bool[Array, "T"] | None = None
    names: tuple[str, ...] | None = static_field(default=None)
    lens: Lens | None = static_field(default=None)

    def original_intrinsics(self, intrinsics: Float[Array, "T 3 3"]) -> Float[np.ndarray, "T 3 3"]:
        """Maps (T, 3, 3) intrinsics from pixels of the frames to pixels of the original images, float64.

        Raises:
          InputError: the frames are of a result of an older version.
        """
        return np.linalg.inv(_recorded(self.frame_from_source)) @ np.asarray(intrinsics, np.float64)

    @property
    def original_size(self) -> tuple[int, int]:
        """(height, width) of the original images; InputError as above."""
        height, width = _recorded(self.source_size)
        return int(height), int(width)


def _recorded(value: Array | None) -> Array:
    if value is None:
        raise InputError(
            "The result is from an older version, which does not record its crop of the original images: reconstruct "
            "the clip again."
        )
    return value


def frames_at(frames: Frames, numbers: Any) -> Frames:
    """Some of a clip's frames, by their numbers in the clip: an array of int, or a slice."""
    names = None if frames.names is None else tuple(np.asarray(frames.names, object)[numbers])
    return dataclasses.replace(
        frames,
        rgb=frames.rgb[numbers],
        source_index=None if frames.source_index is None else frames.source_index[numbers],
        time=frames.time[numbers],
        valid=None if frames.valid is None else frames.valid[numbers],
        names=names,
    )


@pytree_dataclass
class KnownCameras:
    """Known cameras of a clip: complete, or partial for some frames.

    Attributes:
      focal: (T,) float64, pixels of the network's frames; 1 where unknown.
      principal_point: (T, 2) float64, (x, y) in those pixels; 0 where unknown.
      intrinsics_known: (T,) bool.
      world_from_cam: (T, 4, 4) float64, rigid, in a world of any origin and scale; the identity where unknown.
      poses_known: (T,) bool.
      shared_focal: () float64 pixels, of all frames whose intrinsics are not known; None: to be estimated.
      scale_known: () bool, whether the poses fix the world's scale; None: they do if two of them lie apart.
      start_scale: () float, units of the alignment's initial world per unit of the poses; None: derived from the length
        of the path.
    """

    focal: Float[Array, "T"]
    principal_point: Float[Array, "T 2"]
    intrinsics_known: Bool[Array, "T"]
    world_from_cam: Float[Array, "T 4 4"]
    poses_known: Bool[Array, "T"]
    shared_focal: Float[Array, ""] | None = None
    scale_known: Bool[Array, ""] | None = None
    start_scale: Float[Array, ""] | None = None


@pytree_dataclass
class Given:
    """Priors of a clip beside its frames; None if not given.

    Attributes:
      flow: (E, H, W, 2) float32 optical flow of every directed pair from i to j, pixels (x, y), in the order of the
        clip's edges.
      flow_known: (E, H, W) bool; None: all of the flow.
      masks: (T, H, W) bool, dynamic regions.
      cameras: intrinsics and poses.
    """

    flow: Float[Array, "E H W 2"] | None = None
    flow_known: Bool[Array, "E H W"] | None = None
    masks: Bool[Array, "T H W"] | None = None
    cameras: KnownCameras | None = None


@pytree_dataclass
class PairPredictions:
    """The network's predictions for E directed pairs (i, j): two point maps, both in camera i's frame.

    Attributes:
      edges: (E, 2) int32, (i, j) frame numbers.
      points_i: (E, H, W, 3) float, frame i's pixels as points in camera i, arbitrary scale per pair unless metric.
      points_j: (E, H, W, 3) float, frame j's pixels as points in camera *i*, same scale as `points_i`.
      confidence_i: (E, H, W) float, > 1.
      confidence_j: (E, H, W) float, > 1.
      valid: (E,) bool, False for padding, which repeats the last pair; None: no padding. If given, frames that are in
        no valid pair are padding, too.
      num_frames: T; 0: derived from the edges.
      metric: whether the points of every pair are in metres.
    """

    edges: Int[Array, "E 2"]
    points_i: Float[Array, "E H W 3"]
    points_j: Float[Array, "E H W 3"]
    confidence_i: Float[Array, "E H W"]
    confidence_j: Float[Array, "E H W"]
    valid: Bool[Array, "E"] | None = None
    num_frames: int = static_field(default=0)
    metric: bool = static_field(default=False)

    @property
    def total_frames(self) -> int:
        """T, padding included."""
        return self.num_frames or int(np.max(np.asarray(self.edges), initial=-1)) + 1

    @property
    def clip_edges(self) -> Int[np.ndarray, "pairs 2"]:
        """(E', 2) int32 edges without padding, on the host."""
        edges = np.asarray(self.edges, np.int32)
        return edges if self.valid is None else edges[np.asarray(self.valid)]

    @property
    def clip_length(self) -> int:
        """Number of frames without padding, on the host."""
        return self.total_frames if self.valid is None else int(np.max(self.clip_edges)) + 1


@pytree_dataclass
class TemporalMaps:
    """Temporal mean and deviation of the attention statistics of every frame, fused over layers and heads.

    Attributes:
      mean_src, std_src: (T, h, w) float32 in [0, 1], over the pairs where the frame is j.
      mean_ref, std_ref: (T, h, w) float32 in [0, 1], over the pairs where the frame is i.
    """

    mean_src: Float[Array, "T h w"]
    std_src: Float[Array, "T h w"]
    mean_ref: Float[Array, "T h w"]
    std_ref: Float[Array, "T h w"]


@pytree_dataclass
class MotionResidual:
    """How badly every token fits a motionless scene: the output of motion cues other than attention.

    Attributes:
      value: (T, h, w) float32 >= 0 and finite, mean over the frame's partners; the unit is the cue's own.
      observed: (T, h, w) bool: some partner observes the token. Elsewhere `value` is ignored.
      at_least: () float in [0, 1], minimum threshold of the masks. If given, the values are absolute scores in [0, 1];
        otherwise they are normalised to [0, 1] in each frame.
    """

    value: Float[Array, "T h w"]
    observed: Bool[Array, "T h w"]
    at_least: Float[Array, ""] | None = None


@pytree_dataclass
class MotionMaps:
    """Motion scores per token.

    Attributes:
      temporal: the four attention maps; they are the factors of the attention cue's score.
      raw_score: (T, h, w) float32 in [0, 1]. Per frame: (1 - mean_src) * std_src * mean_ref * (1 - std_ref), or the
        residual of another cue, min-max per frame; of an absolute cue (`MotionResidual.at_least`), its residual.
      labels: (T, h, w) int32, k-means cluster of each token's encoder feature (joint over the clip).
      score: (T, h, w) float32 in [0, 1]: `raw_score` averaged over each cluster; min-max per frame, unless absolute.
    """

    temporal: TemporalMaps
    raw_score: Float[Array, "T h w"]
    labels: Int[Array, "T h w"]
    score: Float[Array, "T h w"]


@pytree_dataclass
class Segmentation:
    """A dynamic score per pixel, and the regions where it is high.

    Attributes:
      score: (T, H, W) float32, the token score upsampled bilinearly.
      threshold: () float32, one for the whole clip (multi-Otsu).
      mask: (T, H, W) bool, score > threshold: True where the frame is dynamic.
    """

    score: Float[Array, "T H W"]
    threshold: Float[Array, ""]
    mask: Bool[Array, "T H W"]


@pytree_dataclass
class Geometry:
    """Cameras and depth over time, in one world frame.

    Attributes:
      world_from_cam: (T, 4, 4) float32, rigid camera-to-world transforms, OpenCV axes; the world's unit is arbitrary
        unless a `Reconstruction` names it.
      intrinsics: (T, 3, 3) float32, in pixels of the network's frames.
      depth: (T, H, W) float32, z in the camera, in world units, positive.
      confidence: (T, H, W) float32, maximum over the pairs of a frame; in a `Scene4D` after clean-up (0 where a point
        floats in front of others).
    """

    world_from_cam: Float[Array, "T 4 4"]
    intrinsics: Float[Array, "T 3 3"]
    depth: Float[Array, "T H W"]
    confidence: Float[Array, "T H W"]


@pytree_dataclass
class Scene4D(Geometry):
    """The reconstruction: cameras and geometry over time, and dynamic regions.

    Attributes:
      dynamic_mask: (T, H, W) bool, True where the frame is dynamic.
      dynamic_score: (T, H, W) float32 in [0, 1], of the motion cue; masks may also come from flow or be given.
      static_mask: (T, H, W) bool, True where nothing indicates motion: the pixel is not masked, and its optical flow,
        where known, agrees with the cameras.
      rgb: (T, H, W, 3) uint8.
    """

    dynamic_mask: Bool[Array, "T H W"]
    dynamic_score: Float[Array, "T H W"]
    static_mask: Bool[Array, "T H W"]
    rgb: UInt8[Array, "T H W 3"]


#: Values of `Reconstruction.unit`.
UNITS = ("arbitrary", "metres", "known poses")


@pytree_dataclass
class Reconstruction:
    """The output of a reconstruction, as NumPy arrays. `easi3r_jax.save_result` writes it, `load_result` reads it.

    Attributes:
      scene: cameras, geometry and masks over time.
      frames: the clip, with the source and time of each frame.
      motion: score maps of the last pass; None without a motion cue.
      threshold: () float32, threshold on `scene.dynamic_score` above which the cue marks a pixel as dynamic; None
        without a cue, or if there is no single threshold for the clip (windows).
      losses: (iterations,) float32 alignment loss before every step; empty for one or two frames (closed form).
      given: the priors that were used; None in results that are read back.
      edges: (E, 2) int32 directed pairs of frames; None in results that are read back or made without pairs.
      record: how the result was made: options, versions, hashes (`config.json`), and the unit of lengths.
      folder: where the result was read from; None before it is saved.
    """

    scene: Scene4D
    frames: Frames
    motion: MotionMaps | None = None
    threshold: Float[Array, ""] | None = None
    losses: Float[Array, "iterations"] | None = None
    given: Given | None = None
    edges: Int[Array, "E 2"] | None = None
    record: Mapping[str, Any] = static_field(default_factory=dict)
    folder: pathlib.Path | None = static_field(default=None)

    def show(self) -> Any:
        """An overview as a matplotlib figure: frames, depth, attention, score, masks. Notebooks display it."""
        from easi3r_jax.io.pictures.summary import result_figure  # imported late: core loads without io

        return result_figure(self)

    def _repr_html_(self) -> str:
        from easi3r_jax.io.pictures.summary import result_html

        return result_html(self)

    @property
    def unit(self) -> str:
        """The unit of lengths: "metres", "known poses" (theirs), or "arbitrary", also of results that do not say."""
        return unit if (unit := self.record.get("unit")) in UNITS else UNITS[0]

    def __repr__(self) -> str:
        count, height, width = self.scene.depth.shape
        dynamic = float(np.mean(self.scene.dynamic_mask))
        more = (", in metres" if self.unit == "metres" else "") + (f", {self.folder}" if self.folder else "")
        return f"Reconstruction({count} frames of {width}x{height}, {dynamic:.1%} dynamic{more})"

    def saved_folder(self) -> pathlib.Path:
        """The folder that the result was read from.

        Raises:
          InputError: the result has not been saved.
        """
        if self.folder is None:
            raise InputError("The result has not been saved: call save_result, then load_result.")
        return self.folder
