"""Results from the papers' tables, for the report. Fractions, not percent; only rows that were read in the tables.

Easi3R's are from version 1 of arXiv 2503.24391; CUT3R's from arXiv 2501.12387, which re-evaluated DUSt3R, MASt3R and
MonST3R ("GA": with global alignment).
"""

from __future__ import annotations

from collections.abc import Sequence

from easi3r_jax.evaluation.datasets.sequence import Published

_MASKS = "Easi3R (arXiv 2503.24391v1), Table 1"
_POSES = "CUT3R (arXiv 2501.12387), Table 3"
_OTHER_FRAMES = "Easi3R (arXiv 2503.24391v1), Table 2; the selection of frames is unknown"
_DEPTH = "CUT3R (arXiv 2501.12387), Table 2, one scale per sequence"
_SINGLE = "CUT3R (arXiv 2501.12387), Table 1, median scaling per frame"

# Method: (J mean, J recall) without and with SAM 2, in percent, on DAVIS 2016, 2017 and all.
_JACCARD = {
    "DUSt3R with flow": (42.1, 45.7, 58.5, 63.4, 35.2, 35.3, 48.7, 50.2, 35.9, 34.0, 47.6, 48.7),
    "MonST3R with flow": (40.9, 42.2, 64.3, 73.3, 38.6, 38.2, 56.4, 59.6, 36.7, 34.3, 51.9, 54.1),
    "DAS3R": (41.6, 39.0, 54.2, 55.8, 43.5, 42.1, 57.4, 61.3, 43.4, 38.7, 53.9, 54.8),
    "Easi3R (DUSt3R)": (53.1, 60.4, 67.9, 71.4, 49.0, 56.4, 60.1, 65.3, 44.5, 49.6, 54.7, 60.6),
    "Easi3R (MonST3R)": (57.7, 71.6, 70.7, 79.9, 56.5, 68.6, 67.9, 76.1, 53.0, 63.4, 63.1, 72.6),
}

# Method: ATE, RPE of translation and of rotation in degrees, on Sintel, TUM-dynamics and ScanNet.
_PATHS = {
    "DUSt3R-GA": (0.417, 0.250, 5.796, 0.083, 0.017, 3.567, 0.081, 0.028, 0.784),
    "MASt3R-GA": (0.185, 0.060, 1.496, 0.038, 0.012, 0.448, 0.078, 0.020, 0.475),
    "MonST3R-GA": (0.111, 0.044, 0.869, 0.098, 0.019, 0.935, 0.077, 0.018, 0.529),
    "CUT3R": (0.213, 0.066, 0.621, 0.046, 0.015, 0.473, 0.099, 0.022, 0.600),
}

# The same on DyCheck, ADT and TUM-dynamics.
_EASI3R_PATHS = {
    "DUSt3R": (0.035, 0.030, 2.323, 0.042, 0.025, 1.212, 0.100, 0.087, 2.692),
    "Easi3R (DUSt3R)": (0.029, 0.025, 1.774, 0.040, 0.021, 0.880, 0.093, 0.076, 2.366),
    "DUSt3R with flow": (0.029, 0.021, 1.875, 0.076, 0.030, 0.974, 0.071, 0.067, 3.711),
    "Easi3R (DUSt3R) with flow": (0.021, 0.014, 1.092, 0.042, 0.015, 0.655, 0.070, 0.061, 2.361),
    "MonST3R": (0.040, 0.034, 1.820, 0.045, 0.024, 0.759, 0.183, 0.148, 6.985),
    "Easi3R (MonST3R)": (0.038, 0.032, 1.736, 0.045, 0.024, 0.715, 0.184, 0.149, 6.311),
    "MonST3R with flow": (0.033, 0.024, 1.501, 0.055, 0.025, 0.776, 0.170, 0.155, 6.455),
    "Easi3R (MonST3R) with flow": (0.030, 0.021, 1.390, 0.039, 0.016, 0.640, 0.168, 0.150, 5.925),
}

# Method: AbsRel and delta < 1.25 in percent, on Sintel, Bonn and KITTI.
_VIDEO_DEPTH = {
    "DUSt3R-GA": (0.656, 45.2, 0.155, 83.3, 0.144, 81.3),
    "MASt3R-GA": (0.641, 43.9, 0.252, 70.1, 0.183, 74.5),
    "MonST3R-GA": (0.378, 55.8, 0.067, 96.3, 0.168, 74.4),
    "CUT3R": (0.421, 47.9, 0.078, 93.7, 0.118, 88.1),
}

# The same on NYU Depth v2, frame by frame.
_FRAME_DEPTH = {"DUSt3R": (0.080, 90.7), "MASt3R": (0.129, 84.9), "MonST3R": (0.102, 88.0), "CUT3R": (0.086, 90.9)}


def davis(column: int) -> tuple[Published, ...]:
    """Masks on DAVIS 2016 (column 0), 2017 (1) or all (2)."""
    rows = []
    for method, numbers in _JACCARD.items():
        plain = numbers[4 * column : 4 * column + 2]
        refined = numbers[4 * column + 2 : 4 * column + 4]
        for name, pair in ((method, plain), (f"{method}, SAM 2", refined)):
            rows.append(_row(name, "masks", ("j_mean", "j_recall"), [number / 100 for number in pair], _MASKS))
    return tuple(rows)


def sintel() -> tuple[Published, ...]:
    """Camera paths and depth."""
    return _paths(_PATHS, 0, _POSES) + _depths(_VIDEO_DEPTH, 0, _DEPTH)


def tum() -> tuple[Published, ...]:
    """Camera paths, from two papers that select frames differently."""
    return _paths(_PATHS, 1, _POSES) + _paths(_EASI3R_PATHS, 2, _OTHER_FRAMES)


def scannet() -> tuple[Published, ...]:
    """Camera paths."""
    return _paths(_PATHS, 2, _POSES)


def iphone() -> tuple[Published, ...]:
    """Camera paths."""
    return _paths(_EASI3R_PATHS, 0, _OTHER_FRAMES)


def adt() -> tuple[Published, ...]:
    """Camera paths."""
    return _paths(_EASI3R_PATHS, 1, _OTHER_FRAMES)


def bonn() -> tuple[Published, ...]:
    """Depth."""
    return _depths(_VIDEO_DEPTH, 1, _DEPTH)


def kitti() -> tuple[Published, ...]:
    """Depth."""
    return _depths(_VIDEO_DEPTH, 2, _DEPTH)


def nyu() -> tuple[Published, ...]:
    """Depth of single frames."""
    return _depths(_FRAME_DEPTH, 0, _SINGLE)


def _paths(rows: dict[str, tuple[float, ...]], column: int, source: str) -> tuple[Published, ...]:
    names = ("ate", "rpe_translation", "rpe_rotation_deg")
    return tuple(_row(method, "poses", names, numbers[3 * column :], source) for method, numbers in rows.items())


def _depths(rows: dict[str, tuple[float, ...]], column: int, source: str) -> tuple[Published, ...]:
    names = ("abs_rel", "delta_1_25")
    fractions = {method: (numbers[2 * column], numbers[2 * column + 1] / 100) for method, numbers in rows.items()}
    return tuple(_row(method, "depth", names, numbers, source) for method, numbers in fractions.items())


def _row(method: str, task: str, names: Sequence[str], numbers: Sequence[float], source: str) -> Published:
    return Published(method, task, dict(zip(names, numbers, strict=False)), source)
