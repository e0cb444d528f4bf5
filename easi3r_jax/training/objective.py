"""The training loss (DUSt3R, sec. 3.2), and optional terms that DUSt3R does not have.

Letters: E directed pairs (i, j), H W pixels, N tokens. Everything is float32.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from easi3r_jax.core.arrays import Array, Bool, Float, UInt8
from easi3r_jax.core.geometry import camera, se3
from easi3r_jax.core.types import PairPredictions
from easi3r_jax.models import Decoded, DUSt3R
from easi3r_jax.models.attention import attention_logits
from easi3r_jax.training.batch import Targets, ViewPairs, both_ways, edges_both_ways, targets_of
from easi3r_jax.training.config import ObjectiveConfig

#: Lower bound of a scene's scale, against division by zero.
_MIN_SCALE = 1e-8
_TEMPERATURE = 0.1
#: Largest relative difference of depths at which a projected point counts as the same surface.
_DEPTH_TOLERANCE = 0.03


def distance(a: Float[Array, "*batch 3"], b: Float[Array, "*batch 3"]) -> Float[Array, "*batch"]:
    """(...) Euclidean distance of points (..., 3), with gradient 0 where they coincide."""
    return se3.safe_norm(a - b)


def masked_mean(
    values: Float[Array, "*shape"], mask: Bool[Array, "*shape"], axis: int | tuple[int, ...] | None = None
) -> Float[Array, "..."]:
    """Mean of the values where the mask is True; 0 if it is True nowhere."""
    count = jnp.maximum(jnp.sum(mask.astype(values.dtype), axis=axis), 1)
    return jnp.sum(jnp.where(mask, values, 0), axis=axis) / count


def mean_distance(
    points_i: Float[Array, "E H W 3"],
    points_j: Float[Array, "E H W 3"],
    valid_i: Bool[Array, "E H W"],
    valid_j: Bool[Array, "E H W"],
) -> Float[Array, "E"]:
    """(E,) mean distance of the valid points of both views from camera i (`avg_dis`; z in DUSt3R, eq. 2)."""
    lengths = jnp.concatenate([se3.safe_norm(points_i), se3.safe_norm(points_j)], axis=1)
    mean = masked_mean(lengths, jnp.concatenate([valid_i, valid_j], axis=1), axis=(1, 2))
    return jnp.maximum(mean, _MIN_SCALE)


def point_errors(
    predicted: PairPredictions, targets: Targets
) -> tuple[Float[Array, "E H W"], Float[Array, "E H W"], Float[Array, "E"]]:
    """Distances of normalised points (E, H, W) for each view, and the predicted scale (E,).

    Predictions and targets are divided by their mean distance, since the scale of a pair is arbitrary.
    """
    scale = mean_distance(predicted.points_i, predicted.points_j, targets.valid_i, targets.valid_j)
    true = mean_distance(targets.points_i, targets.points_j, targets.valid_i, targets.valid_j)
    s, t = scale[:, None, None, None], true[:, None, None, None]
    return (
        distance(predicted.points_i / s, targets.points_i / t),
        distance(predicted.points_j / s, targets.points_j / t),
        scale,
    )


def scale_shift_invariant_errors(
    predicted: PairPredictions, targets: Targets
) -> tuple[Float[Array, "E H W"], Float[Array, "E H W"]]:
    """(E, H, W) distances for each view after removing the scene's depth shift and scale, for validation.

    DUSt3R's test criterion: the median z of all valid points is shifted to 0, then their mean distance is scaled to 1.
    Distances are in units of the true mean distance.
    """

    def shifted(i: Array, j: Array) -> tuple[Array, Array]:
        z = jnp.concatenate([i[..., 2].reshape(len(i), -1), j[..., 2].reshape(len(j), -1)], axis=1)
        known = jnp.concatenate([targets.valid_i.reshape(z.shape[0], -1), targets.valid_j.reshape(z.shape[0], -1)], 1)
        median = jnp.nan_to_num(jnp.nanmedian(jnp.where(known, z, jnp.nan), axis=1))
        shift = median[:, None, None, None] * jnp.asarray([0, 0, 1], i.dtype).reshape(1, 1, 1, 3)
        return i - shift, j - shift

    own, true = shifted(predicted.points_i, predicted.points_j), shifted(targets.points_i, targets.points_j)
    scale = mean_distance(*own, targets.valid_i, targets.valid_j)[:, None, None, None]
    unit = mean_distance(*true, targets.valid_i, targets.valid_j)[:, None, None, None]
    return distance(own[0] / scale, true[0] / unit), distance(own[1] / scale, true[1] / unit)


def regression(
    predicted: PairPredictions, targets: Targets, alpha: float
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Confidence-weighted regression (DUSt3R, eq. 3-4): mean of C * error - alpha * log C, summed over both views."""
    error_i, error_j, scale = point_errors(predicted, targets)
    loss = jnp.zeros(())
    for error, confidence, valid in (
        (error_i, predicted.confidence_i, targets.valid_i),
        (error_j, predicted.confidence_j, targets.valid_j),
    ):
        loss = loss + masked_mean(confidence * error - alpha * jnp.log(confidence), valid)
    terms = {
        "error_1": masked_mean(error_i, targets.valid_i),
        "error_2": masked_mean(error_j, targets.valid_j),
        "confidence": masked_mean(predicted.confidence_j, targets.valid_j),
        "scale": jnp.exp(jnp.mean(jnp.log(scale))),
    }
    return loss, terms


# --- optional terms: they need no labels beyond depth and cameras, and are valid for static scenes only -------------


def matches(pairs: ViewPairs, patch_size: int) -> tuple[Float[Array, "2*B N N"], Bool[Array, "2*B N"]]:
    """Matches from the tokens of view i to the tokens of view j.

    A token is represented by the centre pixel of its patch. It has a match if that pixel's point is inside view j and
    visible there: its depth is within 3 % of the depth of view j at its projection.

    Returns:
      weights: (E, N, N) float32, bilinear weights of the four tokens of j around the match of a token of i. Rows with a
        match sum to 1.
      known: (E, N) bool, which tokens of i have a match.
    """
    batch, _, height, width = pairs.depth.shape
    centres = slice(patch_size // 2, None, patch_size)
    depth_i, depth_j = both_ways(pairs.depth[:, 0], pairs.depth[:, 1])
    pose_i, pose_j = both_ways(pairs.world_from_cam[:, 0], pairs.world_from_cam[:, 1])
    intrinsics_i, intrinsics_j = both_ways(pairs.intrinsics[:, 0], pairs.intrinsics[:, 1])
    points = camera.unproject(depth_i, intrinsics_i)[:, centres, centres].reshape(2 * batch, -1, 3)
    points_in_j = se3.transform_points(se3.compose(se3.inverse(pose_j), pose_i), points)
    pixels, z = camera.project(points_in_j, intrinsics_j)
    nearest = jnp.round(pixels).astype(jnp.int32)
    column, row = (jnp.clip(nearest[..., k], 0, side - 1) for k, side in ((0, width), (1, height)))
    depth_there = jnp.take_along_axis(depth_j.reshape(2 * batch, -1), row * width + column, axis=1)
    inside = (nearest[..., 0] == column) & (nearest[..., 1] == row)
    known = inside & (z > 0) & (points[..., 2] > 0) & (jnp.abs(z - depth_there) < _DEPTH_TOLERANCE * z)

    def hat(position: Array, count: int) -> Array:
        token = (position - patch_size // 2) / patch_size
        token = jnp.clip(token, 0, count - 1)[..., None]
        return jnp.maximum(1 - jnp.abs(token - jnp.arange(count, dtype=token.dtype).reshape(1, 1, count)), 0)

    rows, columns = hat(pixels[..., 1], height // patch_size), hat(pixels[..., 0], width // patch_size)
    weights = (rows[..., :, None] * columns[..., None, :]).reshape(*rows.shape[:2], -1)
    return weights, known


def cross_entropy(
    logits: Float[Array, "*batch N N"], weights: Float[Array, "*batch N N"], known: Bool[Array, "*batch N"]
) -> Float[Array, ""]:
    """() mean over the known rows of -sum_k weights_k log softmax(logits)_k; logits and weights (..., N, N)."""
    return masked_mean(-jnp.sum(weights * jax.nn.log_softmax(logits), axis=-1), known)


def matching(
    features_i: Float[Array, "E N C"],
    features_j: Float[Array, "E N C"],
    weights: Float[Array, "E N N"],
    known: Bool[Array, "E N"],
) -> Float[Array, ""]:
    """() InfoNCE (arXiv 1807.03748) of the encoder's tokens (E, N, C): a token's match against all tokens of view j."""
    i, j = (f / jnp.maximum(se3.safe_norm(f)[..., None], 1e-6) for f in (features_i, features_j))
    logits = jnp.einsum("enc,emc->enm", i, j, precision=jax.lax.Precision.HIGHEST) / _TEMPERATURE
    return cross_entropy(logits, weights, known)


def attention_supervision(
    decoded: Decoded, layer: int, weights: Float[Array, "E N N"], known: Bool[Array, "E N"]
) -> Float[Array, ""]:
    """() cross-entropy between matches and the cross-attention of the first half of a layer's heads, in both branches.

    Branch 2 attends from view j to view i. Its matches are those of the reverse pair, which is also in the batch.
    """
    total = jnp.zeros(())
    order = jnp.roll(jnp.arange(len(known)), len(known) // 2)  # index of the reverse pair
    for branch, w, k in (("branch1", weights, known), ("branch2", weights[order], known[order])):
        # Only the maps of this layer and these heads are computed, not those of all layers in the record.
        record = decoded.intermediates[branch]["cross"]
        heads = record["rotated_queries"].shape[3] // 2
        queries, keys = (record[name][layer, :, :, :heads] for name in ("rotated_queries", "rotated_keys"))
        shape = (w.shape[0], heads, *w.shape[1:])
        w, k = jnp.broadcast_to(w[:, None], shape), jnp.broadcast_to(k[:, None], shape[:3])
        total = total + 0.5 * cross_entropy(attention_logits(queries, keys), w, k)
    return total


def predict(
    model: DUSt3R, rgb: UInt8[Array, "B 2 H W 3"], *, intermediates: bool = False
) -> tuple[PairPredictions, tuple[Float[Array, "E N C_enc"], Float[Array, "E N C_enc"]], Decoded]:
    """Predicts both directions of B pairs of images (B, 2, H, W, 3) uint8. Every image is encoded once.

    Returns:
      The predictions for 2 B directed pairs (see `both_ways`), the encoder's tokens of i and j, the decoder's output.
    """
    grid = model.grid((rgb.shape[2], rgb.shape[3]))
    features = model.encode(rgb.reshape(-1, *rgb.shape[2:])).reshape(*rgb.shape[:2], grid[0] * grid[1], -1)
    features_i, features_j = both_ways(features[:, 0], features[:, 1])
    decoded = model.decode(features_i, features_j, grid, intermediates=intermediates)
    points_i, confidence_i, points_j, confidence_j = model.predict(features_i, features_j, decoded, grid)
    predicted = PairPredictions(edges_both_ways(len(rgb)), points_i, points_j, confidence_i, confidence_j)
    return predicted, (features_i, features_j), decoded


def objective(
    model: DUSt3R, pairs: ViewPairs, config: ObjectiveConfig
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The loss () of a batch, and a dict of its terms."""
    auxiliary = config.matching_weight > 0 or config.attention_weight > 0
    predicted, features, decoded = predict(model, pairs.rgb, intermediates=config.attention_weight > 0)
    targets = targets_of(pairs)
    loss, terms = regression(predicted, targets, config.alpha)
    terms["regression"] = loss
    if config.scale_weight > 0:
        scale = mean_distance(predicted.points_i, predicted.points_j, targets.valid_i, targets.valid_j)
        terms["scale_anchor"] = jnp.mean(jnp.square(jnp.log(scale)))
        loss = loss + config.scale_weight * terms["scale_anchor"]
    if auxiliary:
        weights, known = matches(pairs, model.config.patch_size)
        if config.matching_weight > 0:
            terms["matching"] = matching(*features, weights, known)
            loss = loss + config.matching_weight * terms["matching"]
        if config.attention_weight > 0:
            terms["attention"] = attention_supervision(decoded, config.attention_layer, weights, known)
            loss = loss + config.attention_weight * terms["attention"]
    return loss, {"loss": loss, **terms}
