"""Frozen configurations with named presets. Defaults are the released program's."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

from easi3r_jax.core.errors import ConfigError


def _check_at_least(config: Any, bound: int, *names: str) -> None:
    """Refuses values below the bound, and NaN."""
    for name in names:
        if not getattr(config, name) >= bound:
            raise ConfigError(f"{name} must be at least {bound}, got {getattr(config, name)}.")


@dataclasses.dataclass(frozen=True)
class DUSt3RConfig:
    """Architecture of a DUSt3R / MonST3R network (arXiv 2312.14132, sec. 3; arXiv 2410.03825).

    Attributes:
      image_size: (height, width) the network was trained at; other multiples of `patch_size` work too.
      patch_size: side of a patch in pixels.
      enc_dim, enc_depth, enc_heads: ViT encoder.
      dec_dim, dec_depth, dec_heads: each of the two decoder branches.
      mlp_ratio: hidden width of the MLPs over their input width.
      head: "linear" (pixel shuffle) or "dpt" (dense prediction transformer; needs patch size 16).
      rope_base: base of the rotary embedding's frequencies.
      confidence_range: bounds of the confidence, as in the checkpoints' `conf_mode` ("exp", low, high).
    """

    image_size: tuple[int, int] = (512, 512)
    patch_size: int = 16
    enc_dim: int = 1024
    enc_depth: int = 24
    enc_heads: int = 16
    dec_dim: int = 768
    dec_depth: int = 12
    dec_heads: int = 12
    mlp_ratio: float = 4.0
    head: Literal["linear", "dpt"] = "dpt"
    rope_base: float = 100.0
    confidence_range: tuple[float, float] = (1.0, math.inf)

    def __post_init__(self):
        sizes = (
            self.patch_size,
            self.enc_dim,
            self.enc_depth,
            self.enc_heads,
            self.dec_dim,
            self.dec_depth,
            self.dec_heads,
            *self.image_size,
        )
        if min(sizes) < 1 or self.mlp_ratio <= 0:
            raise ConfigError(f"Every size of a DUSt3R configuration must be positive, got {self}.")
        for name, dim, heads in (("encoder", self.enc_dim, self.enc_heads), ("decoder", self.dec_dim, self.dec_heads)):
            if dim % heads or (dim // heads) % 4:
                raise ConfigError(
                    f"The {name} width {dim} must divide into {heads} heads of a multiple of 4 channels "
                    "(2-D rotary embedding)."
                )
        if self.head not in ("linear", "dpt"):
            raise ConfigError(f"Unknown head {self.head!r}: 'linear' or 'dpt'.")
        if self.head == "dpt" and self.patch_size != 16:
            raise ConfigError(f"The DPT head upsamples 16 times: patch size 16 needed, got {self.patch_size}.")
        if self.head == "dpt" and self.dec_depth < 4:
            raise ConfigError(f"The DPT head reads four depths: decoder depth >= 4 needed, got {self.dec_depth}.")

    @property
    def dpt_hooks(self) -> tuple[int, int, int, int]:
        """Depths the DPT head reads: 0 is the encoder's output, l the output of decoder block l (1-based)."""
        depth = self.dec_depth
        return (0, depth // 2, depth * 3 // 4, depth)

    @classmethod
    def vit_large_512_dpt(cls) -> DUSt3RConfig:
        """`DUSt3R_ViTLarge_BaseDecoder_512_dpt`; also MonST3R's."""
        return cls()

    @classmethod
    def vit_large_512_linear(cls) -> DUSt3RConfig:
        """`DUSt3R_ViTLarge_BaseDecoder_512_linear`."""
        return cls(head="linear")

    @classmethod
    def vit_large_224_linear(cls) -> DUSt3RConfig:
        """`DUSt3R_ViTLarge_BaseDecoder_224_linear`."""
        return cls(image_size=(224, 224), head="linear")

    @classmethod
    def embedded(cls) -> DUSt3RConfig:
        """The small network that ships with the package (2.2 M parameters)."""
        return cls(
            image_size=(64, 96),
            patch_size=8,
            enc_dim=128,
            enc_depth=4,
            enc_heads=4,
            dec_dim=128,
            dec_depth=4,
            dec_heads=4,
            mlp_ratio=2.0,
            head="linear",
        )

    @classmethod
    def embedded_wide(cls) -> DUSt3RConfig:
        """A larger one of the same kind, to be trained on an accelerator (7.0 M parameters)."""
        sizes = {"enc_dim": 192, "enc_depth": 5, "enc_heads": 6, "dec_dim": 192, "dec_depth": 6, "dec_heads": 6}
        return dataclasses.replace(cls.embedded(), image_size=(96, 128), **sizes)

    @classmethod
    def thumbnail(cls) -> DUSt3RConfig:
        """The embedded network in its smallest form: for trying out programs, not for results."""
        sizes = {"enc_dim": 32, "enc_depth": 2, "enc_heads": 2, "dec_dim": 32, "dec_depth": 2, "dec_heads": 2}
        return dataclasses.replace(cls.embedded(), image_size=(32, 48), **sizes)

    @classmethod
    def tiny_dpt(cls) -> DUSt3RConfig:
        """For tests: every part of the real network, narrow."""
        return cls(image_size=(96, 128), enc_dim=64, enc_depth=3, enc_heads=4, dec_dim=96)

    @classmethod
    def tiny_linear(cls) -> DUSt3RConfig:
        """For tests: `tiny_dpt` with the linear head."""
        return dataclasses.replace(cls.tiny_dpt(), image_size=(64, 96), head="linear")


@dataclasses.dataclass(frozen=True)
class FlowConfig:
    """A network that estimates optical flow.

    Attributes:
      network: "sea-raft" (SEA-RAFT "M", arXiv 2405.14793), "raft" or "raft-small" (arXiv 2003.12039).
    """

    network: Literal["sea-raft", "raft", "raft-small"] = "sea-raft"

    def __post_init__(self):
        if self.network not in ("sea-raft", "raft", "raft-small"):
            raise ConfigError(f"Unknown flow network {self.network!r}: 'sea-raft', 'raft' or 'raft-small'.")


PRESETS = {
    "512-dpt": DUSt3RConfig.vit_large_512_dpt,
    "512-linear": DUSt3RConfig.vit_large_512_linear,
    "224-linear": DUSt3RConfig.vit_large_224_linear,
    "embedded": DUSt3RConfig.embedded,
    "embedded-wide": DUSt3RConfig.embedded_wide,
    "tiny-dpt": DUSt3RConfig.tiny_dpt,
    "tiny-linear": DUSt3RConfig.tiny_linear,
}


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
        _check_at_least(self, 1, "every")
        _check_at_least(self, 0, "first", "fps")
        if math.isinf(self.fps):
            raise ConfigError("Frames per second must be a number, or 0 for all frames.")
        if self.fps > 0 and self.every > 1:
            raise ConfigError("Take every n-th frame or so many frames per second, not both.")


#: What `PipelineConfig.masks` may name.
MASK_SOURCES = ("motion", "flow", "given")
#: What `PipelineConfig.motion` may be; `motion.register_cue` adds to it.
MOTION_SOURCES = ["attention", "rigid", "match", "none"]


@dataclasses.dataclass(frozen=True)
class MotionConfig:
    """From scores to masks of what moves (Easi3R, sec. 3.2).

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
        _check_at_least(self, 1, "num_clusters", "restarts", "kmeans_iterations")
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
        _check_at_least(self, 1, "iterations", "pnp_iterations")
        _check_at_least(self, 0, "smoothing_weight", "translation_weight", "clean_tolerance")
        _check_at_least(self, 0, "flow_weight", "flow_start", "flow_outlier", "flow_limit")
        _check_at_least(self, 0, "depth_weight", "camera_weight")
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
      motion: what finds what moves: "attention" (Easi3R), a cue of `easi3r_jax.motion` ("rigid": residual of a
        registration, "match": of matching and PnP, or your own); "none" is plain DUSt3R: no masks, one decoder pass.
      reattention: mask what moves inside the attention of a second decoder pass (Easi3R, sec. 3.3).
      masks: what the result's masks are the union of: "motion" (what finds what moves), "flow" (optical flow that the
        camera's motion does not explain; MonST3R, sec. 3.3), "given" (the caller's own, which are masked in the
        attention, too). Flow does not count in the alignment where they are.
      mask_dilation: pixels by which the union is grown.
      flow_threshold: of the residual of the flow, 0 to 1 (see `align.flow_residual`).
      static_tolerance: pixels by which flow may differ from the cameras' where the scene is static.
      point_dtype: how the point maps of all pairs are kept: "float32", or in half the memory "float16" (11 bits) or
        "bfloat16" (8 bits).
      pair_batch: directed pairs decoded at a time (0: chosen by the number of tokens).
      frame_batch: frames encoded at a time (0: chosen by the number of tokens).
      shared_shapes: clips of similar lengths share what is compiled: arrays are up to an eighth longer than the clip.
        For many clips; a single one is better off without. The result is then host arrays.
      seed: of k-means and RANSAC.
      segmentation, alignment: options of those stages.
    """

    graph: str = "swinstride-5-noncyclic"
    motion: str = "attention"
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
    segmentation: MotionConfig = MotionConfig()
    alignment: AlignConfig = AlignConfig()

    def __post_init__(self):
        _check_at_least(self, 0, "pair_batch", "frame_batch", "mask_dilation", "flow_threshold", "static_tolerance")
        if self.point_dtype not in ("float32", "float16", "bfloat16"):
            raise ConfigError(f"Unknown type of point maps {self.point_dtype!r}: float32, float16 or bfloat16.")
        if not set(self.masks) <= set(MASK_SOURCES):
            raise ConfigError(f"Masks come from some of {', '.join(MASK_SOURCES)}, got {self.masks}.")
        if self.motion not in MOTION_SOURCES:
            raise ConfigError(f"Unknown motion source {self.motion!r}: one of {', '.join(MOTION_SOURCES)}.")


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    """What training minimises. The defaults are DUSt3R's (sec. 3.2); the other terms are not in the paper.

    Attributes:
      alpha: weight of the logarithm of the confidence.
      scale_weight: of the squared logarithm of the predicted scale, which the objective leaves free to drift.
      matching_weight: of InfoNCE between encoder tokens that show the same place.
      attention_weight: of the cross-entropy of half the cross-attention heads of a decoder layer against the matches.
      attention_layer: the layer, counted from 0.
    """

    alpha: float = 0.2
    scale_weight: float = 0.0
    matching_weight: float = 0.0
    attention_weight: float = 0.0
    attention_layer: int = 1

    def __post_init__(self):
        _check_at_least(self, 0, "alpha", "scale_weight", "matching_weight", "attention_weight", "attention_layer")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A training run.

    Attributes:
      steps: optimiser steps of the whole run; the schedule ends there.
      batch_size: pairs a step; each is trained in both directions.
      optimiser: "adamw", or "muon" on the matrices of the transformer's blocks and AdamW elsewhere.
      learning_rate, learning_rate_min: highest and last one.
      warmup_samples: pairs over which it rises.
      weight_decay: of matrices.
      beta1, beta2: of Adam.
      clip_norm: gradients longer than this are shortened to it.
      average_decay: of the moving average of the parameters.
      freeze_encoder: train decoder and heads only (MonST3R, sec. 3.2).
      objective: what is minimised.
    """

    steps: int = 1000
    batch_size: int = 8
    optimiser: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = 1e-4
    learning_rate_min: float = 1e-6
    warmup_samples: int = 1000
    weight_decay: float = 0.05
    beta1: float = 0.9
    beta2: float = 0.95
    clip_norm: float = 1.0
    average_decay: float = 0.999
    freeze_encoder: bool = False
    objective: ObjectiveConfig = ObjectiveConfig()

    def __post_init__(self):
        _check_at_least(self, 1, "steps", "batch_size")
        _check_at_least(self, 0, "warmup_samples", "weight_decay", "learning_rate_min")
        if self.optimiser not in ("adamw", "muon"):
            raise ConfigError(f"Unknown optimiser {self.optimiser!r}: 'adamw' or 'muon'.")
        if not self.learning_rate_min <= self.learning_rate:
            raise ConfigError("The last learning rate must not be above the highest one.")
        if not self.warmup_samples < self.steps * self.batch_size:
            raise ConfigError(
                f"The learning rate would rise over {self.warmup_samples} pairs, but the whole run has "
                f"{self.steps * self.batch_size}: more steps, or a shorter warm-up."
            )

    @classmethod
    def dust3r(cls) -> TrainConfig:
        """DUSt3R's own objective and optimiser (sec. 4, supplementary); clipping and the moving average are ours."""
        return cls(learning_rate=1e-4, learning_rate_min=1e-6, weight_decay=0.05)

    @classmethod
    def embedded(cls) -> TrainConfig:
        """The network that ships with the package.

        Beyond the paper: Muon, and three terms without which so small a network learns to match only after far longer.
        """
        return cls(
            steps=6_000,
            batch_size=16,
            optimiser="muon",
            learning_rate=3e-3,
            learning_rate_min=3e-5,
            warmup_samples=1600,
            weight_decay=0.01,
            average_decay=0.998,
            objective=ObjectiveConfig(alpha=0.4, scale_weight=0.01, matching_weight=0.1, attention_weight=0.1),
        )

    @classmethod
    def embedded_wide(cls) -> TrainConfig:
        """As `embedded`, for as long as an accelerator makes affordable."""
        return dataclasses.replace(cls.embedded(), steps=30_000, batch_size=64, learning_rate=2e-3)

    @classmethod
    def monst3r(cls) -> TrainConfig:
        """MonST3R's fine-tuning (arXiv 2410.03825, sec. 4): 50 epochs of 20,000 pairs, 3 of them warm-up."""
        return cls(
            steps=50 * 20_000 // 8,
            batch_size=8,
            learning_rate=5e-5,
            learning_rate_min=1e-6,
            warmup_samples=3 * 20_000,
            weight_decay=0.05,
            freeze_encoder=True,
        )
