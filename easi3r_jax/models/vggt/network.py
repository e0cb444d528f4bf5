"""VGGT (arXiv 2503.11651): from any number of frames to their cameras, depth and points, in one pass.

The stages are separate: a frame is encoded once, heads run only where they are needed, in chunks of frames:

    features = model.encode(rgb)                            # (T, N, C)
    aggregated = model.aggregate(features, grid)            # tokens, and statistics if `bands` are named
    encoding = model.cameras(aggregated)                    # (T, 9), see `geometry.cameras_of`
    depth, confidence = model.depth(aggregated, grid)       # (T, H, W) each
    points, confidence = model.points(aggregated, grid)     # (T, H, W, 3) in the world, (T, H, W)
    tracks, visible, confidence = model.track(aggregated, grid, points_of_the_first_frame)

Modules are pytrees: `jax.jit(lambda model, rgb: model.encode(rgb))(model, rgb)`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from easi3r_jax.core.arrays import Array, Bool, Float, UInt8
from easi3r_jax.core.errors import ConfigError, InputError
from easi3r_jax.models.precision import Precision, multiplying, policy
from easi3r_jax.models.vggt.aggregator import Aggregated, Aggregator, Band
from easi3r_jax.models.vggt.camera import CameraHead
from easi3r_jax.models.vggt.chunks import by_chunks
from easi3r_jax.models.vggt.config import VGGTConfig
from easi3r_jax.models.vggt.dpt import DenseHead, depth_and_confidence, points_and_confidence
from easi3r_jax.models.vggt.encoder import ConvEncoder, DinoEncoder, standardize_rgb
from easi3r_jax.models.vggt.track import TrackHead

#: Frames whose activations are in memory at a time, in encoder and dense heads.
FRAMES_AT_ONCE = 8


class VGGT(nnx.Module):
    """The whole network. Heads that the configuration does not name are None.

    Attributes:
      config: the architecture.
      precision: which part computes in which number type; `with_precision` changes it.
      readout: None: its cue has no calibrated read-out.
    """

    readout = None

    def __init__(self, config: VGGTConfig, *, rngs: nnx.Rngs, precision: Precision = Precision()):
        self.config = config
        self.precision = precision
        dtype = jnp.dtype(precision.layers)
        encoder = DinoEncoder if config.encoder == "dino" else ConvEncoder
        self.encoder = encoder(config, dtype=dtype, rngs=rngs)
        self.aggregator = Aggregator(config, dtype=dtype, rngs=rngs)
        has = config.heads
        self.camera_head = CameraHead(config, rngs=rngs) if "camera" in has else None
        self.depth_head = DenseHead(config, 2, config.features, rngs=rngs) if "depth" in has else None
        self.point_head = DenseHead(config, 4, config.features, rngs=rngs) if "point" in has else None
        self.track_head = TrackHead(config, rngs=rngs) if "track" in has else None

    def with_precision(self, precision: Precision | str) -> VGGT:
        """This network with another policy, as `DUSt3R.with_precision`.

        Raises:
          ConfigError: an unknown name (see `policy`), or float64, in which only DUSt3R computes.
        """
        precision = policy(precision)
        if precision.layers == "float64":
            raise ConfigError("VGGT computes in float32 or bfloat16, not in float64.")
        graphdef, stored = abstract_parts(self.config, precision)
        state = jax.tree.map(lambda x, y: x if x.dtype == y.dtype else x.astype(y.dtype), nnx.state(self), stored)
        return nnx.merge(graphdef, state, copy=True)

    def grid(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """(h, w) tokens of images of (H, W) pixels; both must be multiples of the patch size."""
        p = self.config.patch_size
        if image_size[0] % p or image_size[1] % p:
            raise InputError(
                f"Images of {image_size[1]}x{image_size[0]} do not divide into VGGT's {p}x{p} patches: resize them to "
                f"multiples of {p}."
            )
        return image_size[0] // p, image_size[1] // p

    def encode(self, rgb: UInt8[Array, "T H W 3"]) -> Float[Array, "T N C"]:
        """Encodes frames (T, H, W, 3) uint8 to features (T, N, C), in chunks of frames."""
        self.grid((rgb.shape[1], rgb.shape[2]))
        with multiplying(self.precision.products):
            return by_chunks(lambda x: self.encoder(standardize_rgb(x))[0], rgb, FRAMES_AT_ONCE)

    def aggregate(
        self,
        features: Float[Array, "T N C"],
        grid: tuple[int, int],
        dynamic_tokens: Bool[Array, "T N"] | None = None,
        *,
        bands: Sequence[Band] = (),
        intermediates: bool = False,
    ) -> Aggregated:
        """Aggregates encoded frames; see `Aggregator`."""
        with multiplying(self.precision.products):
            return self.aggregator(features, grid, dynamic_tokens, bands=bands, intermediates=intermediates)

    def cameras(self, aggregated: Aggregated) -> Float[Array, "T 9"]:
        """Encoded cameras (T, 9); see `geometry.cameras_of`."""
        head = self._needed("camera", self.camera_head)
        with multiplying(self.precision.heads):
            return head(aggregated.cameras)[0][-1]

    def depth(
        self, aggregated: Aggregated, grid: tuple[int, int]
    ) -> tuple[Float[Array, "T H W"], Float[Array, "T H W"]]:
        """Depth and its confidence, (T, H, W) each, in the scale of the cameras."""
        head = self._needed("depth", self.depth_head)
        return self._dense(aggregated, lambda levels: depth_and_confidence(head(levels, grid)[0]))

    def points(
        self, aggregated: Aggregated, grid: tuple[int, int]
    ) -> tuple[Float[Array, "T H W 3"], Float[Array, "T H W"]]:
        """Points in the world (T, H, W, 3), and their confidence (T, H, W)."""
        head = self._needed("point", self.point_head)
        return self._dense(aggregated, lambda levels: points_and_confidence(head(levels, grid)[0]))

    def track(
        self, aggregated: Aggregated, grid: tuple[int, int], points: Float[Array, "N 2"]
    ) -> tuple[Float[Array, "T N 2"], Float[Array, "T N"], Float[Array, "T N"]]:
        """Follows points (N, 2) of the first frame, pixels (x, y).

        Returns:
          their positions in all frames (T, N, 2), the probability of being visible (T, N), and the confidence (T, N).
        """
        head = self._needed("track", self.track_head)
        rows = jnp.swapaxes(aggregated.levels, 0, 1)
        with multiplying(self.precision.heads):
            maps = by_chunks(lambda x: head.extractor(jnp.swapaxes(x, 0, 1), grid)[0], rows, FRAMES_AT_ONCE)
            tracks, visible, confidence, _ = head(maps, points)
        return tracks[-1], visible, confidence

    def _dense(self, aggregated: Aggregated, head: Callable[[Array], tuple[Array, Array]]) -> tuple[Array, Array]:
        rows = jnp.swapaxes(aggregated.levels, 0, 1)  # (T, 4, N, 2 C)
        with multiplying(self.precision.heads):
            return by_chunks(lambda x: head(jnp.swapaxes(x, 0, 1)), rows, FRAMES_AT_ONCE)

    @staticmethod
    def _needed(name: str, head: Any) -> Any:
        if head is None:
            raise ConfigError(f"This VGGT network has no {name} head: its checkpoint came without one.")
        return head


@functools.lru_cache(maxsize=4)
def abstract_parts(config: VGGTConfig, precision: Precision) -> tuple[nnx.GraphDef[VGGT], nnx.State]:
    """`nnx.split` of the model with shapes in place of arrays. Shared by all callers: merge with `copy=True`."""
    return nnx.split(nnx.eval_shape(lambda: VGGT(config, rngs=nnx.Rngs(0), precision=precision)))


def abstract_vggt(config: VGGTConfig, *, precision: Precision = Precision()) -> VGGT:
    """The model with shapes in place of arrays. Allocates nothing."""
    return nnx.merge(*abstract_parts(config, precision), copy=True)
