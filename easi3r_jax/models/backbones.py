"""What the method needs of a pairwise network, and the kinds of such networks that `--checkpoint` takes.

`PairNetwork` is the interface: everything after the network (motion, masks, alignment, windows, exports) reads only
what it names. docs/backbones.md shows one of your own. `BACKBONES` has a line for each kind with released weights.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

from easi3r_jax.core.arrays import Array, Bool, Float, UInt8
from easi3r_jax.core.config import ReadoutConfig
from easi3r_jax.core.errors import ConfigError
from easi3r_jax.core.statistics import AttentionStats


class PairConfig(Protocol):
    """What a network's configuration says to the method.

    Attributes:
      image_size: (height, width) of its training; frames are loaded near it.
      patch_size: side of a token in pixels; frames are multiples of it.
      dec_depth, dec_heads: L and A of its statistics.
      metric: whether its points are in metres; the alignment then keeps the unit.
    """

    @property
    def image_size(self) -> tuple[int, int]: ...
    @property
    def patch_size(self) -> int: ...
    @property
    def dec_depth(self) -> int: ...
    @property
    def dec_heads(self) -> int: ...
    @property
    def metric(self) -> bool: ...


class HasStatistics(Protocol):
    """What `PairNetwork.decode` returns; everything else in it is the network's own.

    Attributes:
      stats: of the attention between the frames of each pair.
    """

    @property
    def stats(self) -> AttentionStats: ...


class PairNetwork(Protocol):
    """A network from two frames to two point maps in the first one's camera: a pytree with these methods.

    Attributes:
      config: see `PairConfig`.
      readout: the calibrated motion cue that `cue="attention"` uses; None: the published formula.
    """

    @property
    def config(self) -> PairConfig: ...
    @property
    def readout(self) -> ReadoutConfig | None: ...

    def grid(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """(h, w) tokens of images of (H, W) pixels."""
        ...

    def encode(self, rgb: UInt8[Array, "T H W 3"]) -> Float[Array, "T N C"]:
        """Features of every frame, once. Frames come as bytes: the network normalises them as it was trained."""
        ...

    def decode(
        self,
        features_i: Float[Array, "E N C"],
        features_j: Float[Array, "E N C"],
        grid: tuple[int, int],
        dynamic_tokens: tuple[Bool[Array, "E N"], Bool[Array, "E N"]] | None = None,
        *,
        gram: bool = False,
    ) -> HasStatistics:
        """Both frames of every pair together, with statistics of the attention between them.

        Args:
          features_i, features_j: of the pairs' frames.
          grid: (h, w) tokens.
          dynamic_tokens: of i and of j; here the masks of the second pass enter. In DUSt3R's decoder static tokens of i
            do not attend to dynamic ones of j.
          gram: also Gram statistics; refuse them if there are none.
        """
        ...

    def predict(
        self, features_i: Float[Array, "E N C"], features_j: Float[Array, "E N C"], decoded: Any, grid: tuple[int, int]
    ) -> tuple[Float[Array, "E H W 3"], Float[Array, "E H W"], Float[Array, "E H W 3"], Float[Array, "E H W"]]:
        """Points of i and their confidence > 1, then those of j, all in camera i."""
        ...


@dataclasses.dataclass(frozen=True)
class Backbone:
    """A kind of network with released weights.

    Attributes:
      name: for messages.
      heads: by which its configurations are recognised.
      checkpoints: names of its weights on the Hugging Face hub.
      licence: of these weights.
    """

    name: str
    heads: tuple[str, ...]
    checkpoints: tuple[str, ...]
    licence: str


_LICENCE = "CC BY-NC-SA 4.0 (released DUSt3R, MonST3R and MASt3R weights: attribution, non-commercial, share alike)"
_DUST3R = tuple(f"naver/DUSt3R_ViTLarge_BaseDecoder_{kind}" for kind in ("512_dpt", "512_linear", "224_linear"))
_MONST3R = "Junyi42/MonST3R_PO-TA-S-W_ViTLarge_BaseDecoder_512_dpt"
_MAST3R = "naver/MASt3R_ViTLarge_BaseDecoder_512_catmlpdpt_metric"

#: One line for each kind. MonST3R is DUSt3R with other weights.
BACKBONES = (
    Backbone("DUSt3R", ("linear", "dpt"), (*_DUST3R, _MONST3R), _LICENCE),
    Backbone("MASt3R", ("catmlp+dpt",), (_MAST3R,), _LICENCE),
)


def backbone_of(head: str) -> Backbone:
    """The kind of network that has this head.

    Raises:
      ConfigError: none has.
    """
    for backbone in BACKBONES:
        if head in backbone.heads:
            return backbone
    raise ConfigError(f"No network has the head {head!r}.")


def check_pairwise(model: Any) -> None:
    """Refuses a network that takes all frames at once where one of pairs is needed.

    Raises:
      ConfigError: it has no `decode` and `predict`.
    """
    if not (hasattr(model, "decode") and hasattr(model, "predict")):
        raise ConfigError(
            f"{type(model).__name__} is no network of pairs (DUSt3R, MonST3R, MASt3R): if it takes all frames at once, "
            "as VGGT does, use reconstruct_multiview(model, frames)."
        )


def check_multiview(model: Any) -> None:
    """Refuses a network of pairs where one that takes all frames at once is needed.

    Raises:
      ConfigError: it has no `aggregate` and `cameras`.
    """
    if not (hasattr(model, "aggregate") and hasattr(model, "cameras")):
        raise ConfigError(
            f"{type(model).__name__} does not take all frames at once, as VGGT does: use reconstruct(model, frames), "
            "or load VGGT by load_multiview_model."
        )


def released_licence(checkpoint: str) -> str | None:
    """The licence of weights by their name on the hub; None for weights that are not of `BACKBONES`."""
    return next((b.licence for b in BACKBONES if checkpoint in b.checkpoints), None)
