"""DUSt3R (arXiv 2312.14132) and MASt3R (2406.09756): from two views to two point maps in the first view's camera.

`encode` and `decode` are separate: a frame is encoded once, however many pairs it is in. `predict` runs the heads, only
where point maps are needed:

    features = model.encode(rgb)                                        # (T, N, C)
    decoded = model.decode(features[i], features[j], grid)              # statistics and tokens of E pairs
    points_i, confidence_i, points_j, confidence_j = model.predict(features[i], features[j], decoded, grid)
    descriptors_i, weights_i, descriptors_j, weights_j = model.describe(features[i], features[j], decoded, grid)

MASt3R is DUSt3R with a second head for descriptors, which `describe` runs.

Modules are pytrees: `jax.jit(lambda model, rgb: model.encode(rgb))(model, rgb)`.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from easi3r_jax.core.arrays import Array, Bool, Float, Real, UInt8
from easi3r_jax.core.config import ReadoutConfig
from easi3r_jax.core.errors import ConfigError, InputError
from easi3r_jax.models.config import DUSt3RConfig
from easi3r_jax.models.decoder import Decoded, Decoder
from easi3r_jax.models.encoder import Encoder
from easi3r_jax.models.heads import LocalFeatures, descriptors_and_confidence, make_head, points_and_confidence
from easi3r_jax.models.precision import Precision, multiplying, policy


def normalize_rgb(rgb: Real[Array, "*shape"]) -> Float[Array, "*shape"]:
    """uint8 RGB to the network's range [-1, 1]: (rgb / 255 - 0.5) / 0.5, float32."""
    return (rgb.astype(jnp.float32) / np.float32(255.0) - np.float32(0.5)) / np.float32(0.5)


class DUSt3R(nnx.Module):
    """The whole network.

    Attributes:
      config: the architecture.
      readout: calibrated motion cue that the checkpoint carries, or None; `with_readout` changes it.
      precision: which part computes in which number type; `with_precision` changes it.
    """

    def __init__(
        self,
        config: DUSt3RConfig,
        *,
        rngs: nnx.Rngs,
        precision: Precision = Precision(),
        readout: ReadoutConfig | None = None,
    ):
        self.config = config
        self.readout = readout
        self.precision = precision
        dtype = jnp.dtype(precision.layers)
        self.encoder = Encoder(config, dtype=dtype, rngs=rngs)
        self.decoder = Decoder(config, dtype=dtype, rngs=rngs)
        self.head1 = make_head(config, rngs=rngs)
        self.head2 = make_head(config, rngs=rngs)
        if config.descriptor_dim:
            self.local1 = LocalFeatures(config, rngs=rngs)
            self.local2 = LocalFeatures(config, rngs=rngs)

    def with_precision(self, precision: Precision | str) -> DUSt3R:
        """This network with another policy. The original is unchanged.

        Weights that the policy stores in another number type are converted; all others are shared. From bfloat16 the
        digits do not come back: load the weights again.

        Raises:
          ConfigError: an unknown name (see `policy`), or float64 without JAX's x64 mode.
        """
        precision = policy(precision)
        if precision.layers == "float64" and jax.dtypes.canonicalize_dtype("float64") != jnp.float64:
            raise ConfigError("Layers in float64 need JAX's x64 mode: jax.config.update('jax_enable_x64', True).")
        graphdef, stored = abstract_parts(self.config, precision, self.readout)
        return nnx.merge(graphdef, jax.tree.map(_as_stored, nnx.state(self), stored), copy=True)

    def with_readout(self, readout: ReadoutConfig | None) -> DUSt3R:
        """This network with another calibrated motion cue, or without one. Its arrays are shared.

        Raises:
          ConfigError: a read-out of a network with other layers or heads.
        """
        config = self.config
        if readout is not None and (readout.num_layers, readout.num_heads) != (config.dec_depth, config.dec_heads):
            raise ConfigError(
                f"The read-out is for a decoder of {readout.num_layers} layers and {readout.num_heads} heads; this "
                f"network has {config.dec_depth} and {config.dec_heads}. Calibrate one with experiments.calibrate."
            )
        graphdef, _ = abstract_parts(config, self.precision, readout)
        return nnx.merge(graphdef, nnx.state(self), copy=True)

    def grid(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """(h, w) tokens of images of (H, W) pixels; both must be multiples of the patch size."""
        p = self.config.patch_size
        if image_size[0] % p or image_size[1] % p:
            raise InputError(f"Images of {image_size[1]}x{image_size[0]} do not divide into {p}x{p} patches.")
        return image_size[0] // p, image_size[1] // p

    def encode(self, rgb: UInt8[Array, "T H W 3"]) -> Float[Array, "T N C"]:
        """Encodes frames (T, H, W, 3) uint8 to features (T, N, C)."""
        self.grid((rgb.shape[1], rgb.shape[2]))
        with multiplying(self.precision.products):
            return self.encoder(normalize_rgb(rgb))[0]

    def decode(
        self,
        features_i: Float[Array, "E N C_enc"],
        features_j: Float[Array, "E N C_enc"],
        grid: tuple[int, int],
        dynamic_tokens: tuple[Bool[Array, "E N"], Bool[Array, "E N"]] | None = None,
        *,
        gram: bool = False,
        intermediates: bool = False,
    ) -> Decoded:
        """Decodes E directed pairs of encoded frames; see `Decoder`.

        Args:
          features_i, features_j: (E, N, C).
          grid: (h, w) tokens.
          dynamic_tokens: (of i, of j) dynamic-token masks, (E, N) bool, for masked re-attention.
          gram: also return Gram statistics.
          intermediates: also return every layer's output and its full pre-softmax maps.
        """
        with multiplying(self.precision.products):
            return self.decoder(features_i, features_j, grid, dynamic_tokens, gram=gram, intermediates=intermediates)

    def predict(
        self,
        features_i: Float[Array, "E N C_enc"],
        features_j: Float[Array, "E N C_enc"],
        decoded: Decoded,
        grid: tuple[int, int],
    ) -> tuple[Float[Array, "E H W 3"], Float[Array, "E H W"], Float[Array, "E H W 3"], Float[Array, "E H W"]]:
        """Runs both heads.

        Returns:
          points_i (E, H, W, 3), confidence_i (E, H, W), points_j, confidence_j: points of both views in camera
          i's frame.
        """
        with multiplying(self.precision.heads):
            raw_i, _ = self.head1(features_i, decoded.tokens_i, grid)
            raw_j, _ = self.head2(features_j, decoded.tokens_j, grid)
        bounds = self.config.confidence_range
        return (*points_and_confidence(raw_i, bounds), *points_and_confidence(raw_j, bounds))

    def describe(
        self,
        features_i: Float[Array, "E N C_enc"],
        features_j: Float[Array, "E N C_enc"],
        decoded: Decoded,
        grid: tuple[int, int],
    ) -> tuple[Float[Array, "E H W D"], Float[Array, "E H W"], Float[Array, "E H W D"], Float[Array, "E H W"]]:
        """Runs MASt3R's heads for descriptors of pixels, which match across the two views.

        Returns:
          descriptors_i (E, H, W, D) of length 1, confidence_i (E, H, W) > 0, descriptors_j, confidence_j.

        Raises:
          ConfigError: a network without descriptors.
        """
        if not self.config.descriptor_dim:
            raise ConfigError(f"A network with the head {self.config.head!r} has no descriptors; MASt3R's has.")
        with multiplying(self.precision.heads):
            raw_i = self.local1(features_i, decoded.tokens_i[-1], grid)
            raw_j = self.local2(features_j, decoded.tokens_j[-1], grid)
        bounds = self.config.descriptor_confidence_range
        return (*descriptors_and_confidence(raw_i, bounds), *descriptors_and_confidence(raw_j, bounds))


def _as_stored(leaf: Array, stored: jax.ShapeDtypeStruct) -> Array:
    return leaf if leaf.dtype == stored.dtype else leaf.astype(stored.dtype)


def abstract_model(config: DUSt3RConfig, *, precision: Precision = Precision()) -> DUSt3R:
    """The model with shapes in place of arrays. Allocates nothing."""
    return nnx.merge(*abstract_parts(config, precision, None), copy=True)


@functools.lru_cache(maxsize=16)  # tracing the initialisers of the released networks takes a second
def abstract_parts(
    config: DUSt3RConfig, precision: Precision, readout: ReadoutConfig | None
) -> tuple[nnx.GraphDef[DUSt3R], nnx.State]:
    """`nnx.split` of the abstract model. The parts are shared by all callers: merge them with `copy=True`."""
    graphdef, stored = nnx.split(
        nnx.eval_shape(lambda: DUSt3R(config, rngs=nnx.Rngs(0), precision=precision, readout=readout))
    )
    if precision.layers == "float64":  # also what is float32 otherwise
        stored = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float64), stored)
    return graphdef, stored


def random_model(config: DUSt3RConfig, *, seed: int = 0, precision: Precision | str = Precision()) -> DUSt3R:
    """The model with randomly initialised weights: the same for a given seed in every policy, up to rounding."""
    return DUSt3R(config, rngs=nnx.Rngs(seed)).with_precision(precision)
