"""Frozen configurations with named presets. Defaults are the released program's."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

from easi3r_jax.core.errors import ConfigError


def check_at_least(config: Any, bound: int, *names: str) -> None:
    """Refuses values below the bound, and NaN."""
    for name in names:
        if not getattr(config, name) >= bound:
            raise ConfigError(f"{name} must be at least {bound}, got {getattr(config, name)}.")


@dataclasses.dataclass(frozen=True)
class FrameConfig:
    """How a clip is read and brought to the network's size.

    Attributes:
      size: long side in pixels (short side when 224, as the 224 checkpoints were trained).
      patch_size: sides become multiples of it.
      crop: centre crop to those multiples; False resizes to them.
      square_ok: keep a square image square; otherwise it becomes 4:3.
      every: take every n-th frame of the source.
      fps: take about this many frames per second of a video (0: all); excludes `every` > 1.
      first: stop after so many frames (0: all).
    """

    size: int = 512
    patch_size: int = 16
    crop: bool = True
    square_ok: bool = False
    every: int = 1
    fps: float = 0.0
    first: int = 0

    def __post_init__(self):
        check_at_least(self, 1, "every")
        check_at_least(self, 0, "first", "fps")
        if math.isinf(self.fps):
            raise ConfigError("Frames per second must be a number, or 0 for all frames.")
        if self.fps > 0 and self.every > 1:
            raise ConfigError("Take every n-th frame or so many frames per second, not both.")

    @classmethod
    def for_model(cls, model: Any, **options: Any) -> FrameConfig:
        """Frames at the size that a network was trained at.

        Args:
          model: a network (`model.config` has `image_size` and `patch_size`).
          options: other fields, e.g. `fps=8`; they take precedence.
        """
        trained = {"size": max(model.config.image_size), "patch_size": model.config.patch_size}
        return cls(**(trained | options))


#: What `PipelineConfig.masks` may name.
MASK_SOURCES = ("motion", "flow", "given")
#: What `PipelineConfig.cue` may be.
CUES = ("attention", "rigid", "match", "none")


@dataclasses.dataclass(frozen=True)
class SegmentationConfig:
    """From motion scores to dynamic masks (Easi3R, sec. 3.2).

    Attributes:
      num_clusters: k-means clusters of the encoder features.
      restarts: k-means++ initialisations, the lowest inertia wins.
      kmeans_iterations: most Lloyd iterations of each.
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
      shared_focal: one focal length for the clip.
      smoothing_weight: weight of the temporal smoothness of relative poses.
      translation_weight: weight of translation within that term.
      flow_weight: of the optical flow, where it is given.
      flow_start: share of the iterations before it counts: cameras and depth must be about right first.
      flow_outlier: pixels whose loss is not below it do not count.
      flow_limit: in an iteration in which the flow's loss is above it, it does not count at all.
      depth_weight: of staying close to the depth at the start, but for a factor per frame.
      free_principal_point: the principal point is found, too; otherwise it is the image's centre.
      camera_weight: of known cameras, where they are given; infinite: they stay as they are.
      initialisation: which pairs the first world is put together along: "spanning-tree", the most confident ones, or
        "chain", those of the nearest frames.
      min_confidence: points below it take no part in initialisation by PnP.
      pnp_iterations: RANSAC iterations of PnP.
      clean_tolerance: relative depth tolerance of the confidence clean-up.
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
    depth_weight: float = 0.0
    free_principal_point: bool = False
    camera_weight: float = math.inf
    initialisation: Literal["spanning-tree", "chain"] = "spanning-tree"
    min_confidence: float = 3.0
    pnp_iterations: int = 10
    clean_tolerance: float = 0.001

    def __post_init__(self):
        check_at_least(self, 1, "iterations", "pnp_iterations")
        check_at_least(self, 0, "smoothing_weight", "translation_weight", "clean_tolerance")
        check_at_least(self, 0, "flow_weight", "flow_start", "flow_outlier", "flow_limit")
        check_at_least(self, 0, "depth_weight", "camera_weight")
        if self.schedule not in ("linear", "cosine"):
            raise ConfigError(f"Unknown alignment schedule {self.schedule!r}: 'linear' or 'cosine'.")
        if self.initialisation not in ("spanning-tree", "chain"):
            raise ConfigError(f"Unknown initialisation {self.initialisation!r}: 'spanning-tree' or 'chain'.")
        if not 0 < self.learning_rate_min <= self.learning_rate:
            raise ConfigError(
                f"The learning rate must fall to a positive one: got learning_rate {self.learning_rate}, "
                f"learning_rate_min {self.learning_rate_min}."
            )


@dataclasses.dataclass(frozen=True)
class PipelineConfig:
    """A whole reconstruction, after the frames are read.

    Attributes:
      graph: pair graph, e.g. "swinstride-5-noncyclic" or "complete".
      cue: what motion is read from: "attention" (Easi3R), "rigid" (residual of a rigid registration of point maps),
        "match" (residual of matching and PnP), or "none" (plain DUSt3R: no masks, one decoder pass).
        `reconstruct(..., cue=my_cue)` takes a function in its place.
      reattention: mask dynamic regions inside the attention of a second decoder pass (Easi3R, sec. 3.3).
      masks: what the result's masks are the union of: "motion" (the cue's), "flow" (optical flow that the camera's
        motion does not explain; MonST3R, sec. 3.3), "given" (the caller's own, which are masked in the attention, too).
        Flow does not count in the alignment where they are.
      mask_dilation: pixels by which the union is grown.
      flow_threshold: of the residual of the flow, 0 to 1 (see `alignment.flow_residual`).
      static_tolerance: pixels by which flow may differ from the cameras' where the scene is static.
      point_dtype: how the point maps of all pairs are kept: "float32", or in half the memory "float16" (11 bits) or
        "bfloat16" (8 bits).
      pair_batch: directed pairs decoded at a time (0: chosen by the number of tokens).
      frame_batch: frames encoded at a time (0: chosen by the number of tokens).
      shared_shapes: clips of similar lengths share what is compiled: arrays are padded by up to an eighth of the
        clip. For many clips; a single one is better off without.
      seed: of k-means and RANSAC.
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
            raise ConfigError(f"Unknown type of point maps {self.point_dtype!r}: float32, float16 or bfloat16.")
        if not set(self.masks) <= set(MASK_SOURCES):
            raise ConfigError(f"Masks come from some of {', '.join(MASK_SOURCES)}, got {self.masks}.")
        if self.cue not in CUES:
            raise ConfigError(f"Unknown motion cue {self.cue!r}: one of {', '.join(CUES)}, or pass a function.")
