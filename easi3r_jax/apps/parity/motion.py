"""Aggregation, score, clusters, threshold, masks and the second pass, on a whole clip."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from easi3r_jax import motion
from easi3r_jax.apps.parity.report import (
    AGGREGATED,
    MASK_PIXELS,
    NETWORK,
    ROUNDING,
    Golden,
    Row,
    at_most,
    compare,
    differing,
)
from easi3r_jax.apps.parity.weights import golden_config, golden_model
from easi3r_jax.core.config import SegmentationConfig
from easi3r_jax.core.types import Frames, TemporalMaps
from easi3r_jax.inference import pipeline
from easi3r_jax.models import DUSt3R
from easi3r_jax.motion.normalise import min_max

#: In golden names, i is the frame as source view, j the frame as reference view, and var a standard deviation.
_MAPS = {"i_mean": "mean_src", "i_var": "std_src", "j_mean": "mean_ref", "j_var": "std_ref"}
_RAW = {"i_mean": "mean_src", "i_std": "std_src", "j_mean": "mean_ref", "j_std": "std_ref"}


def check_folder(folder: pathlib.Path) -> Iterator[Row]:
    """Runs both passes of every graph in the folder and compares all arrays."""
    settings = json.loads((folder / "config.json").read_text())
    with np.load(folder / "input_frames.npz") as file:
        rgb = file["frames_u8"]
    config = golden_config(folder, settings.get("head", "dpt"), rgb.shape[1:3])
    model = golden_model(config, settings["weight_seed"], settings["gains"])
    clip = Frames(
        rgb=jnp.asarray(rgb),
        source_index=np.arange(len(rgb)),
        time=np.arange(len(rgb)) / 24,
        frame_from_source=np.eye(3),
        source_size=np.array(rgb.shape[1:3]),
    )
    features = pipeline.encode(model, clip)

    if (folder / "pair_attention_pass1.npz").is_file():
        yield from _check_pairs(folder, model, features, rgb.shape[1:3])
    if (folder / "otsu_synthetic.npz").is_file():
        yield from _check_otsu(folder)
    segmentation = SegmentationConfig(num_clusters=settings.get("kmeans", {}).get("n_clusters", 64))
    for graph in settings["graphs"]:
        stem = graph.replace("-", "_")
        if (folder / f"{stem}_pass1.npz").is_file():
            edges = np.array(settings[graph]["pairs"], np.int32)
            yield from _check_graph(folder, stem, model, features, edges, rgb.shape[1:3], segmentation)


def _check_pairs(folder, model: DUSt3R, features: jax.Array, size: tuple[int, int]) -> Iterator[Row]:
    golden = Golden(folder / "pair_attention_pass1.npz")
    grid = model.grid(size)
    edges = golden["pairs"]
    stats = jax.jit(lambda m, a, b: m.decode(a, b, grid).stats)(model, features[edges[:, 0]], features[edges[:, 1]])
    stage = f"{folder.name}/pair_attention"
    yield compare(
        stage, "match_feature", features.reshape(golden["match_feature"].shape), golden["match_feature"], NETWORK
    )
    for name, array in (("attn_b1", stats.src), ("attn_b2", stats.ref)):
        ours = np.moveaxis(np.asarray(array).reshape(len(edges), -1, *grid), 1, -1)
        yield compare(stage, name, ours, golden[name], NETWORK)
    yield from golden.unread(stage, "")


def _check_graph(folder, stem, model, features, edges, size, segmentation) -> Iterator[Row]:
    grid = model.grid(size)
    first = Golden(folder / f"{stem}_pass1.npz")
    temporal = pipeline.attention_pass(model, features, edges, grid)
    yield from _check_pass(f"{folder.name}/{stem} pass 1", temporal, features, first, grid, segmentation)
    if not (folder / f"{stem}_pass2.npz").is_file():
        return

    # The second pass starts from the golden masks, so that a pixel on the threshold counts only once, above.
    dynamic = motion.token_masks(jnp.asarray(first["masks"]), model.config.patch_size)
    predictions, temporal = pipeline.prediction_pass(model, features, edges, grid, dynamic_tokens=dynamic)
    second = Golden(folder / f"{stem}_pass2.npz")
    yield from _check_pass(f"{folder.name}/{stem} pass 2", temporal, features, second, grid, segmentation)
    if (folder / f"{stem}_pass2_pairs.npz").is_file():
        golden = Golden(folder / f"{stem}_pass2_pairs.npz")
        yield from _check_second_pairs(
            f"{folder.name}/{stem} pass 2", model, features, dynamic, edges, golden, predictions
        )


def _check_pass(stage, temporal, features, golden, grid, config: SegmentationConfig) -> Iterator[Row]:
    raw = motion.raw_moments(temporal, grid)
    maps = motion.fuse_temporal(temporal, grid)
    for golden_name, ours in _RAW.items():
        array = getattr(raw, ours)
        if f"raw_{golden_name}" in golden:
            yield compare(stage, f"raw_{golden_name}", array, golden[f"raw_{golden_name}"], AGGREGATED)
        if f"raw_{golden_name}_sum_over_channels" in golden:
            name = f"raw_{golden_name}_sum_over_channels"
            yield compare(stage, name, array.sum(axis=-1), golden[name], AGGREGATED)
    for golden_name, ours in _MAPS.items():
        if f"norm_{golden_name}" in golden:
            normalised = min_max(getattr(raw, ours))
            yield compare(stage, f"norm_{golden_name}", normalised, golden[f"norm_{golden_name}"], AGGREGATED)
        yield compare(stage, f"fused_{golden_name}", getattr(maps, ours), golden[f"fused_{golden_name}"], AGGREGATED)
    yield compare(stage, "dynamic_map", motion.dynamic_score(maps), golden["dynamic_map"], AGGREGATED)
    yield from _check_masks(stage, maps, features, golden, config)
    yield from golden.unread(stage, "min_abs_margin_f64")


def _check_masks(stage, maps: TemporalMaps, features, golden, config: SegmentationConfig) -> Iterator[Row]:
    points = np.asarray(features, np.float64).reshape(-1, features.shape[-1])
    clusters = motion.kmeans(
        jnp.asarray(points, jnp.float32),
        config.num_clusters,
        jax.random.key(0),
        restarts=config.restarts,
        max_iterations=config.kmeans_iterations,
    )
    ratio = _inertia(points, np.asarray(clusters.labels)) / _inertia(points, golden["cluster_labels"].ravel())
    yield at_most(stage, "k-means inertia / golden's", ratio, 1.02)

    # k-means depends on its random numbers: use the golden labels from here on.
    labels = jnp.asarray(golden["cluster_labels"])
    scored = motion.motion_maps(maps, labels, config)
    yield compare(stage, "refined_dynamic_map", scored.score, golden["refined_dynamic_map"], AGGREGATED)
    masks = motion.masks_from_maps(scored, golden["masks"].shape[1:], config)
    few = len(golden["upsampled_first2"])
    yield compare(stage, "upsampled_first2", masks.score[:few], golden["upsampled_first2"], AGGREGATED)

    # Thresholds of the golden map: the histogram is a step function of it.
    exact = motion.upsample(jnp.asarray(golden["refined_dynamic_map"]), golden["masks"].shape[1:])
    otsu = motion.multi_otsu(exact, config.otsu_classes)
    yield compare(stage, "threshold", otsu.threshold, golden["threshold_f64"], ROUNDING)
    yield compare(stage, "otsu_scores", otsu.scores, golden["otsu_scores_f64"], 10 * ROUNDING)
    for count, values in zip(config.otsu_classes, otsu.thresholds, strict=True):
        yield compare(
            stage, f"otsu_thresholds_{count}classes", values, golden[f"otsu_thresholds_{count}classes_f64"], ROUNDING
        )
    # A threshold is the centre of a bin, selected among nearly equal ones: noise of 1e-5 in the score, its float32
    # precision, can move it to the next bin (scikit-image's does so on such a map). So masks are compared at the
    # threshold of the golden map, and the threshold of our own map may be at most in an adjacent bin.
    yield differing(stage, "masks", masks.score > otsu.threshold, golden["masks"], MASK_PIXELS)
    bin_width = float(exact.max() - exact.min()) / 256
    off = abs(float(masks.threshold) - float(golden["threshold_f64"])) / bin_width
    yield at_most(stage, "threshold of our own score, bins off", off, 1.5)


def _inertia(points: np.ndarray, labels: np.ndarray) -> float:
    """Sum of squared distances to the means of the labels' clusters."""
    sizes = np.bincount(labels)
    sums = np.zeros((len(sizes), points.shape[1]))
    np.add.at(sums, labels, points)
    return float(np.square(points - (sums / np.maximum(sizes, 1)[:, None])[labels]).sum())


def _check_second_pairs(stage, model, features, dynamic, edges, golden, predictions) -> Iterator[Row]:
    size = predictions.points_i.shape[1:3]
    grid = model.grid(size)
    for k, edge in zip(golden["pair_index"], golden["pairs"], strict=True):
        prefix = f"pair{k}_"
        step = int(golden[f"{prefix}stride"])
        for name, array in (
            ("pts3d_1", predictions.points_i),
            ("conf_1", predictions.confidence_i),
            ("pts3d_2", predictions.points_j),
            ("conf_2", predictions.confidence_j),
        ):
            yield compare(stage, prefix + name, array[k, ::step, ::step], golden[prefix + name], NETWORK)
        i, j = edge
        stats = model.decode(features[i][None], features[j][None], grid, (dynamic[i][None], dynamic[j][None])).stats
        for name, array in (("attn_b1", stats.src), ("attn_b2", stats.ref)):
            if prefix + name in golden:
                ours = np.asarray(array[0]).reshape(-1, *grid).transpose(1, 2, 0)
                yield compare(stage, prefix + name, ours, golden[prefix + name], NETWORK)
    yield from golden.unread(stage, "")


def _check_otsu(folder: pathlib.Path) -> Iterator[Row]:
    golden = Golden(folder / "otsu_synthetic.npz")
    stage = f"{folder.name}/otsu_synthetic"
    for name in [k for k, array in golden.items() if array.ndim == 2]:
        otsu = motion.multi_otsu(jnp.asarray(golden[name]))
        yield compare(stage, f"{name} threshold", otsu.threshold, golden[f"{name}_threshold_f64"], ROUNDING)
        yield compare(stage, f"{name} scores", otsu.scores, golden[f"{name}_scores_2_3_4_f64"], 10 * ROUNDING)
        for count, values in zip((2, 3, 4), otsu.thresholds, strict=True):
            yield compare(
                stage, f"{name} thresholds {count}", values, golden[f"{name}_thresholds_{count}_f64"], ROUNDING
            )
    yield from golden.unread(stage, "")
