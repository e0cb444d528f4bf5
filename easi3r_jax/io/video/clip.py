"""A source of frames, before they are resized."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator
from fractions import Fraction

from PIL import Image

#: Frames per second for sources without a rate (images, raw streams); the published programs use it for images too.
ASSUMED_RATE = Fraction(24)


@dataclasses.dataclass(frozen=True)
class ClipFrame:
    """One frame of a source. It is not converted (an image file is not even opened) before `read` is called.

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
class ClipReader:
    """A source of frames.

    Attributes:
      name: name of the source, for messages.
      frames: the frames in order. When exhausted, it has checked the whole source; closing it early frees the source.
      count: number of frames that the source declares (it may be slightly off), or None.
      rate: frames per second; the mean if it varies.
    """

    name: str
    frames: Generator[ClipFrame, None, None]
    count: int | None
    rate: Fraction
