"""What the value of a flag may be: texts, choices, and numbers between two bounds.

Every refusal has the same wording, "it must be ...", which says everything that is allowed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from absl import flags

#: Of flags that do not say: no frame count, size or number of steps that someone means is larger.
MOST = 1_000_000
#: Numbers nearer to 0 are 0 or a mistake: in float32 they have no effect, or the wrong one.
LEAST_SIZE = 1e-9


class Text(flags.ArgumentParser):
    """A text.

    Args:
      may_be_empty: whether the empty text is a value.
    """

    def __init__(self, may_be_empty: bool):
        self.may_be_empty = may_be_empty

    def parse(self, argument: str) -> str:
        if not self.may_be_empty and not argument.strip():
            raise ValueError("it must not be empty; omit it for its default")
        return argument

    def flag_type(self) -> str:
        return "string"


class Choice(flags.ArgumentParser):
    """One of some words, `enum_values`."""

    def __init__(self, words: Sequence[str]):
        self.enum_values = tuple(words)

    def parse(self, argument: str) -> str:
        if argument not in self.enum_values:
            raise ValueError(f"it must be {listed(self.enum_values)}")
        return argument

    def flag_type(self) -> str:
        return "string enum"


class WholeNumber(flags.ArgumentParser):
    """A whole number between two bounds, which it may equal."""

    def __init__(self, at_least: int, at_most: int):
        self.at_least, self.at_most = at_least, at_most

    def parse(self, argument: str | int) -> int:
        text = str(argument)
        if re.fullmatch(r"[+-]?[0-9]{1,30}", text) and self.at_least <= int(text) <= self.at_most:
            return int(text)
        raise ValueError(f"it must be a whole number from {self.at_least} to {self.at_most}")

    def flag_type(self) -> str:
        return "int"


class Number(flags.ArgumentParser):
    """A finite number between two bounds, which it may equal; 0 or at least `LEAST_SIZE` in size."""

    def __init__(self, at_least: float, at_most: float):
        self.at_least, self.at_most = float(at_least), float(at_most)

    def parse(self, argument: str | float) -> float:
        value = number_of(str(argument))
        if value is None or not self.at_least <= value <= self.at_most or 0 < abs(value) < LEAST_SIZE:
            raise ValueError(f"it must be {self.described()}")
        return value

    def described(self) -> str:
        """The allowed numbers in words."""
        if self.at_least > 0:
            return f"a number from {_short(self.at_least)} to {_short(self.at_most)}"
        if self.at_least == 0:
            return f"0, or a number from {_short(LEAST_SIZE)} to {_short(self.at_most)}"
        return f"a number from {_short(self.at_least)} to {_short(self.at_most)}, at least {_short(LEAST_SIZE)} from 0"

    def flag_type(self) -> str:
        return "float"


def number_of(text: str) -> float | None:
    """The finite number that a text is, or None."""
    try:
        value = float(text) if "_" not in text else math.nan
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def listed(words: Sequence[str]) -> str:
    """Words as "a, b or c"."""
    return " or ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def _short(number: float) -> str:
    return f"{number:.0f}" if number == round(number) and abs(number) <= MOST else f"{number:g}"
