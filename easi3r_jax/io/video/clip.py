"""What a source of frames yields, before anything is resized."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator
from fractions import Fraction

from PIL import Image

#: Frames per second where the source tells none (images, raw streams); for images the published programs' too.
ASSUMED_RATE = Fraction(24)


@dataclasses.dataclass(frozen=True)
class ClipFrame:
    """One frame of a source. Nothing is converted, and of images nothing is opened, before `read` is called.

    Attributes:
      index: number in the source, from 0.
      time: seconds since the source's first frame, exact.
      label: names the frame in messages.
      read: gives the upright RGB image at full size; raises InputError where it cannot be read.
      name: of the image's file; None for frames of a video.
    """

    index: int
    time: Fraction
    label: str
    read: Callable[[], Image.Image]
    name: str | None = None


@dataclasses.dataclass(frozen=True)
class Clip:
    """A source of frames.

    Attributes:
      name: names the source in messages.
      frames: the frames in order. Run to its end it has checked the whole source; closed early it frees it.
      count: number of frames where the source declares one (it may be a little off), else None.
      rate: frames per second, the mean where it varies.
    """

    name: str
    frames: Generator[ClipFrame, None, None]
    count: int | None
    rate: Fraction
