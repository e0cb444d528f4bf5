"""A reconstruction as pictures: frames of videos, contact sheets. Pure functions of a scene; `video` writes them.

A *layer* is one kind of picture of a clip, such as its depth in colours; a *film* sets layers side by side, with their
names, their scales and the frame's number. Scales are the clip's: a colour means the same in all of its frames.

    film = Film(panel_layers(scene, motion), time)
    film[7]                       # (height, width, 3) uint8
    write_mp4("panel.mp4", film, frame_rate(time))
"""

from __future__ import annotations

import dataclasses
import functools
import math
import pathlib
from collections.abc import Callable, Sequence
from typing import overload

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from easi3r_jax.core.types import MotionMaps, Scene4D
from easi3r_jax.io.pictures.colors import Scale, robust_scale, tinted

_BACKGROUND, _TEXT, _FAINT = (40, 43, 50), (236, 238, 242), (165, 170, 180)
_FONT_SIZE, _STRIP, _MARGIN = 13, 22, 8
_BAR, _BAR_TEXT, _TICKS = 12, 52, 5
#: Long sides in pixels below which pictures are enlarged: of one that stands alone, and of one among others.
ALONE, AMONG = 384, 288
SCORE, ATTENTION = Scale("inferno", 0.0, 1.0), Scale("cividis", 0.0, 1.0)


@dataclasses.dataclass(frozen=True, eq=False)
class Layer:
    """One kind of picture of a clip.

    Attributes:
      name: what it shows, with the unit.
      draw: frame t, (height, width, 3) uint8; as large for all frames.
      scale: what its colours stand for; None where they are colours of the image.
    """

    name: str
    draw: Callable[[int], np.ndarray]
    scale: Scale | None = None


def image_layer(scene: Scene4D) -> Layer:
    """The frames themselves."""
    return Layer("image", lambda t: np.asarray(scene.rgb[t]))


def depth_scale(scene: Scene4D) -> Scale:
    """Of the clip's depth."""
    return robust_scale(scene.depth, "magma_r", log=True)


def confidence_scale(scene: Scene4D) -> Scale:
    """Of the clip's confidence, which is above 1; 0 is none: the clean-up sets that of floating points so."""
    return robust_scale(scene.confidence, "viridis", log=True)


def has_score(scene: Scene4D, motion: MotionMaps | None) -> bool:
    """Whether motion was looked for. Clips done in windows have a score, and no maps of the clip."""
    return motion is not None or bool(np.any(scene.dynamic_score))


def has_masks(scene: Scene4D, motion: MotionMaps | None) -> bool:
    """Whether there is something to say of what moves: masks may also come from flow, or be given."""
    return has_score(scene, motion) or bool(np.any(scene.dynamic_mask))


def depth_layer(scene: Scene4D) -> Layer:
    """Depth: near is bright, and equal ratios are equal steps, so that a room and a street are both seen."""
    scale = depth_scale(scene)
    return Layer("depth (world units)", lambda t: scale.colors(scene.depth[t]), scale)


def confidence_layer(scene: Scene4D) -> Layer:
    """Confidence: high is bright; grey where the clean-up has taken it away."""
    scale = confidence_scale(scene)
    return Layer("confidence", lambda t: scale.colors(scene.confidence[t]), scale)


def score_layer(scene: Scene4D) -> Layer:
    """The dynamic score: high is bright."""
    return Layer("dynamic score", lambda t: SCORE.colors(scene.dynamic_score[t]), SCORE)


def mask_layer(scene: Scene4D) -> Layer:
    """The frames in grey, what moves tinted red."""
    return Layer("what moves", lambda t: tinted(np.asarray(scene.rgb[t]), np.asarray(scene.dynamic_mask[t])))


def attention_layers(scene: Scene4D, motion: MotionMaps) -> list[Layer]:
    """The four maps of the attention between the frames and the score that is made of them, three in a row."""
    height, width = scene.depth.shape[1:]

    def of(name: str, values: np.ndarray) -> Layer:
        rows, columns = (np.arange(n) * m // n for n, m in zip((height, width), values.shape[1:], strict=True))
        return Layer(
            f"attention, {name}", lambda t: ATTENTION.colors(np.asarray(values[t])[np.ix_(rows, columns)]), ATTENTION
        )

    maps = motion.temporal
    return [
        image_layer(scene),
        of("mean, source", maps.mean_src),
        of("mean, reference", maps.mean_ref),
        score_layer(scene),
        of("std, source", maps.std_src),
        of("std, reference", maps.std_ref),
    ]


def panel_layers(scene: Scene4D, *, score: bool = True, masks: bool = True) -> list[Layer]:
    """Image and depth, score and mask (or confidence, where there is nothing of what moves)."""
    moving = [score_layer(scene)] * score + [mask_layer(scene)] * masks
    return [image_layer(scene), depth_layer(scene), *(moving or [confidence_layer(scene)])]


class Film(Sequence[np.ndarray]):
    """Layers side by side, a picture for each frame, drawn when it is asked for.

    Args:
      layers: of one size.
      time: (T,) seconds.
      columns: layers in a row; 0: chosen by their number and shape.
    """

    def __init__(self, layers: Sequence[Layer], time: np.ndarray, columns: int = 0):
        self.layers, self.time = list(layers), np.asarray(time)
        height, width = self.layers[0].draw(0).shape[:2]
        self._factor = enlargement(height, width, ALONE if len(self.layers) == 1 else AMONG)
        self._size = height, width = self._factor * height, self._factor * width
        columns = min(columns or _columns(len(self.layers), height, width), len(self.layers))
        beside = [
            (_MARGIN // 2 + _BAR + _BAR_TEXT) * any(layer.scale for layer in self.layers[c::columns])
            for c in range(columns)
        ]
        # Of narrow pictures, names are wider: they would be cut to one and the same word.
        rooms = [
            max(width + beside[c], *(_text_width(layer.name) for layer in self.layers[c::columns]))
            for c in range(columns)
        ]
        lefts = [_MARGIN + sum(rooms[:c]) + c * _MARGIN for c in range(columns)]
        rows = math.ceil(len(self.layers) / columns)
        self._places = [
            (_STRIP + (i // columns) * (height + _STRIP), lefts[i % columns]) for i in range(len(self.layers))
        ]
        last = _MARGIN + _text_width(self._when(len(self.time) - 1))
        canvas = _Canvas(rows * (height + _STRIP) + _STRIP, max(lefts[-1] + rooms[-1], last) + _MARGIN)
        for i, (layer, (top, left)) in enumerate(zip(self.layers, self._places, strict=True)):
            canvas.text(left, top - _STRIP // 2, layer.name, rooms[i % columns])
            if layer.scale is not None:
                canvas.bar(layer.scale, top, left + width + _MARGIN // 2, height)
        self._empty = canvas.pixels()

    def __len__(self) -> int:
        return len(self.time)

    @overload
    def __getitem__(self, t: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, t: slice) -> list[np.ndarray]: ...
    def __getitem__(self, t):
        if isinstance(t, slice):
            return [self[i] for i in range(*t.indices(len(self)))]
        if not -len(self) <= t < len(self):
            raise IndexError(t)
        t %= len(self)
        picture = self._empty.copy()
        height, width = self._size
        for layer, (top, left) in zip(self.layers, self._places, strict=True):
            picture[top : top + height, left : left + width] = enlarged(layer.draw(t), self._factor)
        canvas = _Canvas(_STRIP, picture.shape[1])
        canvas.text(_MARGIN, _STRIP // 2, self._when(t), picture.shape[1] - 2 * _MARGIN, _FAINT)
        picture[-_STRIP:] = canvas.pixels()
        return picture

    def _when(self, t: int) -> str:
        return f"frame {t}, {self.time[t]:.2f} s"

    def region(self, number: int) -> tuple[slice, slice]:
        """Rows and columns of the pictures that layer `number` fills."""
        top, left = self._places[number]
        return slice(top, top + self._size[0]), slice(left, left + self._size[1])


def contact_sheet(layer: Layer, num_frames: int, *, most: int = 24, columns: int = 0) -> np.ndarray:
    """Frames spread evenly over the clip, each with its number, in rows.

    Args:
      layer: what is shown.
      num_frames: of the clip.
      most: frames on the sheet.
      columns: frames in a row; 0: chosen by their number and shape.

    Returns:
      (height, width, 3) uint8.
    """
    frames = spread(num_frames, most)
    height, width = layer.draw(0).shape[:2]
    larger, smaller = enlargement(height, width, 150), max(1, round(max(height, width) / 200))
    height, width = larger * math.ceil(height / smaller), larger * math.ceil(width / smaller)
    columns = min(columns or max(2, round(1200 / (width + _MARGIN))), len(frames))
    beside = (_MARGIN // 2 + _BAR + _BAR_TEXT) * (layer.scale is not None)
    rows = math.ceil(len(frames) / columns)
    across = max(columns * (width + _MARGIN) + beside, _text_width(layer.name) + _MARGIN)
    canvas = _Canvas(_STRIP + rows * (height + _STRIP) + _MARGIN // 2, _MARGIN + across)
    canvas.text(_MARGIN, _STRIP // 2, layer.name, canvas.image.width - 2 * _MARGIN)
    places = [
        (_STRIP + (i // columns) * (height + _STRIP), _MARGIN + (i % columns) * (width + _MARGIN))
        for i in range(len(frames))
    ]
    for t, (top, left) in zip(frames, places, strict=True):
        canvas.text(left, top + height + _STRIP // 2, str(t), width, _FAINT)
    if layer.scale is not None:
        canvas.bar(layer.scale, _STRIP, columns * (width + _MARGIN) + _MARGIN // 2, min(height, 2 * ALONE))
    sheet = canvas.pixels()
    for t, (top, left) in zip(frames, places, strict=True):
        picture = np.asarray(Image.fromarray(layer.draw(t)).reduce(smaller))
        sheet[top : top + height, left : left + width] = enlarged(picture, larger)
    return sheet


def spread(num_frames: int, most: int) -> list[int]:
    """At most so many of a clip's frames, the first and the last among them, as evenly as can be."""
    return np.unique(np.linspace(0, num_frames - 1, min(num_frames, most)).round().astype(int)).tolist()


def enlargement(height: int, width: int, least: int) -> int:
    """The smallest whole factor by which the long side is no shorter than `least`."""
    return max(1, math.ceil(least / max(height, width)))


def enlarged(picture: np.ndarray, factor: int) -> np.ndarray:
    """Each pixel a square of pixels: nothing is smoothed, nothing is invented."""
    return picture.repeat(factor, axis=0).repeat(factor, axis=1)


def _columns(count: int, height: int, width: int) -> int:
    """Of the layers of a film: about as wide as a screen."""
    if count > 4:
        return 3
    if count == 4:
        return 2 if width >= height else 4
    return count


@functools.cache
def _font() -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib: the same on every machine."""
    return ImageFont.truetype(pathlib.Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf", _FONT_SIZE)


def _text_width(text: str) -> int:
    """Of one line."""
    return math.ceil(_font().getlength(text))


class _Canvas:
    """What does not change from frame to frame: names and scales."""

    def __init__(self, height: int, width: int):
        self.image = Image.new("RGB", (width, height), _BACKGROUND)
        self._draw = ImageDraw.Draw(self.image)

    def text(self, left: int, middle: int, text: str, width: int, color: tuple[int, int, int] = _TEXT) -> None:
        """One line, cut where it is too long."""
        while text and self._draw.textlength(text, _font()) > width:
            text = text[:-1]
        self._draw.text((left, middle), text, color, _font(), anchor="lm")

    def bar(self, scale: Scale, top: int, left: int, height: int) -> None:
        """A scale from low (below) to high, with numbers: those of the end colours, and between."""
        numbers = scale.numbers(np.linspace(1, 0, height))
        colors = np.broadcast_to(scale.colors(numbers)[:, None], (height, _BAR, 3))
        self.image.paste(Image.fromarray(np.ascontiguousarray(colors)), (left, top))
        count = _TICKS if height >= _TICKS * _STRIP else 2
        for i, share in enumerate(np.linspace(1, 0, count)):
            y = top + (height - 1) * i / (count - 1)
            self._draw.line((left + _BAR, y, left + _BAR + 3, y), _FAINT)
            anchor = "la" if i == 0 else "ld" if i == count - 1 else "lm"
            self._draw.text((left + _BAR + 6, y), f"{float(scale.numbers(share)):.3g}", _FAINT, _font(), anchor=anchor)

    def pixels(self) -> np.ndarray:
        return np.array(self.image)
