"""Frozen configurations. Defaults are the released program's."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

from easi3r_jax.core.errors import ConfigError
from easi3r_jax.core.lens import Lens


def check_at_least(config: Any, bound: int, *names: str) -> None:
    """Refuses values below the bound, and NaN."""
    for name in names:
        if not getattr(config, name) >= bound:
            raise ConfigError(f"{name} must be at least {bound}, got {getattr(config, name)}.")


@dataclasses.dataclass(frozen=True)
class FrameConfig:
    """How a clip is read and resized for the network.

    Attributes:
      size: long side in pixels (short side when 224, as the 224 checkpoints were trained).
      patch_size: sides become multiples of this.
      crop: centre crop to those multiples; False resizes to them.
      square_ok: keep a square image square; otherwise it becomes 4:3.
      fit: "long-side": as above (DUSt3R). "width": the width becomes `size` and the height a multiple of the patch,
        of which at most `size` rows remain (VGGT); `crop` and `square_ok` have no effect.
      every: take every n-th frame of the source.
      fps: take about this many frames per second of a video (0: all); cannot be combined with `every` > 1.
      first: stop after this many frames (0: all).
      lens: of the camera, whose distortion is removed from the images first; None: there is none.
    """

    size: int = 512
    patch_size: int = 16
    crop: bool = True
    square_ok: bool = False
    every: int = 1
    fps: float = 0.0
    first: int = 0
    fit: Literal["long-side", "width"] = "long-side"
    lens: Lens | None = None

    def __post_init__(self):
        if self.fit not in ("long-side", "width"):
            raise ConfigError(f"Frames fit by their 'long-side' or 'width', not {self.fit!r}.")
        check_at_least(self, 1, "every")
        check_at_least(self, 0, "first", "fps")
        if math.isinf(self.fps):
            raise ConfigError("Frames per second must be a number, or 0 for all frames.")
        if self.fps > 0 and self.every > 1:
            raise ConfigError("Choose every n-th frame or a number of frames per second, not both.")

    @classmethod
    def for_model(cls, model: Any, **options: Any) -> FrameConfig:
        """Frames at a network's training size.

        Args:
          model: a network (`model.config` has `image_size`, `patch_size` and, if it is not DUSt3R's, `fit`).
          options: other fields, e.g. `fps=8`; they take precedence.
        """
        trained = {"size": max(model.config.image_size), "patch_size": model.config.patch_size}
        trained["fit"] = getattr(model.config, "fit", "long-side")
        return cls(**(trained | options))


#: Values allowed in `PipelineConfig.masks`.
MASK_SOURCES = ("motion", "flow", "given")
#: Values of `PipelineConfig.cue`.
CUES = ("attention", "formula", "gram", "rigid", "match", "none")


#: Moments over pairs that Easi3R's formula fuses, and so may a read-out.
ATTENTION_MOMENTS = ("mean_src", "std_src", "mean_ref", "std_ref")
#: Gram statistics: mean and deviation of query · query, of key · key, and of this token's query · the other's key.
GRAM_STATISTICS = ("qq_mean", "qq_std", "kk_mean", "kk_std", "qk_mean", "qk_std")
#: Deviations over pairs of the Gram statistics.
GRAM_MOMENTS = tuple(f"std_{statistic}_{side}" for side in ("src", "ref") for statistic in GRAM_STATISTICS)


# Of float32, in which scores are computed.
_LARGEST = 3.4e38


@dataclasses.dataclass(frozen=True)
class ReadoutConfig:
    """A calibrated read-out of the attention that a checkpoint carries; `motion.Readout` explains it.

    Attributes:
      num_layers, num_heads: of the decoder.
      weights: len(moments) · num_layers · num_heads numbers, by moment, by layer, by head.
      bias, at_least: see `motion.Readout`.
      origin: how it was made, in words.
      moments: names of the weighted moments, some of `ATTENTION_MOMENTS` and `GRAM_MOMENTS`.
    """

    num_layers: int
    num_heads: int
    weights: tuple[float, ...]
    bias: float
    at_least: float
    origin: str = ""
    moments: tuple[str, ...] = ATTENTION_MOMENTS

    def __post_init__(self):
        object.__setattr__(self, "moments", tuple(self.moments))
        for name in self.moments:
            if name not in ATTENTION_MOMENTS + GRAM_MOMENTS:
                raise ConfigError(
                    f"A read-out cannot weight {str(name)[:40]!r}; the moments are "
                    f"{', '.join(ATTENTION_MOMENTS + GRAM_MOMENTS)}."
                )
        if not self.moments or len(set(self.moments)) < len(self.moments):
            raise ConfigError(f"A read-out weights different moments, at least one; got {self.moments}.")
        needed = len(self.moments) * self.num_layers * self.num_heads
        if len(self.weights) != needed:
            raise ConfigError(
                f"A read-out of {len(self.moments)} moments of {self.num_layers} layers and {self.num_heads} heads has "
                f"{needed} weights, not {len(self.weights)}."
            )
        if not all(abs(x) < _LARGEST for x in (*self.weights, self.bias)) or not 0 <= self.at_least <= 1:
            raise ConfigError("A read-out's weights must be finite, and its minimum threshold between 0 and 1.")


@dataclasses.dataclass(frozen=True)
class SegmentationConfig:
    """From motion scores to dynamic masks (Easi3R, sec. 3.2).

    Attributes:
      num_clusters: k-means clusters of the encoder features.
      restarts: k-means++ initialisations; the one with the lowest inertia is kept.
      kmeans_iterations: maximum number of Lloyd iterations in each.
      otsu_classes: class counts that multi-Otsu tries.
    """

    num_clusters: int = 64
    restarts: int = 4
    kmeans_iterations: int = 300
    otsu_classes: tuple[int, ...] = (2, 3, 4)

    def __post_init__(self):
        check_at_least(self, 1, "num_clusters", "restarts", "kmeans_iterations")
        if not self.otsu_classes or not set(self.otsu_classes) <= {2, 3, 4}:
            raise ConfigError(f"otsu_classes must be some of 2, 3 and 4, got {self.otsu_classes}.")


@dataclasses.dataclass(frozen=True)
class AlignConfig:
    """Global alignment (DUSt3R sec. 3.4, MonST3R sec. 3.3).

    Attributes:
      iterations: Adam steps.
      learning_rate, learning_rate_min: ends of the schedule.
      schedule: "linear" or "cosine".
      shared_focal: one focal length for the whole clip.
      smoothing_weight: weight of the temporal smoothness of relative poses.
      translation_weight: weight of translation within that term.
      flow_weight: weight of the optical-flow term, used if flow is given.
      flow_start: fraction of the iterations before flow is used: cameras and depth must be roughly right first.
      flow_outlier: flow losses at or above this value are ignored.
      flow_limit: the flow term is switched off in iterations in which it exceeds this value.
      match_weight: weight of matches of descriptors, for networks that have them (MASt3R); 0: they are not searched.
      depth_weight: weight of staying close to the initial depth, up to a factor per frame.
      free_principal_point: optimise the principal point, too; otherwise it stays at the image's centre.
      camera_weight: weight of known cameras, if given; infinite: they are held fixed.
      initialisation: the pairs along which the initial world is assembled: "spanning-tree" (most confident pairs) or
        "chain" (nearest frames).
      min_confidence: points below this confidence are not used in initialisation by PnP.
      pnp_iterations: RANSAC iterations for PnP.
      clean_tolerance: relative depth tolerance of the confidence clean-up.
      keep_metres: of a network whose points are metric, give the scene the scale of the pairs' points, so that it is in
        metres, too; known poses that fix the scale take precedence.
    """

    iterations: int = 300
    learning_rate: float = 0.01
    learning_rate_min: float = 0.001
    schedule: Literal["linear", "cosine"] = "linear"
    shared_focal: bool = True
    smoothing_weight: float = 0.0
    translation_weight: float = 1.0
    flow_weight: float = 0.01
    flow_start: float = 0.1
    flow_outlier: float = 50.0
    flow_limit: float = 25.0
    match_weight: float = 0.0
    depth_weight: float = 0.0
    free_principal_point: bool = False
    camera_weight: float = math.inf
    initialisation: Literal["spanning-tree", "chain"] = "spanning-tree"
    min_confidence: float = 3.0
    pnp_iterations: int = 10
    clean_tolerance: float = 0.001
    keep_metres: bool = True

    def __post_init__(self):
        check_at_least(self, 1, "iterations", "pnp_iterations")
        check_at_least(self, 0, "smoothing_weight", "translation_weight", "clean_tolerance")
        check_at_least(self, 0, "flow_weight", "flow_start", "flow_outlier", "flow_limit")
        check_at_least(self, 0, "match_weight", "depth_weight", "camera_weight")
        if self.schedule not in ("linear", "cosine"):
            raise ConfigError(f"Unknown alignment schedule {self.schedule!r}: 'linear' or 'cosine'.")
        if self.initialisation not in ("spanning-tree", "chain"):
            raise ConfigError(f"Unknown initialisation {self.initialisation!r}: 'spanning-tree' or 'chain'.")
        if not 0 < self.learning_rate_min <= self.learning_rate:
            raise ConfigError(
                f"The learning rate must be positive and must not increase: got learning_rate {self.learning_rate}, "
                f"learning_rate_min {self.learning_rate_min}."
            )


@dataclasses.dataclass(frozen=True)
class PipelineConfig:
    """Options of a reconstruction, after the frames are read.

    Attributes:
      graph: pair graph, e.g. "swinstride-5-noncyclic" or "complete".
      cue: the motion cue: "attention" (the read-out that the checkpoint carries, else the published formula),
        "formula" (Easi3R's, for every network), "gram" (VGGT4D's: similarities of queries and keys), "rigid"
        (residual of a rigid registration of point maps), "match" (residual of matching and PnP), or "none" (plain
        DUSt3R: no masks, one decoder pass).
        `reconstruct(..., cue=my_cue)` takes a function instead.
      reattention: mask dynamic regions inside the attention of a second decoder pass (Easi3R, sec. 3.3).
      masks: the sources whose union is the result's mask: "motion" (the cue's), "flow" (optical flow that the camera's
        motion does not explain; MonST3R, sec. 3.3), "given" (the caller's own, also masked in the attention). The
        alignment ignores flow inside the mask.
      mask_dilation: pixels by which the union is dilated.
      flow_threshold: threshold on the flow residual, 0 to 1 (see `alignment.flow_residual`).
      static_tolerance: pixels by which flow may differ from the camera-induced flow where the scene is static.
      point_dtype: type in which all pairs' point maps are stored: "float32", or at half the memory "float16" (11 bits)
        or "bfloat16" (8 bits).
      pair_batch: directed pairs decoded at a time (0: chosen by the number of tokens).
      frame_batch: frames encoded at a time (0: chosen by the number of tokens).
      shared_shapes: pad arrays by up to an eighth of the clip, so that clips of similar length share compiled code.
        Useful for many clips; slower for a single one.
      seed: for k-means and RANSAC.
      segmentation, alignment: options of those stages.
    """

    graph: str = "swinstride-5-noncyclic"
    cue: str = "attention"
    reattention: bool = True
    masks: tuple[str, ...] = ("motion",)
    mask_dilation: int = 0
    flow_threshold: float = 0.35
    static_tolerance: float = 3.0
    point_dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    pair_batch: int = 0
    frame_batch: int = 0
    shared_shapes: bool = False
    seed: int = 0
    segmentation: SegmentationConfig = SegmentationConfig()
    alignment: AlignConfig = AlignConfig()

    def __post_init__(self):
        check_at_least(self, 0, "pair_batch", "frame_batch", "mask_dilation", "flow_threshold", "static_tolerance")
        if self.point_dtype not in ("float32", "float16", "bfloat16"):
            raise ConfigError(f"Unknown point map type {self.point_dtype!r}: float32, float16 or bfloat16.")
        if not set(self.masks) <= set(MASK_SOURCES):
            raise ConfigError(f"Masks come from some of {', '.join(MASK_SOURCES)}, got {self.masks}.")
        if self.cue not in CUES:
            raise ConfigError(f"Unknown motion cue {self.cue!r}: one of {', '.join(CUES)}, or pass a function.")
