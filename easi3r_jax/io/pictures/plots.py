"""Plots of a reconstruction: the alignment's loss, the camera path from above, the score and its threshold.

They use matplotlib's figures and never its `pyplot`, which keeps global state.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from easi3r_jax.io.pictures.colors import time_colors

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SIZE, _DPI = (5.2, 3.7), 130
# Relative to the longer side of the path's bounding box: the margin around it, and the least that an axis spans.
_MARGIN, _MIN_SPAN = 0.08, 0.6
_BINS = 50
_LEGEND = {"facecolor": "white", "edgecolor": "none", "framealpha": 0.85}
_BLUE, _RED, _GREY = "#2f6db5", "#c8323c", "#8a8f98"


def loss_figure(losses: np.ndarray) -> Figure:
    """The alignment's loss over its steps.

    Args:
      losses: (iterations,); values that are not finite leave gaps.
    """
    losses = np.asarray(losses, np.float64)
    finite = np.isfinite(losses)
    figure, axes = _plot("step of the alignment", "loss")
    axes.plot(np.arange(1, len(losses) + 1), np.where(finite, losses, np.nan), color=_BLUE, linewidth=1.5)
    # On a linear axis, a loss that falls by orders of magnitude would end as a line along the bottom.
    if finite.any() and losses[finite].min() > 0 and losses[finite].max() > 20 * losses[finite].min():
        axes.set_yscale("log")
    axes.set_xlim(0, max(len(losses), 2))
    return figure


def trajectory_figure(world_from_cam: np.ndarray, true_centres: np.ndarray | None = None) -> Figure:
    """The camera path from above, in the first camera's axes: x to the right, z forward.

    Args:
      world_from_cam: (T, 4, 4) rigid.
      true_centres: (T, 3) of the true path, aligned to the same world.
    """
    cam_from_world = np.linalg.inv(np.asarray(world_from_cam[0], np.float64))
    path = _from_above(cam_from_world, np.asarray(world_from_cam)[:, :3, 3])
    figure, axes = _plot("x of the first camera, to the right (world units)", "z, forward (world units)")
    all_points = path
    if true_centres is not None:
        true = _from_above(cam_from_world, true_centres)
        all_points = np.concatenate([path, true])
        axes.plot(*true.T, color=_GREY, linewidth=2.5, label="truth, aligned as for the ATE")
        # The error of each frame.
        axes.plot(*np.stack([path, true], axis=1).T, color=_GREY, linewidth=0.6)
    axes.plot(*path.T, color=_BLUE, linewidth=1.2, label="reconstruction")
    axes.scatter(*path.T, c=time_colors(len(path)) / 255, s=14, zorder=3)
    axes.scatter(*path[0], s=70, facecolors="none", edgecolors=_RED, linewidths=1.8, zorder=4, label="start")
    lengths = np.ptp(all_points, axis=0)
    longest = float(lengths.max())
    if longest < 1e-6:  # a static camera, up to rounding
        longest = 1.0
    half = np.maximum(lengths, _MIN_SPAN * longest) / 2 + _MARGIN * longest
    low, high = (all_points.min(0) + all_points.max(0)) / 2 + np.stack([-half, half])
    axes.set_xlim(low[0], high[0])
    axes.set_ylim(low[1], high[1])
    axes.set_aspect("equal", adjustable="box")
    axes.legend(fontsize=9, loc="best", **_LEGEND)
    return figure


def score_figure(score: np.ndarray, threshold: float | None) -> Figure:
    """Histogram of the dynamic score over all pixels, with the threshold above which they are dynamic.

    Args:
      score: (T, H, W) in [0, 1].
      threshold: None if the clip does not have a single one.
    """
    counts, edges = np.histogram(score, _BINS, (0.0, 1.0))
    figure, axes = _plot("dynamic score", "pixels (%)")
    axes.stairs(100 * counts / max(counts.sum(), 1), edges, fill=True, color=_BLUE, alpha=0.85)
    if threshold is not None:
        above = 100 * float(np.mean(np.asarray(score) > threshold))
        axes.axvline(threshold, color=_RED, linewidth=1.5, label=f"threshold {threshold:.3f}: {above:.1f} % above it")
        axes.legend(fontsize=9, loc="upper right", **_LEGEND)
        axes.margins(y=0.15)  # space for the legend
    axes.set_xlim(0, 1)
    return figure


def _plot(x: str, y: str) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=_SIZE, dpi=_DPI, facecolor="white", layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.tick_params(labelsize=9)
    axes.grid(color="#e4e6ea", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _from_above(cam_from_world: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """(T, 2): x and z in a camera's axes, of points in the world."""
    return (np.asarray(centres, np.float64) @ cam_from_world[:3, :3].T + cam_from_world[:3, 3])[:, [0, 2]]
