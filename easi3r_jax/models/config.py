"""Architectures of the networks, as frozen configurations with named presets."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

from easi3r_jax.core.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class DUSt3RConfig:
    """Architecture of a DUSt3R, MonST3R or MASt3R network (arXiv 2312.14132, sec. 3; 2410.03825; 2406.09756).

    Attributes:
      image_size: (height, width) the network was trained at; other multiples of `patch_size` work too.
      patch_size: side of a patch in pixels.
      enc_dim, enc_depth, enc_heads: ViT encoder.
      dec_dim, dec_depth, dec_heads: each of the two decoder branches.
      mlp_ratio: hidden width of the MLPs over their input width.
      head: "linear" (pixel shuffle), "dpt" (dense prediction transformer; needs patch size 16), or "catmlp+dpt" (that
        with an MLP beside it for descriptors of pixels, of MASt3R).
      rope_base: base of the rotary embedding's frequencies.
      confidence_range: bounds of the confidence, as in the checkpoints' `conf_mode` ("exp", low, high).
      descriptor_dim: channels of the descriptors; 0: none, with the other heads.
      descriptor_confidence_range: bounds of the descriptors' own confidence.
      metric: whether point maps are in metres. Nothing in the architecture says so: it depends on the training.
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
    head: Literal["linear", "dpt", "catmlp+dpt"] = "dpt"
    rope_base: float = 100.0
    confidence_range: tuple[float, float] = (1.0, math.inf)
    descriptor_dim: int = 0
    descriptor_confidence_range: tuple[float, float] = (0.0, math.inf)
    metric: bool = False

    def __post_init__(self):
        for name in ("image_size", "confidence_range", "descriptor_confidence_range"):  # JSON has lists
            object.__setattr__(self, name, tuple(getattr(self, name)))
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
        if self.head not in ("linear", "dpt", "catmlp+dpt"):
            raise ConfigError(f"Unknown head {self.head!r}: 'linear', 'dpt' or 'catmlp+dpt'.")
        if self.is_dpt and self.patch_size != 16:
            raise ConfigError(f"The DPT head upsamples 16 times: patch size 16 needed, got {self.patch_size}.")
        if self.is_dpt and self.dec_depth < 4:
            raise ConfigError(f"The DPT head reads four depths: decoder depth >= 4 needed, got {self.dec_depth}.")
        if (self.descriptor_dim > 0) != (self.head == "catmlp+dpt"):
            raise ConfigError(
                f"Descriptors and the head 'catmlp+dpt' go together: got {self.descriptor_dim} channels and the head "
                f"{self.head!r}."
            )

    @property
    def is_dpt(self) -> bool:
        """Whether point maps come from a dense prediction transformer."""
        return self.head != "linear"

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
    def mast3r_512(cls) -> DUSt3RConfig:
        """`MASt3R_ViTLarge_BaseDecoder_512_catmlpdpt_metric`."""
        return cls(head="catmlp+dpt", descriptor_dim=24, metric=True)

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
    "mast3r-512": DUSt3RConfig.mast3r_512,
    "512-linear": DUSt3RConfig.vit_large_512_linear,
    "224-linear": DUSt3RConfig.vit_large_224_linear,
    "embedded": DUSt3RConfig.embedded,
    "embedded-wide": DUSt3RConfig.embedded_wide,
    "tiny-dpt": DUSt3RConfig.tiny_dpt,
    "tiny-linear": DUSt3RConfig.tiny_linear,
}
