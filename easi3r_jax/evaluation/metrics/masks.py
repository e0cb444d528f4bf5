"""How well masks of what moves agree with the true ones: region J and boundary F of DAVIS, pooled IoU, ROC-AUC.

J and F of a frame are the benchmark's; what becomes of them is up to a protocol. "pooled" is the Easi3R paper's: all
frames of all sequences alike, at the network's crop. "davis" is the benchmark's: sequence by sequence without the first
and the last frame, at full resolution. `geometry.grids.resample_nearest` leads from one resolution to the other.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
from scipy import ndimage, stats

from easi3r_jax.core.errors import ConfigError, InputError
from easi3r_jax.evaluation.metrics.checks import check_finite, check_same_shape

Protocol = Literal["pooled", "davis"]

# Boundaries match within this share of the image diagonal (DAVIS).
_BOUNDARY_TOLERANCE = 0.008
_FIGURES = ("jf_mean", *(f"{letter}_{name}" for letter in "jf" for name in ("mean", "recall", "decay")))


@dataclasses.dataclass(frozen=True, eq=False)
class MaskScores:
    """Agreement in every frame of a sequence.

    Attributes:
      region: (T,) float64 in [0, 1], J.
      boundary: (T,) float64 in [0, 1], F.
    """

    region: np.ndarray
    boundary: np.ndarray


def pooled_metrics(
    masks: np.ndarray | Sequence[np.ndarray], truth: np.ndarray | Sequence[np.ndarray]
) -> dict[str, float | None]:
    """J and F by the Easi3R paper's protocol: see `summarise_masks`.

    Args:
      masks, truth: (T, H, W) bool, one sequence, or as many of them as there are sequences; at the network's crop.

    Raises:
      InputError: as `score_masks`.
    """
    return summarise_masks(_score_all(masks, truth), "pooled")


def davis_metrics(
    masks: np.ndarray | Sequence[np.ndarray], truth: np.ndarray | Sequence[np.ndarray]
) -> dict[str, float | None]:
    """J and F by the DAVIS benchmark's protocol: see `summarise_masks`.

    Args:
      masks, truth: (T, H, W) bool, one sequence, or as many of them as there are sequences; at full resolution, all
        frames.

    Raises:
      InputError: as `score_masks`.
    """
    return summarise_masks(_score_all(masks, truth), "davis")


def score_masks(
    masks: np.ndarray, truth: np.ndarray, *, void: np.ndarray | None = None, fill_missing: bool = False
) -> MaskScores:
    """J and F of each frame.

    Args:
      masks, truth: (T, H, W) bool, or numbers that are not 0 where the frame moves.
      void: (T, H, W) likewise: pixels that count for neither.
      fill_missing: as the released evaluation does, frames that the masks lack are empty, frames too many are left out.

    Raises:
      InputError: shapes that differ, no frame or no pixel, numbers that are not finite.
    """
    masks, truth = as_masks("masks", masks), as_masks("true masks", truth)
    if fill_missing and masks.shape[1:] == truth.shape[1:]:
        missing = max(len(truth) - len(masks), 0)
        masks = np.concatenate([masks[: len(truth)], np.zeros((missing, *truth.shape[1:]), bool)])
    if void is not None:
        void = as_masks("void pixels", void)
        check_same_shape("void pixels", void, truth)
        check_same_shape("masks", masks, truth)
        masks, truth = masks & ~void, truth & ~void
    return MaskScores(region_similarity(masks, truth), boundary_similarity(masks, truth))


def summarise_masks(scores: Iterable[MaskScores], protocol: Protocol) -> dict[str, float | None]:
    """Figures of a set of sequences.

    Args:
      scores: of each sequence, all its frames, at the protocol's resolution.
      protocol:

        - "pooled": mean over all frames of all sequences, so that a long sequence counts more. `recall` is the share of
          frames above 0.5. `decay` is 0: the released evaluation measures it within a frame.
        - "davis": mean over sequences of the mean, recall and decay (`mean_recall_decay`) of each; the first frame of a
          sequence and its last are not judged. Sequences of two frames or fewer have no figures and are left out.

    Returns:
      `j_mean`, `j_recall`, `j_decay`, `f_mean`, `f_recall`, `f_decay`, and `jf_mean`, the mean of the two means; None
      where no frame is judged. `frames` and `sequences`: how many are in the figures.

    Source: Perazzi et al., CVPR 2016; Pont-Tuset et al., The 2017 DAVIS Challenge, arXiv 1704.00675.
    """
    if protocol not in ("pooled", "davis"):
        raise ConfigError(f"Unknown protocol of masks {protocol!r}: choose pooled or davis.")
    inner = slice(1, -1) if protocol == "davis" else slice(None)
    judged = [np.stack([s.region, s.boundary])[:, inner] for s in scores]
    judged = [values for values in judged if values.size]
    result: dict[str, float | None] = dict.fromkeys(_FIGURES)
    if judged:
        summary = _pooled if protocol == "pooled" else _by_sequence
        region, boundary = (summary([sequence[row] for sequence in judged]) for row in (0, 1))
        result |= zip(_FIGURES, ((region[0] + boundary[0]) / 2, *region, *boundary), strict=True)
    return result | {"frames": sum(values.shape[1] for values in judged), "sequences": len(judged)}


def region_similarity(masks: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """J of each frame: intersection over union; 1 where both masks are empty.

    Args:
      masks, truth: (T, H, W) bool, or numbers that are not 0 where the frame moves.

    Returns:
      (T,) float64 in [0, 1].

    Raises:
      InputError: shapes that differ, no frame or no pixel, numbers that are not finite.

    Source: Perazzi et al., A Benchmark Dataset and Evaluation Methodology for Video Object Segmentation, CVPR 2016.
    """
    masks, truth = _pair(masks, truth)
    intersection = (masks & truth).sum((1, 2))
    union = (masks | truth).sum((1, 2))
    return np.where(union == 0, 1.0, intersection / np.maximum(union, 1))


def boundary_similarity(masks: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """F of each frame: harmonic mean of the precision and recall of boundary pixels.

    A boundary pixel is found when the other mask has one within `boundary_tolerance`. One where both masks have no
    boundary, zero where only one has none.

    Args:
      masks, truth: (T, H, W) bool, or numbers that are not 0 where the frame moves.

    Returns:
      (T,) float64 in [0, 1].

    Raises:
      InputError: as `region_similarity`.

    Source: as `region_similarity`.
    """
    masks, truth = _pair(masks, truth)
    radius = boundary_tolerance(*masks.shape[1:])
    return np.array([_boundary_f(m, t, radius) for m, t in zip(masks, truth, strict=True)], np.float64)


def boundary_tolerance(height: int, width: int) -> int:
    """Within how many pixels boundaries match: 0.008 of the image's diagonal, rounded up (DAVIS)."""
    return math.ceil(_BOUNDARY_TOLERANCE * math.hypot(height, width))


def mask_boundary(mask: np.ndarray) -> np.ndarray:
    """(H, W) bool -> (H, W) bool: pixels that differ from their right, lower or lower-right neighbour in the image."""
    edge = np.zeros_like(mask)
    edge[:, :-1] |= mask[:, :-1] ^ mask[:, 1:]
    edge[:-1] |= mask[:-1] ^ mask[1:]
    edge[:-1, :-1] |= mask[:-1, :-1] ^ mask[1:, 1:]
    return edge


def mean_recall_decay(values: np.ndarray, *, eight_bits: bool = False) -> tuple[float, float, float | None]:
    """DAVIS statistics of a per-frame figure.

    Args:
      values: (T,) of T >= 1 frames.
      eight_bits: the benchmark keeps the ends of the quarters in eight bits, so that beyond 256 frames they are counted
        from 0 again and its decay is wrong, or that of no frames at all. True does as it does, and says None for the
        latter.

    Returns:
      the mean; the share of frames above 0.5; the mean over the first quarter minus that over the last. Quarters
      share their end frames, as in the benchmark.
    """
    values = np.asarray(values, np.float64)
    ends = np.floor(np.linspace(0, len(values) - 1, 5) + 0.5 + 1e-10).astype(int)
    if eight_bits:
        ends %= 256
    first, last = values[ends[0] : ends[1] + 1], values[ends[3] : ends[4] + 1]
    decay = float(first.mean() - last.mean()) if len(first) and len(last) else None
    return float(values.mean()), float((values > 0.5).mean()), decay


def pooled_iou(masks: np.ndarray, truth: np.ndarray) -> float | None:
    """Intersection over union of all pixels of the clip together; None where both are empty everywhere.

    Raises:
      InputError: as `region_similarity`.
    """
    masks, truth = _pair(masks, truth)
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

    Raises:
      InputError: shapes that differ, scores that are not finite.
    """
    check_same_shape("scores", np.asarray(score), np.asarray(truth))
    check_finite("scores", np.asarray(score))
    score, truth = np.ravel(score), np.ravel(truth).astype(bool)
    moving = int(truth.sum())
    static = truth.size - moving
    if moving == 0 or static == 0:
        return None
    ranks = stats.rankdata(score)
    return float((ranks[truth].sum() - moving * (moving + 1) / 2) / (moving * static))


def as_masks(name: str, masks: np.ndarray) -> np.ndarray:
    """(T, H, W) bool of masks given as bool or as numbers; `name` is a plural, for the message.

    Raises:
      InputError: another number of axes, no frame or no pixel, numbers that are not finite.
    """
    masks = np.asarray(masks)
    if masks.ndim != 3 or masks.size == 0:
        raise InputError(
            f"The {name} have shape {masks.shape}: they must be (T, H, W), with at least one frame and pixel."
        )
    if np.issubdtype(masks.dtype, np.floating):
        check_finite(name, masks)
    return masks.astype(bool, copy=False)


def _pair(masks: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    masks, truth = as_masks("masks", masks), as_masks("true masks", truth)
    check_same_shape("masks", masks, truth)
    return masks, truth


def _score_all(masks, truth) -> Iterable[MaskScores]:
    one = [isinstance(m, np.ndarray) and m.ndim == 3 for m in (masks, truth)]
    masks, truth = ([m] if single else m for m, single in zip((masks, truth), one, strict=True))
    if len(masks) != len(truth):
        raise InputError(f"There are masks of {len(masks)} sequences and true ones of {len(truth)}.")
    return map(score_masks, masks, truth)


def _pooled(values: Sequence[np.ndarray]) -> tuple[float, ...]:
    mean, recall, _ = mean_recall_decay(np.concatenate(values))
    return mean, recall, 0.0


def _by_sequence(values: Sequence[np.ndarray]) -> tuple[float, ...]:
    return tuple(float(np.mean(column)) for column in zip(*map(mean_recall_decay, values), strict=True))


def _boundary_f(mask: np.ndarray, truth: np.ndarray, radius: int) -> float:
    found, wanted = mask_boundary(mask), mask_boundary(truth)
    if not found.any() or not wanted.any():
        return float(found.any() == wanted.any())
    # Within a disk = within a distance; exact, since squared pixel distances are whole numbers.
    precision = (np.asarray(ndimage.distance_transform_edt(~wanted))[found] <= radius).mean()
    recall = (np.asarray(ndimage.distance_transform_edt(~found))[wanted] <= radius).mean()
    return float(2 * precision * recall / (precision + recall)) if precision + recall > 0 else 0.0
