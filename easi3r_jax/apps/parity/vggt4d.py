"""VGGT4D's cue and its refinement of masks by reprojection, with the clusters of the released program's k-means."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from easi3r_jax import motion
from easi3r_jax.apps.parity.report import NETWORK, ROUNDING, Golden, Row, compare, equal
from easi3r_jax.apps.parity.vggt_motion import STATISTICS, check_clip
from easi3r_jax.core.geometry import se3
from easi3r_jax.inference.refine.reprojection import ReprojectionRefiner, frame_points, smoothed, without_outliers
from easi3r_jax.inference.refine.residuals import Views, cluster_losses, sample_views
from easi3r_jax.models.statistics import product_moments
from easi3r_jax.motion.normalise import min_max

#: Files of the format.
PATTERNS = ("cue_*.npz", "refine_*.npz")
#: Arrays of complete files of the cue that others imply, or that are further readings of the formulas.
_NOT_HERE = ".*_all_layers.*|frame_q_.*|gram_.*|paperform_b_.*|kmeans_.*"
#: Those that need the network, whose description a folder may lack.
_OF_NETWORK = "|frames_u8|true_mask|enc_feat|pass[12]_.*|masked_by_.*"
_PATCH = 14
_product_moments = jax.jit(product_moments)
# The scene has about unit size, and points are half a pixel off: as released.
_RELEASED = ReprojectionRefiner(unit=1.0, pixel_offset=0.5)
# The released program's loss of a cluster that is hardly seen; ours is infinite.
_UNSEEN = 1e10
# Losses are sums of float32 in another order.
_LOSSES = 1e-5


def is_folder(folder: pathlib.Path) -> bool:
    """Whether a folder has arrays of this kind."""
    return any(path for pattern in PATTERNS for path in folder.glob(pattern))


def check_folder(folder: pathlib.Path) -> Iterator[Row]:
    """Every array of the folder."""
    for pattern, check in zip(PATTERNS, (_check_cue, _check_refinement), strict=True):
        for path in sorted(folder.glob(pattern)):
            yield from check(f"{folder.name}/{path.stem}", path, Golden(path))


def _check_cue(stage: str, path: pathlib.Path, golden: Golden) -> Iterator[Row]:
    """From queries and keys of a clip to statistics, factors, score, clusters' scores, thresholds and masks."""
    layers, queries, keys = (golden[n] for n in ("used_layers", "global_q_used_layers", "global_k_used_layers"))
    kinds = {"q": queries, "k": keys}  # of the keys, a file may hold only the first layer: the cue reads no other
    shape = golden["dyn"].shape

    def of_factor(factor: motion.GramFactor) -> np.ndarray:
        band = np.flatnonzero((factor.layers[0] <= layers) & (layers <= factor.layers[1]))
        product, moment = factor.statistic.split("_")
        own, other = (_by_frame(kinds[kind][:, band]) for kind in product)
        return _window_statistics(own, other)[moment].reshape(shape)

    paper = jnp.asarray(np.stack([of_factor(factor) for factor in motion.PAPER_FACTORS]))
    found = min_max(motion.gram_score(paper, factors=motion.PAPER_FACTORS), axis=(-2, -1))
    yield compare(stage, "paperform_a_dyn", found, golden["paperform_a_dyn"], NETWORK)
    for n, name in ((1, "paperform_a_V_QK_shallow"), (3, "paperform_a_V_QQ_deep")):
        if name in golden:  # complete files only
            yield compare(stage, name, min_max(jnp.square(paper[n]), axis=(-2, -1)), golden[name], NETWORK)

    statistics = []
    for name, factor in zip(STATISTICS, motion.GRAM_FACTORS, strict=True):
        values = of_factor(factor)
        yield compare(stage, f"raw_{name}", values, golden[f"raw_{name}"], NETWORK)
        yield compare(
            stage, f"factor_{name}", min_max(jnp.asarray(values), axis=(-2, -1)), golden[f"factor_{name}"], NETWORK
        )
        statistics.append(values)
    product = motion.gram_score(jnp.asarray(np.stack(statistics)))
    yield compare(stage, "product_before_minmax", product, golden["product_before_minmax"], NETWORK)
    dyn = min_max(product, axis=(-2, -1))
    yield compare(stage, "dyn", dyn, golden["dyn"], NETWORK)

    labels, size = jnp.asarray(golden["cluster_labels"]), golden["dyn_masks"].shape[1:]
    count = len(golden["cluster_means"])
    per_token = motion.cluster_mean(dyn, labels, count, None)
    yield compare(stage, "cluster_means", per_token, golden["cluster_means"][np.asarray(labels)], NETWORK)
    score = motion.cluster_score(dyn, labels, count, None)
    yield compare(stage, "cluster_map_norm", score, golden["cluster_map_norm"], NETWORK)
    yield compare(stage, "upsampled", motion.upsample(score, size), golden["upsampled"], NETWORK)
    classes = (2, 3, 4)
    otsu = motion.multi_otsu(jnp.asarray(golden["upsampled"]), classes)  # the histogram is a step function of it
    for n, c in enumerate(classes):
        yield compare(stage, f"otsu_{c}_thresholds", otsu.thresholds[n], golden[f"otsu_{c}_thresholds_f64"], ROUNDING)
        yield compare(stage, f"otsu_{c}_score", otsu.scores[n], golden[f"otsu_{c}_score_f64"], 10 * ROUNDING)
    yield compare(stage, "threshold", otsu.threshold, golden["threshold_f64"], ROUNDING)
    masks = golden["upsampled"] > np.asarray(otsu.threshold)
    yield equal(stage, "dyn_masks", masks, golden["dyn_masks"])
    tokens = motion.token_masks(jnp.asarray(masks), _PATCH)
    yield equal(stage, "token_masks", np.asarray(tokens).reshape(labels.shape), golden["token_masks"])
    has_network = "frames_u8" in golden and (path.parent / "config.json").is_file()
    if has_network:
        yield from check_clip(stage, path, golden)
    yield from golden.unread(stage, _NOT_HERE + ("" if has_network else _OF_NETWORK))


def _by_frame(x: np.ndarray) -> np.ndarray:
    """(T, L, A, N, D) to (T, N, 1, L A D): layers and heads side by side, as a product sums over them."""
    num_frames, depth, heads, tokens, _ = x.shape
    return np.moveaxis(x, 3, 1).reshape(num_frames, tokens, 1, -1) / np.float32(depth * heads) ** 0.5


def _window_statistics(own: np.ndarray, other: np.ndarray) -> dict[str, np.ndarray]:
    """Mean and deviation of each frame's products with the mean of its window: 2, 4 and 6 frames before and after."""
    offsets, frames = np.array([-6, -4, -2, 2, 4, 6]), np.arange(len(own))
    sources = [[s for s in t + offsets if 0 <= s < len(own)] for t in frames]
    window = np.stack([np.mean(other[s], axis=0) for s in sources])
    mean, std = _product_moments(own, window)
    count = own.shape[1]  # the released program divides by one less
    return {"mean": np.asarray(mean), "std": np.asarray(std) * (count / (count - 1)) ** 0.5}


def _check_refinement(stage: str, path: pathlib.Path, golden: Golden) -> Iterator[Row]:
    """Points, outliers, losses of the golden clusters, and masks before and after smoothing."""
    del path
    labels, poses, depth = golden["labels"], golden["cam2world"].astype(np.float64), golden["depths"]
    num_frames = len(labels)
    views = jax.tree.map(jnp.asarray, Views(depth, golden["coarse_masks"], golden["images"], golden["intrinsics"]))
    points = np.stack([frame_points(*x, _RELEASED.pixel_offset) for x in zip(depth, golden["intrinsics"], strict=True)])
    world = se3.transform_points(jnp.asarray(poses, jnp.float32), jnp.asarray(points, jnp.float32))
    yield compare(stage, "points_world_every2", world[:, ::2, ::2], golden["points_world_every2"], ROUNDING)

    kept, thresholds = zip(*(without_outliers(x.reshape(-1, 3)) for x in points), strict=True)
    yield compare(stage, "outlier_threshold", thresholds, golden["outlier_threshold_f64"], ROUNDING)
    yield equal(stage, "outliers", ~np.reshape(kept, labels.shape), labels == -2)

    moving, losses = np.zeros(labels.shape, bool), []
    for t in range(num_frames):
        own = labels[t] >= 0
        samples = sample_views(
            points[t][own].astype(np.float32),
            golden["images"][t][own],
            views,
            (np.linalg.inv(poses) @ poses[t]).astype(np.float32),
            np.arange(num_frames) != t,
            jnp.float32(_RELEASED.visible_margin),
        )
        losses.append(cluster_losses(labels[t][own], samples, num_frames - 1))
        moving[t][own] = (losses[-1].total > _RELEASED.threshold)[labels[t][own]]
    expected = golden["cluster_losses_f64"]
    seen = expected[..., 3] < _UNSEEN
    yield equal(stage, "clusters that are hardly seen", np.isinf([x.total for x in losses]), ~seen)
    for column, name in enumerate(("depth", "colour", "total"), start=1):
        ours = np.stack([getattr(x, name) for x in losses])
        yield compare(stage, f"cluster_losses {name}", ours[seen], expected[..., column][seen], _LOSSES)
    yield equal(stage, "mask_before_morphology", moving, golden["mask_before_morphology"])
    yield equal(stage, "refined_masks", np.stack([smoothed(mask) for mask in moving]), golden["refined_masks"])
    yield from golden.unread(stage, "true_depth|true_dynamic")
