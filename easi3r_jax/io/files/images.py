"""Images that store numbers, for example depth."""

from __future__ import annotations

import pathlib
import warnings

import numpy as np
from PIL import Image

from easi3r_jax.core.errors import InputError


def read_gray16(path: pathlib.Path) -> np.ndarray:
    """Reads the values of a 16-bit gray image, in which depth is often stored.

    Returns:
      (H, W) int32 or uint16.

    Raises:
      InputError: the file is missing or damaged, or is another kind of image.
    """
    try:
        with warnings.catch_warnings(), Image.open(path) as image:
            warnings.simplefilter("ignore")  # about large images: their size is compared with the frame's later
            image.load()
            mode, values = image.mode, np.asarray(image)
    except FileNotFoundError as error:
        raise InputError(f"No file {path}: restore it, or remove the sequence.") from error
    except Exception as error:  # on damaged bytes Pillow's decoders raise almost anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"Cannot read {path}: {reason}. Restore it, or remove the sequence.") from error
    if mode != "I" and not mode.startswith("I;16"):
        raise InputError(f"{path} has pixels of mode {mode}, but a 16-bit gray image is needed: restore it.")
    return values
