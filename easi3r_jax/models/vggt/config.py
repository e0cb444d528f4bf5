"""Architecture of VGGT as a frozen configuration with named presets."""

from __future__ import annotations

import dataclasses
from typing import Literal

from easi3r_jax.core.errors import ConfigError

#: Heads that a network may have, in the order of their parts of a checkpoint.
HEADS = ("camera", "depth", "point", "track")
#: Layers of the released network of 24 that the dense heads read.
_RELEASED_DEPTH, _RELEASED_LEVELS = 24, (4, 11, 17, 23)


@dataclasses.dataclass(frozen=True)
class VGGTConfig:
    """Architecture of a VGGT network (arXiv 2503.11651).

    Attributes:
      network: tells this configuration from others in a checkpoint.
      image_size: (height, width) the network was trained at; other multiples of `patch_size` work too. The encoder's
        position embedding has one entry per patch of such an image.
      patch_size: side of a patch in pixels.
      encoder: "dino" (DINOv2 with registers) or "conv" (only the patch embedding).
      enc_depth: blocks of the encoder.
      dim: width of encoder and aggregator.
      depth: layers of the aggregator, each a frame block and a global block.
      num_heads: of every attention, except the track head's.
      registers: register tokens, of each frame and in the encoder.
      mlp_ratio: hidden width of the MLPs over their input width.
      rope_base: base of the rotary embedding's frequencies.
      heads: those that the network has, some of `HEADS`.
      camera_depth, camera_iterations: blocks of the camera head's trunk, and how often it refines the cameras.
      features: width of the dense heads.
      level_dims: width of the four levels of every dense head.
      track_features, track_hidden, track_levels, track_radius, track_iterations: of the track head.
    """

    network: Literal["vggt"] = "vggt"
    image_size: tuple[int, int] = (518, 518)
    patch_size: int = 14
    encoder: Literal["dino", "conv"] = "dino"
    enc_depth: int = 24
    dim: int = 1024
    depth: int = 24
    num_heads: int = 16
    registers: int = 4
    mlp_ratio: float = 4.0
    rope_base: float = 100.0
    heads: tuple[str, ...] = HEADS
    camera_depth: int = 4
    camera_iterations: int = 4
    features: int = 256
    level_dims: tuple[int, int, int, int] = (256, 512, 1024, 1024)
    track_features: int = 128
    track_hidden: int = 384
    track_levels: int = 7
    track_radius: int = 4
    track_iterations: int = 4

    def __post_init__(self):
        sizes = [getattr(self, f.name) for f in dataclasses.fields(self) if type(f.default) is int]
        if min(*sizes, *self.image_size, *self.level_dims, self.mlp_ratio) <= 0:
            raise ConfigError(f"Every size of a VGGT configuration must be positive, got {self}.")
        if self.network != "vggt" or self.encoder not in ("dino", "conv"):
            raise ConfigError(f"VGGT's encoder is 'dino' or 'conv', got {self.encoder!r} of {self.network!r}.")
        if self.dim % self.num_heads or (self.dim // self.num_heads) % 4:
            raise ConfigError(
                f"The width {self.dim} must divide into {self.num_heads} heads of a multiple of 4 channels "
                "(2-D rotary embedding)."
            )
        if not set(self.heads) <= set(HEADS):
            raise ConfigError(f"VGGT's heads are some of {', '.join(HEADS)}, got {self.heads}.")
        if self.depth < 4:
            raise ConfigError(f"The dense heads read four layers: depth >= 4 needed, got {self.depth}.")

    @property
    def fit(self) -> Literal["width"]:
        """How frames are resized, see `FrameConfig`."""
        return "width"

    @property
    def metric(self) -> bool:
        """Whether its points are in metres: they have no unit."""
        return False

    @property
    def levels(self) -> tuple[int, int, int, int]:
        """Layers that the dense heads read, from 0: those of the released network, in proportion to the depth."""
        first, second, third, last = (level * self.depth // _RELEASED_DEPTH for level in _RELEASED_LEVELS)
        return first, second, third, last

    @property
    def special(self) -> int:
        """Tokens of a frame before its patches: the camera token and the registers."""
        return 1 + self.registers

    @classmethod
    def released(cls) -> VGGTConfig:
        """`facebook/VGGT-1B`; also the commercial checkpoint, and the one of VGGT4D's tracker."""
        return cls()

    @classmethod
    def tiny(cls) -> VGGTConfig:
        """For tests: every part of the real network, narrow."""
        return cls(
            image_size=(98, 98),
            enc_depth=3,
            dim=64,
            depth=6,
            num_heads=4,
            features=32,
            level_dims=(16, 24, 32, 32),
            track_features=32,
            track_hidden=48,
            track_levels=4,
            track_radius=2,
            track_iterations=3,
        )
