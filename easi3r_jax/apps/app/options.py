"""Which flags of reconstruct the page offers, and how far they go.

They are reconstruct's own: names, defaults, help and checks are written there. What is not listed here cannot be set
through the page, and nothing that is listed names a file.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from easi3r_jax.apps import reconstruct
from easi3r_jax.apps.cli import Described
from easi3r_jax.core.errors import ConfigError
from easi3r_jax.io import export

#: Flags by the title they stand under.
OFFERED: dict[str, tuple[str, ...]] = {
    "Frames": ("fps", "every", "first", "size"),
    "Method": ("mode", "graph", "motion", "reattention", "masks", "mask_dilation", "seed"),
    "Alignment": ("iterations", "shared_focal", "smoothing_weight", "initialisation", "min_confidence"),
    "Result": ("foreground", "cloud_confidence", "cloud_points", "report"),
}
#: Takes some of `export.FORMATS`; beside the others because it is no value but a list.
EXPORT = "export"
NAMES = tuple(name for names in OFFERED.values() for name in names)

# Where reconstruct's flag takes paths, too: the words that are none, and what is to be said of them.
_CHOICES = {"masks": ("motion", "none")}
_TEXTS = {"masks": "What counts as moving in the alignment and the result: what the motion cue finds, or nothing."}
# What one user may ask of a server that others wait for.
_MOST = {"size": 512, "every": 100, "mask_dilation": 64, "iterations": 3000}
_LEAST_FPS = 0.1
_LONGEST_WORD = 64


def described(name: str) -> Described:
    """What the page says of a flag, with the choices that it leaves."""
    flag = reconstruct.FLAGS.describe(name)
    return dataclasses.replace(flag, choices=_CHOICES.get(name, flag.choices), text=_TEXTS.get(name, flag.text))


def checked(values: Mapping[str, object]) -> dict[str, object]:
    """The flags that differ from their defaults, as `cli.Flags.assign` takes them.

    Args:
      values: by name; those of None are left at their defaults. `export` is a list of formats.

    Raises:
      ConfigError: a flag that is not offered, or a value that is beyond what the page allows.
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
            raise ConfigError(f"{name} is no option of this page.")
        flag = described(name)
        if value is None or value == flag.default:
            continue
        if isinstance(flag.default, bool) is not isinstance(value, bool) or not isinstance(
            value, bool | int | float | str
        ):
            raise ConfigError(f"{name}: {value!r} is no value for it.")
        flags[name] = _within(name, flag, value)
    return flags


def _within(name: str, flag: Described, value: bool | int | float | str) -> bool | int | float | str:
    if flag.choices and value not in flag.choices:
        raise ConfigError(f"{name} is one of {', '.join(flag.choices)}.")
    if isinstance(value, str):
        if isinstance(flag.default, int | float) or len(value) > _LONGEST_WORD or not value.isprintable():
            raise ConfigError(f"{name}: {value[:_LONGEST_WORD]!r} is no value for it.")
        return value
    if not math.isfinite(value) or value > _MOST.get(name, math.inf):
        raise ConfigError(f"{name} is at most {_MOST.get(name, 'a finite number')} here.")
    if name == "fps" and 0 < value < _LEAST_FPS:
        raise ConfigError(f"fps is 0 (all frames) or at least {_LEAST_FPS} here.")
    is_whole = isinstance(flag.default, int) and not isinstance(flag.default, bool)
    if is_whole and value != int(value):
        raise ConfigError(f"{name} is a whole number.")
    return int(value) if is_whole else value
