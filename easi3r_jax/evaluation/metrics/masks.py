"""Agreement of dynamic masks with the true ones: DAVIS's region J and boundary F, pooled IoU, ROC-AUC.

J and F of a frame are the benchmark's. How frames are averaged depends on the protocol. "pooled" is the Easi3R paper's:
over all frames of all sequences, at the network's crop. "davis" is the benchmark's: per sequence, without the first and
the last frame, at full resolution. `geometry.grids.resample_nearest` converts between the resolutions.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np

from easi3r_jax.core.arrays import Bool, Float, Real, Shaped
from easi3r_jax.core.errors import ConfigError, InputError
from easi3r_jax.evaluation.metrics.checks import check_finite, check_same_shape

Protocol = Literal["pooled", "davis"]

# Boundaries match within this fraction of the image diagonal (DAVIS).
_BOUNDARY_TOLERANCE = 0.008
_METRICS = ("jf_mean", *(f"{letter}_{name}" for letter in "jf" for name in ("mean", "recall", "decay")))


@dataclasses.dataclass(frozen=True, eq=False)
class MaskScores:
    """Agreement in each frame of a sequence.

    Attributes:
      region: (T,) float64 in [0, 1], J.
      boundary: (T,) float64 in [0, 1], F.
    """

    region: Float[np.ndarray, "T"]
    boundary: Float[np.ndarray, "T"]


def pooled_metrics(
    masks: Shaped[np.ndarray, "T H W"] | Sequence[Shaped[np.ndarray, "_ _ _"]],
    truth: Shaped[np.ndarray, "T H W"] | Sequence[Shaped[np.ndarray, "_ _ _"]],
) -> dict[str, float | None]:
    """J and F by the Easi3R paper's protocol, see `summarise_masks`.

    Args:
      masks, truth: (T, H, W) bool of one sequence, or a list with one such array per sequence; at the network's crop.

    Raises:
      InputError: as `score_masks`.
    """
    return summarise_masks(_score_all(masks, truth), "pooled")


def davis_metrics(
    masks: Shaped[np.ndarray, "T H W"] | Sequence[Shaped[np.ndarray, "_ _ _"]],
    truth: Shaped[np.ndarray, "T H W"] | Sequence[Shaped[np.ndarray, "_ _ _"]],
) -> dict[str, float | None]:
    """J and F by the DAVIS benchmark's protocol, see `summarise_masks`.

    Args:
      masks, truth: (T, H, W) bool of one sequence, or a list with one such array per sequence; all frames, at full
        resolution.

    Raises:
      InputError: as `score_masks`.
    """
    return summarise_masks(_score_all(masks, truth), "davis")


def score_masks(
    masks: Shaped[np.ndarray, "_ H W"],
    truth: Shaped[np.ndarray, "T H W"],
    *,
    void: Shaped[np.ndarray, "T H W"] | None = None,
    fill_missing: bool = False,
) -> MaskScores:
    """J and F of each frame.

    Args:
      masks, truth: (T, H, W) bool, or numbers that are nonzero at dynamic pixels.
      void: (T, H, W) likewise: pixels to ignore.
      fill_missing: treat missing masks as empty and ignore surplus ones, as the released evaluation does.

    Raises:
      InputError: the shapes differ, there is no frame or no pixel, or numbers are not finite.
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
    """Metrics of a set of sequences.

    Args:
      scores: one per sequence, for all its frames, at the protocol's resolution.
      protocol:

        - "pooled": mean over all frames of all sequences, so a long sequence counts more. `recall` is the fraction of
          frames above 0.5. `decay` is 0: the released evaluation measures it within a frame.
        - "davis": mean over sequences of each one's mean, recall and decay (`mean_recall_decay`). The first and the
          last frame of a sequence are not evaluated. Sequences of two frames or fewer have no metrics and are omitted.

    Returns:
      `j_mean`, `j_recall`, `j_decay`, `f_mean`, `f_recall`, `f_decay`, and `jf_mean`, the mean of the two means; None
      if no frame is evaluated. `frames` and `sequences`: how many were evaluated.

    Source: Perazzi et al., CVPR 2016; Pont-Tuset et al., The 2017 DAVIS Challenge, arXiv 1704.00675.
    """
    if protocol not in ("pooled", "davis"):
        raise ConfigError(f"Unknown mask protocol {protocol!r}: choose pooled or davis.")
    inner = slice(1, -1) if protocol == "davis" else slice(None)
    evaluated = [np.stack([s.region, s.boundary])[:, inner] for s in scores]
    evaluated = [values for values in evaluated if values.size]
    result: dict[str, float | None] = dict.fromkeys(_METRICS)
    if evaluated:
        summary = _pooled if protocol == "pooled" else _by_sequence
        region, boundary = (summary([sequence[row] for sequence in evaluated]) for row in (0, 1))
        result |= zip(_METRICS, ((region[0] + boundary[0]) / 2, *region, *boundary), strict=True)
    return result | {"frames": sum(values.shape[1] for values in evaluated), "sequences": len(evaluated)}


def region_similarity(masks: Shaped[np.ndarray, "T H W"], truth: Shaped[np.ndarray, "T H W"]) -> Float[np.ndarray, "T"]:
    """J of each frame: intersection over union; 1 where both masks are empty.

    Args:
      masks, truth: (T, H, W) bool, or numbers that are nonzero at dynamic pixels.

    Returns:
      (T,) float64 in [0, 1].

    Raises:
      InputError: the shapes differ, there is no frame or no pixel, or numbers are not finite.

    Source: Perazzi et al., A Benchmark Dataset and Evaluation Methodology for Video Object Segmentation, CVPR 2016.
    """
    masks, truth = _pair(masks, truth)
    intersection = (masks & truth).sum((1, 2))
    union = (masks | truth).sum((1, 2))
    return np.where(union == 0, 1.0, intersection / np.maximum(union, 1))


def boundary_similarity(
    masks: Shaped[np.ndarray, "T H W"], truth: Shaped[np.ndarray, "T H W"]
) -> Float[np.ndarray, "T"]:
    """F of each frame: harmonic mean of the precision and recall of boundary pixels.

    A boundary pixel is matched if the other mask has one within `boundary_tolerance`. F is 1 if neither mask has a
    boundary, and 0 if only one of them has.

    Args:
      masks, truth: (T, H, W) bool, or numbers that are nonzero at dynamic pixels.

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
    """Distance in pixels within which boundaries match: 0.008 of the image diagonal, rounded up (DAVIS)."""
    return math.ceil(_BOUNDARY_TOLERANCE * math.hypot(height, width))


def mask_boundary(mask: Bool[np.ndarray, "H W"]) -> Bool[np.ndarray, "H W"]:
    """(H, W) bool -> (H, W) bool: pixels that differ from their right, lower or lower-right neighbour."""
    edge = np.zeros_like(mask)
    edge[:, :-1] |= mask[:, :-1] ^ mask[:, 1:]
    edge[:-1] |= mask[:-1] ^ mask[1:]
    edge[:-1, :-1] |= mask[:-1, :-1] ^ mask[1:, 1:]
    return edge


def mean_recall_decay(values: Real[np.ndarray, "T"], *, eight_bits: bool = False) -> tuple[float, float, float | None]:
    """DAVIS statistics of a per-frame metric.

    Args:
      values: (T,), T >= 1 frames.
      eight_bits: the benchmark stores the ends of the quarters in eight bits. Beyond 256 frames they wrap around, and
        its decay is wrong or that of no frames. True reproduces this, with None for a decay of no frames.

    Returns:
      the mean; the recall, the fraction of frames above 0.5; and the decay, the mean over the first quarter minus that
      over the last. Adjacent quarters have their end frame in common, as in the benchmark.
    """
    values = np.asarray(values, np.float64)
    ends = np.floor(np.linspace(0, len(values) - 1, 5) + 0.5 + 1e-10).astype(int)
    if eight_bits:
        ends %= 256
    first, last = values[ends[0] : ends[1] + 1], values[ends[3] : ends[4] + 1]
    decay = float(first.mean() - last.mean()) if len(first) and len(last) else None
    return float(values.mean()), float((values > 0.5).mean()), decay


def pooled_iou(masks: Shaped[np.ndarray, "T H W"], truth: Shaped[np.ndarray, "T H W"]) -> float | None:
    """Intersection over union, all pixels of the clip pooled; None if both masks are empty in all frames.

    Raises:
      InputError: as `region_similarity`.
    """
    masks, truth = _pair(masks, truth)
    union = int((masks | truth).sum())
    return int((masks & truth).sum()) / union if union else None


def roc_auc(score: Real[np.ndarray, "*shape"], truth: Shaped[np.ndarray, "*shape"]) -> float | None:
    """Area under the ROC curve of a score: the probability that it ranks a dynamic pixel above a static one.

    Exact, from ranks (Mann-Whitney); ties count one half, so a constant score gives 0.5.

    Args:
      score: (...) float, larger for dynamic pixels.
      truth: (...) bool, True at dynamic pixels.

    Returns:
      a number in [0, 1]; None if no pixel or every pixel is dynamic.

    Raises:
      InputError: the shapes differ, or scores are not finite.
    """
    check_same_shape("scores", np.asarray(score), np.asarray(truth))
    check_finite("scores", np.asarray(score))
    score, truth = np.ravel(score), np.ravel(truth).astype(bool)
    moving = int(truth.sum())
    static = truth.size - moving
    if moving == 0 or static == 0:
        return None
    from scipy import stats

    ranks = stats.rankdata(score)
    return float((ranks[truth].sum() - moving * (moving + 1) / 2) / (moving * static))


def as_masks(name: str, masks: Shaped[np.ndarray, "T H W"]) -> Bool[np.ndarray, "T H W"]:
    """(T, H, W) bool from masks given as bool or as numbers; `name`, a plural, is for the message.

    Raises:
      InputError: the masks are not (T, H, W), there is no frame or no pixel, or numbers are not finite.
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
        raise InputError(f"There are masks of {len(masks)} sequences and true masks of {len(truth)}.")
    return map(score_masks, masks, truth)


def _pooled(values: Sequence[np.ndarray]) -> tuple[float, ...]:
    mean, recall, _ = mean_recall_decay(np.concatenate(values))
    return mean, recall, 0.0


def _by_sequence(values: Sequence[np.ndarray]) -> tuple[float, ...]:
    return tuple(float(np.mean(column)) for column in zip(*map(mean_recall_decay, values), strict=True))


def _boundary_f(mask: np.ndarray, truth: np.ndarray, radius: int) -> float:
    from scipy import ndimage

    found, wanted = mask_boundary(mask), mask_boundary(truth)
    if not found.any() or not wanted.any():
        return float(found.any() == wanted.any())
    # Dilation by a disk is a threshold on distance; exact, since squared pixel distances are integers.
    precision = (np.asarray(ndimage.distance_transform_edt(~wanted))[found] <= radius).mean()
    recall = (np.asarray(ndimage.distance_transform_edt(~found))[wanted] <= radius).mean()
    return float(2 * precision * recall / (precision + recall)) if precision + recall > 0 else 0.0
