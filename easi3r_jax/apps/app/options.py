"""The flags of reconstruct that the page offers, and their limits.

They are reconstruct's own: names, defaults, help and checks are defined there. Flags that are not listed here cannot be
set through the page, and no listed flag names a file.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from easi3r_jax.apps import reconstruct
from easi3r_jax.apps.cli import FlagDescription
from easi3r_jax.core.errors import ConfigError
from easi3r_jax.io import export

#: Flags by the title of their group.
OFFERED: dict[str, tuple[str, ...]] = {
    "Frames": ("fps", "every", "first", "size"),
    "Method": ("mode", "graph", "motion", "reattention", "masks", "mask_dilation", "seed"),
    "Alignment": ("iterations", "shared_focal", "smoothing_weight", "initialisation", "min_confidence"),
    "Result": ("foreground", "cloud_confidence", "cloud_points", "report"),
}
#: Some of `export.FORMATS`; separate from the others because it is a list.
EXPORT = "export"
#: What the page calls them.
TITLES = {
    "fps": "Frames per second",
    "every": "Every n-th frame",
    "first": "At most this many frames",
    "size": "Long side, pixels",
    "mode": "Mode",
    "graph": "Pairs of frames",
    "motion": "How motion is found",
    "reattention": "Mask motion in a second pass",
    "masks": "Use of the masks",
    "mask_dilation": "Widen the masks by, pixels",
    "seed": "Random seed",
    "iterations": "Optimisation steps",
    "shared_focal": "One focal length for the clip",
    "smoothing_weight": "Smoothness of the camera path",
    "initialisation": "Start of the alignment",
    "min_confidence": "Confidence needed for first poses",
    "foreground": "Moving points in files",
    "cloud_confidence": "Confidence needed in files",
    "cloud_points": "Most points in files",
    "report": "Write a report page",
    EXPORT: "Formats for other tools",
}
NAMES = tuple(name for names in OFFERED.values() for name in names)

# For flags that also accept paths in reconstruct: the values without paths, and their help.
_CHOICES = {"masks": ("motion", "none")}
_TEXTS = {"masks": "Dynamic regions in the alignment and the result: those found by the motion cue, or none."}
# Limits for one user of a server that others wait for.
_MAXIMA = {"size": 512, "every": 100, "mask_dilation": 64, "iterations": 3000}
_MIN_FPS = 0.1
_MAX_TEXT_LENGTH = 64


def described(name: str) -> FlagDescription:
    """Description of a flag for the page, with the choices that the page allows."""
    flag = reconstruct.FLAGS.describe(name)
    return dataclasses.replace(flag, choices=_CHOICES.get(name, flag.choices), text=_TEXTS.get(name, flag.text))


def checked(values: Mapping[str, object]) -> dict[str, object]:
    """The flags that differ from their defaults, as `cli.Flags.assign` takes them.

    Args:
      values: by name; None stands for the default. `export` is a list of formats.

    Raises:
      ConfigError: a flag that is not offered, or a value outside the limits of the page.
    """
    flags: dict[str, object] = {}
    for name, value in values.items():
        if name == EXPORT:
            words = value if isinstance(value, list | tuple) else ()
            formats = export.parse_formats(",".join(str(word) for word in words))
            if formats:
                flags[name] = ",".join(formats)
            continue
        if name not in NAMES:
            raise ConfigError(f"{name} is not an option of this page.")
        flag = described(name)
        if value is None or value == flag.default:
            continue
        if isinstance(flag.default, bool) is not isinstance(value, bool) or not isinstance(
            value, bool | int | float | str
        ):
            raise ConfigError(f"{name}: {value!r} is not a valid value.")
        flags[name] = _check(name, flag, value)
    return flags


def _check(name: str, flag: FlagDescription, value: bool | int | float | str) -> bool | int | float | str:
    if flag.choices and value not in flag.choices:
        raise ConfigError(f"{name} must be one of {', '.join(flag.choices)}.")
    if isinstance(value, str):
        if isinstance(flag.default, int | float) or len(value) > _MAX_TEXT_LENGTH or not value.isprintable():
            raise ConfigError(f"{name}: {value[:_MAX_TEXT_LENGTH]!r} is not a valid value.")
        return value
    if not math.isfinite(value):
        raise ConfigError(f"{name} must be finite.")
    if value > _MAXIMA.get(name, math.inf):
        raise ConfigError(f"{name} must be at most {_MAXIMA[name]}.")
    if name == "fps" and 0 < value < _MIN_FPS:
        raise ConfigError(f"fps must be 0 (all frames) or at least {_MIN_FPS}.")
    is_integer = isinstance(flag.default, int) and not isinstance(flag.default, bool)
    if is_integer and value != int(value):
        raise ConfigError(f"{name} must be a whole number.")
    return int(value) if is_integer else value
