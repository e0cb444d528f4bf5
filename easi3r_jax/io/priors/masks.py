"""A user's masks of dynamic regions.

What a pixel value means is decided for all masks of a clip together. The first line that applies:

    palette       every index except 0 is dynamic, as in DAVIS; with a palette of grays, its grays count, as below
    alpha         if some pixels of a clip's masks are transparent and others are not, alpha counts, as a gray below,
                  whatever the colours
    real numbers  from 0 to 1: above 0.5 is dynamic
    two values    the larger one is dynamic, whatever both are: 0 and 1, 0 and 255, 16 and 235, black and white
    objects       numbers or colours of objects, each in a region of its own: every value except 0 is dynamic
    soft masks    smooth edges, probabilities, heat maps, JPEG: above half of the range is dynamic

Of colours the brightest channel counts. Objects and soft masks are told apart by where values lie (`mask_values`): in a
soft mask they rise from low to high, objects stand beside the background. What may be one or the other is refused:
numbers of objects with white (which may be *ignore*), numbers of objects that are not exact (JPEG), soft masks that
nowhere exceed half of the range.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Sequence

import absl.logging
import numpy as np
from PIL import Image

from easi3r_jax.core.arrays import Bool
from easi3r_jax.core.errors import InputError
from easi3r_jax.core.geometry.grids import resample_nearest
from easi3r_jax.core.lens import Lens
from easi3r_jax.core.types import Frames
from easi3r_jax.io.priors.mask_values import Statistics, threshold
from easi3r_jax.io.priors.matching import SourceFrames, by_name_or_count
from easi3r_jax.io.video.folders import list_images, require_one_kind
from easi3r_jax.io.video.images import decode_image, to_rgb

# Formats that change values a little; WebP, if it is not lossless.
_LOSSY = frozenset({"JPEG", "MPO", "HEIF"})
# The largest alpha that is transparent.
_TRANSPARENT = 127
# Part of the opaque pixels that are black or white, above which colours are a mask too.
_MOST = 0.9
# Part of all pixels above which masks may be inverted.
_MANY = 0.75


def load_masks(
    folder: str | os.PathLike,
    frames: Frames,
    stopped_early: bool = False,
    source_names: Sequence[str] = (),
    *,
    marked: str = "as dynamic",
) -> Bool[np.ndarray, "T H W"]:
    """Reads a folder of mask images, and selects, scales and crops them like the frames.

    There is one image per frame of the source, in natural order (`files.names.natural_order`), or one per frame of the
    clip; those with the names of the source's images belong to these. Images have the size of the original images, and
    are then sampled at the pixel nearest to each of the frame's; or they have the size of the frames. What their pixels
    mean: see the module. If no mask marks anything, or all mark everything, or they mark most pixels, one line says so.

    Args:
      folder: of PNGs, or of other images that are read as frames are.
      frames: the clip. If its originals have a lens's distortion, masks of their size have it, too; where frames
        have that size, masks are of the frames, without it (as `load_depth` takes depth).
      stopped_early: reading the source stopped before its end (`FrameConfig.first`): it may have any number of frames.
      source_names: file names of all images of the source, if it is a folder; they give its number of frames.
      marked: what marked pixels are, for messages.

    Returns:
      (T, H, W) bool, True at dynamic pixels.

    Raises:
      InputError: the folder does not exist, an image cannot be read, the number or the size of the images is wrong, or
        it cannot be told what the values mean.
    """
    folder = pathlib.Path(folder).expanduser()
    paths = list_images(folder, name_others=True)
    require_one_kind(paths, folder)
    source = SourceFrames.of(frames, stopped_early, source_names)
    chosen = by_name_or_count([path.name for path in paths], source, f"{folder}: masks")
    own_size = (int(frames.rgb.shape[1]), int(frames.rgb.shape[2]))
    source_size = frames.original_size
    masks = []
    for entry in chosen:
        path = paths[entry]
        mask = decode_image(path, functools.partial(_read, path=path))
        if (size := mask.values.shape) not in (source_size, own_size):
            raise InputError(
                f"The mask {path} is {_size(size)} pixels, the video {_size(source_size)} and its frames "
                f"{_size(own_size)}: resize it to one of these sizes."
            )
        if frames.lens is not None and size != own_size:
            mask = mask.changed(functools.partial(_undistorted, lens=frames.lens))
        if size != own_size:  # nothing of the full size is kept
            matrix = np.asarray(frames.frame_from_source)
            mask = mask.changed(lambda x, matrix=matrix: resample_nearest(x[None], matrix, own_size)[0])
        masks.append(mask)
    dynamic = _dynamic(masks, str(folder))
    _say_if_suspicious(dynamic, folder, marked)
    return dynamic


@dataclasses.dataclass(frozen=True, eq=False)
class _Mask:
    """One mask as stored.

    Attributes:
      values: (h, w) grays, or of a palette whether the index is not 0.
      alpha: (h, w) uint8; None: opaque.
      gray: statistics of the grays; None for indices of a palette.
      opacity: statistics of alpha.
      is_palette: grays of a palette.
      opaque, marked: number of opaque pixels; of those that are black and white, 0 without both.
    """

    values: np.ndarray
    alpha: np.ndarray | None
    gray: Statistics | None
    opacity: Statistics
    is_palette: bool = False
    opaque: int = 0
    marked: int = 0

    def changed(self, warp: Callable[[np.ndarray], np.ndarray]) -> _Mask:
        """The mask at other pixels; the statistics remain."""
        return dataclasses.replace(
            self, values=warp(self.values), alpha=None if self.alpha is None else warp(self.alpha)
        )


def _undistorted(values: np.ndarray, lens: Lens) -> np.ndarray:
    """Values without the distortion of a lens. OpenCV takes no integers of 32 bits; float64 holds them."""
    return lens.undistort(values.astype(np.float64), nearest=True).astype(values.dtype)


_OPAQUE = Statistics(values=(255.0,), num_values=1)


def _read(image: Image.Image, path: pathlib.Path) -> _Mask:
    if image.mode in ("RGBa", "La"):
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    alpha, opacity = None, _OPAQUE
    has_transparency = image.mode in ("P", "PA") and (image.mode == "PA" or "transparency" in image.info)
    if image.mode in ("RGBA", "LA") or has_transparency:
        alpha = np.asarray(image.convert("RGBA"))[..., 3]
        opacity = Statistics.of(alpha, 255, is_lossy=False)
    if image.mode in ("P", "PA"):
        indices = np.asarray(image) if image.mode == "P" else np.asarray(image)[..., 0]
        colors = np.array(image.getpalette() or [0, 0, 0]).reshape(-1, 3)
        used = np.unique(indices)
        grays = colors[used[used < len(colors)], 0]
        if len(np.unique(grays)) < len(used) or np.ptp(colors[used], axis=1).any():
            if alpha is None or alpha.min() > _TRANSPARENT:
                _check_palette(colors, used, path)
            return _Mask(indices != 0, alpha, None, opacity)
        values, largest = colors[:, 0].astype(np.uint8)[indices], 255
        return _Mask(values, alpha, Statistics.of(values, largest, is_lossy=False), opacity, is_palette=True)
    values, largest = _values(image, path)
    opaque = np.ones(values.shape, bool) if alpha is None else alpha > _TRANSPARENT
    black, white = int((opaque & (values == 0)).sum()), int((opaque & (values == largest)).sum())
    statistics = Statistics.of(values, largest, is_lossy=_is_lossy(image, path))
    marked = black + white if black and white else 0
    return _Mask(values, alpha, statistics, opacity, opaque=int(opaque.sum()), marked=marked)


def _values(image: Image.Image, path: pathlib.Path) -> tuple[np.ndarray, float]:
    """(h, w) values, of a colour the brightest channel, and the largest value of their range."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values = np.asarray(image)
        if image.mode == "F" and not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
            raise InputError(f"The mask {path} has real values that are not from 0 to 1: save it with 8 bits.")
        if values.min() < 0:
            raise InputError(f"The mask {path} has values below 0: save static pixels as 0, dynamic ones as 255.")
        return values, {"I": 2.0**31 - 1, "F": 1.0}.get(image.mode, 65535)
    if image.mode == "L":
        return np.asarray(image), 255
    return np.asarray(to_rgb(image, path)).max(axis=-1), 255


def _is_lossy(image: Image.Image, path: pathlib.Path) -> bool:
    if image.format != "WEBP":
        return image.format in _LOSSY
    with path.open("rb") as file:  # chunks of kind, length, content, and a byte after an odd length
        file.seek(12)
        while len(head := file.read(8)) == 8:
            if head[:4] in (b"VP8 ", b"VP8L"):
                return head[:4] == b"VP8 "
            length = int.from_bytes(head[4:], "little")
            file.seek(length + length % 2, os.SEEK_CUR)
    return True


def _check_palette(colors: np.ndarray, used: np.ndarray, path: pathlib.Path) -> None:
    """Raises InputError for a palette whose index 0 is not the background."""
    used = used[used < len(colors)]
    is_bright = colors[0].max() > 127  # a black-and-white image that a program saved with a palette
    is_sorted_otherwise = colors[0].any() and (colors[used] == 0).all(axis=1).any()
    if is_bright or is_sorted_otherwise:
        raise InputError(
            f"The mask {path} has a palette whose index 0, the background, is {'bright' if is_bright else 'not black'}:"
            " save it as a gray image."
        )


def _dynamic(masks: Sequence[_Mask], name: str) -> np.ndarray:
    """(T, H, W) bool.

    Raises:
      InputError: the values may mean one thing or another.
    """
    opacities = [mask.opacity for mask in masks]
    alphas = [value for opacity in opacities for value in opacity.values]
    if min(alphas) <= _TRANSPARENT and max(alphas) > 0 and min(alphas) < max(alphas):
        if sum(mask.marked for mask in masks) > _MOST * sum(mask.opaque for mask in masks):
            raise InputError(f"{name}: the masks are black and white and also transparent: save them without alpha.")
        limit = threshold(opacities, name, has_white=True)
        full = np.full(masks[0].values.shape, 255, np.uint8)
        return np.stack([(full if mask.alpha is None else mask.alpha) > limit for mask in masks])
    grays = [mask.gray for mask in masks if mask.gray is not None]
    limit = threshold(grays, name, has_white=all(mask.is_palette for mask in masks if mask.gray)) if grays else 0
    return np.stack([mask.values > (0 if mask.gray is None else limit) for mask in masks])


def _say_if_suspicious(masks: np.ndarray, folder: pathlib.Path, marked: str) -> None:
    """One line on masks that mark nothing, everything, or nearly everything."""
    share = masks.mean(axis=(1, 2))
    if not share.any():
        absl.logging.warning("%s: all %d masks are empty: no pixel is marked %s.", folder, len(masks), marked)
    elif ((share == 0) | (share == 1)).all():
        full = int((share == 1).sum())
        absl.logging.warning("%s: %d of %d masks mark every pixel, the others none.", folder, full, len(masks))
    elif masks.mean() > _MANY:
        absl.logging.warning(
            "%s: the masks mark %.0f%% of all pixels %s; are they inverted?", folder, 100 * masks.mean(), marked
        )


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]}"
