"""Colour profiles of images (ICC): phones write Display P3, cameras Adobe RGB."""

from __future__ import annotations

import io
import pathlib

import absl.logging
from PIL import Image, ImageCms


def in_srgb(image: Image.Image, profile: bytes | None, path: pathlib.Path) -> Image.Image:
    """The image with the colours of sRGB; a profile that cannot be applied is said in one line.

    Args:
      image: of any mode; only colours of 8 bits are converted.
      profile: of the file, if it has one.
      path: of the file, for the line.
    """
    if not profile or image.mode not in ("RGB", "RGBA", "CMYK"):
        return image
    try:
        given = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if image.mode != "CMYK" and _is_srgb(given):
            return image
        mode = "RGB" if image.mode == "CMYK" else image.mode
        converted = ImageCms.profileToProfile(
            image, given, ImageCms.createProfile("sRGB"), ImageCms.Intent.RELATIVE_COLORIMETRIC, outputMode=mode
        )
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        absl.logging.warning("%s: its colour profile is damaged or of another kind: colours are read as stored.", path)
        return image
    return image if converted is None else converted


def _is_srgb(profile: ImageCms.ImageCmsProfile) -> bool:
    """Whether a profile names itself sRGB: then nothing is converted, not even by rounding."""
    return "srgb" in ImageCms.getProfileDescription(profile).lower()
