"""Masks as programs write them, at realistic sizes: moving objects of any size, and their encodings."""

from __future__ import annotations

import io

import cv2
import numpy as np
from PIL import Image, ImageFilter

HEIGHT, WIDTH = 288, 512


def objects(rng: np.random.Generator, count: int, length: int = 3, *, smallest: float = 12.0) -> np.ndarray:
    """(T, H, W) int32 numbers 1..count of ellipses and rectangles that move; later ones cover earlier ones."""
    found = np.zeros((length, HEIGHT, WIDTH), np.int32)
    for number in range(1, count + 1):
        centre, step = rng.uniform((40, 40), (WIDTH - 40, HEIGHT - 40)), rng.normal(0, 6, 2)
        half = np.exp(rng.uniform(np.log(smallest / 2), np.log(60), 2))
        is_round = rng.random() < 0.6
        angle = rng.uniform(0, 180)
        for t in range(length):
            middle = centre + t * step
            if is_round:
                corners = cv2.ellipse2Poly(
                    (int(middle[0]), int(middle[1])), (int(half[0]) + 1, int(half[1]) + 1), int(angle), 0, 360, 5
                )
            else:
                corners = cv2.boxPoints(((float(middle[0]), float(middle[1])), tuple(2 * half), angle)).astype(np.int32)
            cv2.fillPoly(found[t], [np.asarray(corners, np.int32)], number)
    return found


def distance(inside: np.ndarray) -> np.ndarray:
    """(H, W) signed distance to the outline in pixels, positive inside."""
    return cv2.distanceTransform(inside.astype(np.uint8), cv2.DIST_L2, 5) - cv2.distanceTransform(
        (~inside).astype(np.uint8), cv2.DIST_L2, 5
    )


def saved_as_jpeg(values: np.ndarray, quality: int, form: str = "JPEG") -> np.ndarray:
    """What a program that opens and saves such a file makes of (H, W) or (H, W, 3) uint8."""
    file = io.BytesIO()
    Image.fromarray(values).save(file, form, quality=quality)
    with Image.open(file) as image:
        return np.asarray(image.convert("L") if values.ndim == 2 else image.convert("RGB"))


def sigmoid(inside: np.ndarray, softness: float, top: float = 255) -> np.ndarray:
    """(H, W) float: a network's probability times `top`."""
    return top / (1 + np.exp(np.clip(-distance(inside) / softness, -60, 60)))


def blurred(values: np.ndarray, radius: float) -> np.ndarray:
    """(H, W) uint8 after a Gaussian blur."""
    return np.asarray(Image.fromarray(values.astype(np.uint8)).filter(ImageFilter.GaussianBlur(radius)))


def enlarged(values: np.ndarray, factor: int, how: Image.Resampling) -> np.ndarray:
    """(H, W) uint8, made small by averaging and large again."""
    image = Image.fromarray(values.astype(np.uint8))
    small = image.resize((WIDTH // factor, HEIGHT // factor), Image.Resampling.BOX)
    return np.asarray(small.resize((WIDTH, HEIGHT), how))
