"""Distorted lenses: the models of COLMAP and OpenCV, and images without the distortion.

Parameters are COLMAP's, in its order; its pixel coordinates start at the image's corner, so that the centre of the top
left pixel is (0.5, 0.5).

An undistorted image has the size of the original, square pixels, its principal point in the middle, and the smallest
focal length at which every pixel shows something; but at least half of the lens's own, and at most 120 degrees from
corner to corner, which a warning says. A lens that folds within the image (its polynomial turns back) is refused.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import absl.logging
import numpy as np
from jaxtyping import Float, Shaped  # not from core.arrays: configurations have a lens, and do not import JAX

from easi3r_jax.core.errors import InputError

_RADIAL, _TANGENTIAL = ("k1", "k2"), ("p1", "p2")
#: Model -> names of its parameters.
MODELS: dict[str, tuple[str, ...]] = {
    "SIMPLE_RADIAL": ("f", "cx", "cy", "k1"),
    "RADIAL": ("f", "cx", "cy", *_RADIAL),
    "OPENCV": ("fx", "fy", "cx", "cy", *_RADIAL, *_TANGENTIAL),
    "FULL_OPENCV": ("fx", "fy", "cx", "cy", *_RADIAL, *_TANGENTIAL, "k3", "k4", "k5", "k6"),
    "SIMPLE_RADIAL_FISHEYE": ("f", "cx", "cy", "k1"),
    "RADIAL_FISHEYE": ("f", "cx", "cy", *_RADIAL),
    "OPENCV_FISHEYE": ("fx", "fy", "cx", "cy", *_RADIAL, "k3", "k4"),
}
# In which OpenCV takes the coefficients.
_ORDER = {False: ("k1", "k2", "p1", "p2", "k3", "k4", "k5", "k6"), True: ("k1", "k2", "k3", "k4")}
# Largest relative difference between the aspect ratios of the calibrated images and of these.
_ASPECT_TOLERANCE = 0.01
# Focal lengths that are tried, relative to the lens's own: from large to small, in steps.
_LARGEST, _SMALLEST, _STEP = 4.0, 0.5, 0.995
# Largest field of view of an undistorted image from corner to corner, in degrees: beyond, a pinhole image is mostly
# stretched border.
_WIDEST = 120.0
# Below this ratio of the focal lengths, pixels of the original are skipped in the middle: it is blurred before.
_BLURRED = 0.7


@dataclasses.dataclass(frozen=True)
class Lens:
    """A calibrated lens.

    Attributes:
      model: one of `MODELS`.
      parameters: in the order of `MODELS`, pixels from the image's corner.
      size: (width, height) of the calibrated images; None: of any image.

    Raises:
      InputError: an unknown model, another number of parameters, a number that is not finite, or a focal length that is
        not positive.
    """

    model: str
    parameters: tuple[float, ...]
    size: tuple[int, int] | None = None

    def __post_init__(self):
        if self.model not in MODELS:
            raise InputError(f"The lens model {self.model[:40]!r} is unknown: it must be one of {', '.join(MODELS)}.")
        names = MODELS[self.model]
        if len(self.parameters) != len(names):
            raise InputError(
                f"The lens model {self.model} has {len(names)} parameters, {' '.join(names)}; "
                f"{len(self.parameters)} were given."
            )
        if not np.isfinite(self.parameters).all() or self["fx"] <= 0 or self["fy"] <= 0:
            raise InputError(f"A lens {self.model} of parameters {self.parameters}: not a camera's.")

    def __getitem__(self, name: str) -> float:
        """A parameter by its name; 0 for those that the model does not have. fx and fy may be one."""
        names = MODELS[self.model]
        name = "f" if name in ("fx", "fy") and "f" in names else name
        return float(self.parameters[names.index(name)]) if name in names else 0.0

    def __str__(self) -> str:
        """As a line of COLMAP's cameras.txt, without the camera's number."""
        width, height = self.size or (0, 0)
        return " ".join([self.model, f"{width} {height}", *(f"{value:.12g}" for value in self.parameters)])

    @property
    def is_fisheye(self) -> bool:
        """Whether distances from the centre are a polynomial of the ray's angle, not of its tangent."""
        return "FISHEYE" in self.model

    def camera(self, size: tuple[int, int]) -> tuple[Float[np.ndarray, "3 3"], Float[np.ndarray, "coefficients"]]:
        """(3, 3) intrinsics of a distorted image of (width, height), integers at pixel centres, and the coefficients.

        Raises:
          InputError: the image has another shape than the calibrated ones.
        """
        width, height = self.size or size
        scale = size[0] / width, size[1] / height
        if abs(scale[0] / scale[1] - 1) > _ASPECT_TOLERANCE:
            raise InputError(
                f"The lens is calibrated for images of {width}x{height} pixels, of another shape than "
                f"{size[0]}x{size[1]}: give the calibration of this video."
            )
        x, y = self["cx"] * scale[0] - 0.5, self["cy"] * scale[1] - 0.5
        if not (-0.5 < x < size[0] - 0.5 and -0.5 < y < size[1] - 0.5):
            raise InputError(
                f"The lens's principal point ({self['cx']:g}, {self['cy']:g}) is outside of the image of "
                f"{width}x{height} pixels: give the calibration of this video."
            )
        matrix = np.array([[self["fx"] * scale[0], 0, x], [0, self["fy"] * scale[1], y], [0, 0, 1]])
        return matrix, np.array([self[name] for name in _ORDER[self.is_fisheye]])

    def undistorted_camera(self, size: tuple[int, int]) -> Float[np.ndarray, "3 3"]:
        """(3, 3) intrinsics of the undistorted image of (width, height), integers at pixel centres.

        Raises:
          InputError: as `camera`; or no focal length fits, so that the parameters are not those of a lens.
        """
        return _maps(self, size)[0].copy()

    def undistort(self, image: Shaped[np.ndarray, "h w *channels"], *, nearest: bool = False):
        """The undistorted image, of the same size and dtype; values of masks or depth are not blended (`nearest`).

        Raises:
          InputError: as `undistorted_camera`.
        """
        import cv2

        size = (image.shape[1], image.shape[0])
        straight, x, y = _maps(self, size)
        values = image.astype(np.uint8) if image.dtype == bool else image
        matrix = self.camera(size)[0]
        ratio = float(straight[0, 0] / np.sqrt(matrix[0, 0] * matrix[1, 1]))
        if ratio < _BLURRED and not nearest:
            values = cv2.GaussianBlur(values, (0, 0), 0.5 * math.sqrt(1 / ratio**2 - 1))
        how = cv2.INTER_NEAREST if nearest else cv2.INTER_CUBIC
        return cv2.remap(values, x, y, how, borderMode=cv2.BORDER_REPLICATE).astype(image.dtype)


def lens_of(words: Sequence[str], size: tuple[int, int] | None = None) -> Lens:
    """A lens from its model's name and its parameters in words.

    Raises:
      InputError: as `Lens`, or a word that is not a number.
    """
    model, *numbers = words
    try:
        values = tuple(float(word) for word in numbers)
    except ValueError as error:
        raise InputError(f"The parameters of the lens {model}: {' '.join(numbers)[:80]!r} are not numbers.") from error
    return Lens(model.strip().upper(), values, size)


def parse_lens(text: str) -> Lens:
    """The lens that `str` has written.

    Raises:
      InputError: another text.
    """
    words = text.split()
    if len(words) < 3 or not all(word.isascii() and word.isdecimal() for word in words[1:3]):
        raise InputError(f"{text[:80]!r} is not a lens: MODEL WIDTH HEIGHT PARAMETERS are needed.")
    width, height = int(words[1]), int(words[2])
    return lens_of([words[0], *words[3:]], (width, height) if width and height else None)


@functools.lru_cache(maxsize=4)
def _maps(lens: Lens, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The undistorted image's intrinsics, and where each of its pixels is in the distorted one: (h, w) float32 x, y."""
    import cv2

    matrix, coefficients = lens.camera(size)
    width, height = size
    center = np.array([(width - 1) / 2, (height - 1) / 2])
    x, y = np.meshgrid(np.linspace(0, width - 1, 65), np.linspace(0, height - 1, 65))
    border = np.concatenate([edge(values) for values in [np.stack([x, y], -1)] for edge in _EDGES]) - center

    inside = np.stack([x, y], -1).reshape(-1, 2) - center

    def fits(focal: float) -> bool:
        there = _distorted(border / focal, matrix, coefficients, lens.is_fisheye)
        return bool(np.all((there >= -0.5) & (there <= [width - 0.5, height - 0.5])))

    def folds(focal: float) -> bool:
        grid = _distorted(inside / focal, matrix, coefficients, lens.is_fisheye).reshape(*x.shape, 2)
        (ax, ay), (bx, by) = (np.moveaxis(np.diff(grid, axis=axis), -1, 0) for axis in (1, 0))
        right, down = (ax[:-1], ay[:-1]), (bx[:, :-1], by[:, :-1])
        turned = right[0] * down[1] - right[1] * down[0] <= 0
        return bool(turned.any() or (ax <= 0).any() or (by <= 0).any())

    own, found = float(np.sqrt(matrix[0, 0] * matrix[1, 1])), None
    # The widest that is sharp in the middle and that a pinhole camera can show.
    smallest = max(own * _SMALLEST, 0.5 * float(np.hypot(width, height)) / math.tan(math.radians(_WIDEST / 2)))
    # From narrow to wide, and no further: far outside, polynomials fold back into the image.
    focal = max(own * _LARGEST, smallest)
    while focal >= smallest and fits(focal):
        if folds(focal):
            raise InputError(
                f"The lens {lens} folds: within images of {width}x{height} pixels, points farther from the middle come "
                "nearer again. Check its parameters, or calibrate with a model of more of them."
            )
        found, focal = focal, focal * _STEP
    if found is None:
        raise InputError(
            f"No undistorted image fits into one of {width}x{height} pixels by the lens {lens}: check its parameters."
        )
    if focal < smallest:
        absl.logging.warning(
            "The lens sees more than a pinhole camera can show well: undistorted images are its middle, with a field "
            "of view of %.0f degrees from corner to corner.",
            math.degrees(2 * math.atan(np.hypot(width, height) / 2 / found)),
        )
    straight = np.array([[found, 0, center[0]], [0, found, center[1]], [0, 0, 1]])
    arguments: tuple[Any, ...] = (matrix, coefficients, np.eye(3), straight, size, cv2.CV_32FC1)
    module = cv2.fisheye if lens.is_fisheye else cv2
    return straight, *module.initUndistortRectifyMap(*arguments)


_EDGES = (lambda grid: grid[0], lambda grid: grid[-1], lambda grid: grid[:, 0], lambda grid: grid[:, -1])


def _distorted(rays: np.ndarray, matrix: np.ndarray, coefficients: np.ndarray, is_fisheye: bool) -> np.ndarray:
    """(P, 2) pixels of the distorted image, of (P, 2) rays x/z, y/z."""
    import cv2

    if is_fisheye:
        return cv2.fisheye.distortPoints(rays[:, None], matrix, coefficients)[:, 0]
    points = np.concatenate([rays, np.ones((len(rays), 1))], axis=1)
    return cv2.projectPoints(points, np.zeros(3), np.zeros(3), matrix, coefficients)[0][:, 0]
