"""How well masks of what moves agree with the true ones: region J and boundary F of DAVIS, pooled IoU, ROC-AUC."""

from __future__ import annotations

import math

import numpy as np
from scipy import ndimage, stats

# Boundaries match within this share of the image diagonal (DAVIS).
_BOUNDARY_TOLERANCE = 0.008


def region_similarity(masks: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """J of each frame: intersection over union; 1 where both masks are empty.

    Args:
      masks, truth: (T, H, W) bool.

    Returns:
      (T,) float64 in [0, 1].

    Source: Perazzi et al., A Benchmark Dataset and Evaluation Methodology for Video Object Segmentation, CVPR 2016.
    """
    intersection = (masks & truth).sum((1, 2))
    union = (masks | truth).sum((1, 2))
    return np.where(union == 0, 1.0, intersection / np.maximum(union, 1))


def boundary_similarity(masks: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """F of each frame: harmonic mean of the precision and recall of boundary pixels.

    A boundary pixel is found when the other mask has one within 0.008 of the image diagonal (rounded up to whole
    pixels). One where both masks have no boundary, zero where only one has none.

    Args:
      masks, truth: (T, H, W) bool.

    Returns:
      (T,) float64 in [0, 1].

    Source: as `region_similarity`.
    """
    radius = math.ceil(_BOUNDARY_TOLERANCE * math.hypot(*masks.shape[1:]))
    return np.array([_boundary_f(m, t, radius) for m, t in zip(masks, truth, strict=True)], np.float64)


def mean_recall_decay(values: np.ndarray) -> tuple[float, float, float]:
    """DAVIS statistics of a per-frame figure.

    Args:
      values: (T,) of T >= 1 frames.

    Returns:
      the mean; the share of frames above 0.5; the mean over the first quarter minus that over the last. Quarters
      share their end frames, as in the benchmark (which breaks beyond 256 frames for want of bits; this does not).
    """
    values = np.asarray(values, np.float64)
    ends = np.floor(np.linspace(0, len(values) - 1, 5) + 0.5 + 1e-10).astype(int)
    decay = values[ends[0] : ends[1] + 1].mean() - values[ends[3] : ends[4] + 1].mean()
    return float(values.mean()), float((values > 0.5).mean()), float(decay)


def pooled_iou(masks: np.ndarray, truth: np.ndarray) -> float | None:
    """Intersection over union of all pixels of the clip together; None where both are empty everywhere."""
    union = int((masks | truth).sum())
    return int((masks & truth).sum()) / union if union else None


def roc_auc(score: np.ndarray, truth: np.ndarray) -> float | None:
    """Area under the ROC curve of a score: the probability that it ranks a moving pixel above a static one.

    Exact, from ranks (Mann-Whitney); ties count one half, so a constant score gives 0.5.

    Args:
      score: (...) float, larger for moving.
      truth: (...) bool, True where moving.

    Returns:
      a share in [0, 1]; None where nothing or everything moves.
    """
    score, truth = np.ravel(score), np.ravel(truth)
    moving = int(truth.sum())
    static = truth.size - moving
    if moving == 0 or static == 0:
        return None
    ranks = stats.rankdata(score)
    return float((ranks[truth].sum() - moving * (moving + 1) / 2) / (moving * static))


def _boundary(mask: np.ndarray) -> np.ndarray:
    """Pixels that differ from their right, lower or lower-right neighbour inside the image."""
    edge = np.zeros_like(mask)
    edge[:, :-1] |= mask[:, :-1] ^ mask[:, 1:]
    edge[:-1] |= mask[:-1] ^ mask[1:]
    edge[:-1, :-1] |= mask[:-1, :-1] ^ mask[1:, 1:]
    return edge


def _boundary_f(mask: np.ndarray, truth: np.ndarray, radius: int) -> float:
    found, wanted = _boundary(mask), _boundary(truth)
    if not found.any() or not wanted.any():
        return float(found.any() == wanted.any())
    # Within a disk = within a distance; exact, since squared pixel distances are whole numbers.
    precision = (np.asarray(ndimage.distance_transform_edt(~wanted))[found] <= radius).mean()
    recall = (np.asarray(ndimage.distance_transform_edt(~found))[wanted] <= radius).mean()
    return float(2 * precision * recall / (precision + recall)) if precision + recall > 0 else 0.0
