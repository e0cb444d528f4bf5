"""Frames of videos and contact sheets, as pure functions of a scene; `movies` writes them.

A *layer* is one kind of picture of a clip, for example its colour-mapped depth. A *film* shows layers side by side,
with their names, their scales and the frame's number. A scale is for the clip: a colour means the same in all frames.

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

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from easi3r_jax.core.types import MotionMaps, Scene4D
from easi3r_jax.io.pictures.colors import Scale, robust_scale, tinted

_BACKGROUND, _TEXT, _FAINT = (40, 43, 50), (236, 238, 242), (165, 170, 180)
_FONT_SIZE, _STRIP, _MARGIN = 13, 22, 8
_BAR, _BAR_TEXT, _TICKS = 12, 52, 5
#: Smallest long side in pixels, of a picture that stands alone and of one of several. Smaller ones are enlarged.
ALONE_SIZE, TILE_SIZE = 384, 288
SCORE, ATTENTION = Scale("inferno", 0.0, 1.0), Scale("cividis", 0.0, 1.0)


@dataclasses.dataclass(frozen=True, eq=False)
class Layer:
    """One kind of picture of a clip.

    Attributes:
      name: what it shows, with the unit.
      draw: function from a frame number to (height, width, 3) uint8, of the same size for all frames.
      scale: its colour scale; None if the colours are the image's.
    """

    name: str
    draw: Callable[[int], np.ndarray]
    scale: Scale | None = None


def image_layer(scene: Scene4D) -> Layer:
    """The frames themselves."""
    return Layer("image", lambda t: np.asarray(scene.rgb[t]))


def depth_scale(scene: Scene4D) -> Scale:
    """The colour scale of the clip's depth."""
    return robust_scale(scene.depth, "magma_r", log=True)


def confidence_scale(scene: Scene4D) -> Scale:
    """The colour scale of the clip's confidence, which is above 1. The clean-up sets floating points to 0: missing."""
    return robust_scale(scene.confidence, "viridis", log=True)


def has_score(scene: Scene4D, motion: MotionMaps | None) -> bool:
    """Whether there is a dynamic score. A clip reconstructed in windows has a score but no attention maps."""
    return motion is not None or bool(np.any(scene.dynamic_score))


def has_masks(scene: Scene4D, motion: MotionMaps | None) -> bool:
    """Whether there are dynamic masks to show. Besides the score, they may come from flow or from the user."""
    return has_score(scene, motion) or bool(np.any(scene.dynamic_mask))


def depth_layer(scene: Scene4D) -> Layer:
    """Depth: near is bright; logarithmic, so that both a room and a street can be seen."""
    scale = depth_scale(scene)
    return Layer("depth (world units)", lambda t: scale.colors(scene.depth[t]), scale)


def confidence_layer(scene: Scene4D) -> Layer:
    """Confidence: high is bright; grey where the clean-up has set it to 0."""
    scale = confidence_scale(scene)
    return Layer("confidence", lambda t: scale.colors(scene.confidence[t]), scale)


def score_layer(scene: Scene4D) -> Layer:
    """The dynamic score: high is bright."""
    return Layer("dynamic score", lambda t: SCORE.colors(scene.dynamic_score[t]), SCORE)


def mask_layer(scene: Scene4D) -> Layer:
    """The frames in grey, dynamic regions tinted red."""
    return Layer("dynamic regions", lambda t: tinted(np.asarray(scene.rgb[t]), np.asarray(scene.dynamic_mask[t])))


def attention_layers(scene: Scene4D, motion: MotionMaps) -> list[Layer]:
    """The frames, the four attention maps and the score computed from them; for rows of three."""
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
    """Image and depth; then score and mask, or confidence if there are neither."""
    dynamic = [score_layer(scene)] * score + [mask_layer(scene)] * masks
    return [image_layer(scene), depth_layer(scene), *(dynamic or [confidence_layer(scene)])]


class Film(Sequence[np.ndarray]):
    """Layers side by side: one picture per frame, drawn on demand.

    Args:
      layers: all of one size.
      time: (T,) seconds.
      columns: layers per row; 0: chosen by their number and shape.
    """

    def __init__(self, layers: Sequence[Layer], time: np.ndarray, columns: int = 0):
        self.layers, self.time = list(layers), np.asarray(time)
        height, width = self.layers[0].draw(0).shape[:2]
        self._factor = enlargement(height, width, ALONE_SIZE if len(self.layers) == 1 else TILE_SIZE)
        self._size = height, width = self._factor * height, self._factor * width
        columns = min(columns or _columns(len(self.layers), height, width), len(self.layers))
        beside = [
            (_MARGIN // 2 + _BAR + _BAR_TEXT) * any(layer.scale for layer in self.layers[c::columns])
            for c in range(columns)
        ]
        # Names may be wider than narrow pictures: cut to that width, they would all read the same.
        column_widths = [
            max(width + beside[c], *(_text_width(layer.name) for layer in self.layers[c::columns]))
            for c in range(columns)
        ]
        lefts = [_MARGIN + sum(column_widths[:c]) + c * _MARGIN for c in range(columns)]
        rows = math.ceil(len(self.layers) / columns)
        self._places = [
            (_STRIP + (i // columns) * (height + _STRIP), lefts[i % columns]) for i in range(len(self.layers))
        ]
        last = _MARGIN + _text_width(self._when(len(self.time) - 1))
        canvas = _Canvas(rows * (height + _STRIP) + _STRIP, max(lefts[-1] + column_widths[-1], last) + _MARGIN)
        for i, (layer, (top, left)) in enumerate(zip(self.layers, self._places, strict=True)):
            canvas.text(left, top - _STRIP // 2, layer.name, column_widths[i % columns])
            if layer.scale is not None:
                canvas.bar(layer.scale, top, left + width + _MARGIN // 2, height)
        self._template = canvas.pixels()

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
        picture = self._template.copy()
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
        """The rows and columns that layer `number` fills in the pictures."""
        top, left = self._places[number]
        return slice(top, top + self._size[0]), slice(left, left + self._size[1])


def contact_sheet(layer: Layer, num_frames: int, *, max_frames: int = 24, columns: int = 0) -> np.ndarray:
    """Frames evenly spaced over the clip, each with its number, in rows.

    Args:
      layer: what is shown.
      num_frames: of the clip.
      max_frames: largest number of frames on the sheet.
      columns: frames per row; 0: chosen by their number and shape.

    Returns:
      (height, width, 3) uint8.
    """
    frames = spread(num_frames, max_frames)
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
        canvas.bar(layer.scale, _STRIP, columns * (width + _MARGIN) + _MARGIN // 2, min(height, 2 * ALONE_SIZE))
    sheet = canvas.pixels()
    for t, (top, left) in zip(frames, places, strict=True):
        picture = np.asarray(Image.fromarray(layer.draw(t)).reduce(smaller))
        sheet[top : top + height, left : left + width] = enlarged(picture, larger)
    return sheet


def spread(num_frames: int, max_frames: int) -> list[int]:
    """At most `max_frames` of a clip's frames, evenly spaced, including the first and the last."""
    return np.unique(np.linspace(0, num_frames - 1, min(num_frames, max_frames)).round().astype(int)).tolist()


def enlargement(height: int, width: int, min_size: int) -> int:
    """The smallest integer factor that makes the long side at least `min_size`."""
    return max(1, math.ceil(min_size / max(height, width)))


def enlarged(picture: np.ndarray, factor: int) -> np.ndarray:
    """Enlarges by an integer factor: each pixel becomes a square, without interpolation."""
    return picture.repeat(factor, axis=0).repeat(factor, axis=1)


def _columns(count: int, height: int, width: int) -> int:
    """Columns of a film's layers, for about the aspect of a screen."""
    if count > 4:
        return 3
    if count == 4:
        return 2 if width >= height else 4
    return count


@functools.cache
def _font() -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which is shipped with matplotlib and so the same on every machine."""
    import matplotlib

    return ImageFont.truetype(pathlib.Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf", _FONT_SIZE)


def _text_width(text: str) -> int:
    """Width of one line, in pixels."""
    return math.ceil(_font().getlength(text))


class _Canvas:
    """An image on which texts and scales are drawn."""

    def __init__(self, height: int, width: int):
        self.image = Image.new("RGB", (width, height), _BACKGROUND)
        self._draw = ImageDraw.Draw(self.image)

    def text(self, left: int, middle: int, text: str, width: int, color: tuple[int, int, int] = _TEXT) -> None:
        """Draws one line of text, truncated to the width."""
        while text and self._draw.textlength(text, _font()) > width:
            text = text[:-1]
        self._draw.text((left, middle), text, color, _font(), anchor="lm")

    def bar(self, scale: Scale, top: int, left: int, height: int) -> None:
        """Draws a scale, low at the bottom and high at the top, with numbers at its ends and between."""
        numbers = scale.numbers(np.linspace(1, 0, height))
        colors = np.broadcast_to(scale.colors(numbers)[:, None], (height, _BAR, 3))
        self.image.paste(Image.fromarray(np.ascontiguousarray(colors)), (left, top))
        count = _TICKS if height >= _TICKS * _STRIP else 2
        for i, position in enumerate(np.linspace(1, 0, count)):
            y = top + (height - 1) * i / (count - 1)
            self._draw.line((left + _BAR, y, left + _BAR + 3, y), _FAINT)
            anchor = "la" if i == 0 else "ld" if i == count - 1 else "lm"
            self._draw.text(
                (left + _BAR + 6, y), f"{float(scale.numbers(position)):.3g}", _FAINT, _font(), anchor=anchor
            )

    def pixels(self) -> np.ndarray:
        return np.array(self.image)
