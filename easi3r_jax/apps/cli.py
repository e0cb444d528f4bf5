"""What every program shares: grouped flags with a `--help` that teaches, one-line errors, exit codes.

    FLAGS = cli.Flags(__doc__)
    INPUT = FLAGS.group("Input")
    SEQ = INPUT.string("seq", "demo", "A video, a folder of images …")
    …
    def main() -> None: ...

`command.run` starts a program: it parses the command line into `FLAGS` and calls `main`.

Exit codes: 0 done, 1 an error the user can mend (one line on stderr), 2 wrong flags, 130 Ctrl-C.
"""

from __future__ import annotations

import dataclasses
import errno
import math
import os
import re
import sys
import textwrap
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from absl import flags

from easi3r_jax.core.errors import ConfigError, UserError

INTERRUPTED = 130
_LARGEST = 2**31 - 1

#: Flags that decide how much memory a program takes, and what to do with them where it does not suffice.
_SMALLER = {
    "first": "fewer frames (--every, --first)",
    "frames": "fewer --frames",
    "num_frames": "fewer --num_frames",
    "size": "a smaller --size",
    "height": "a smaller --height and --width",
    "pair_batch": "a smaller --pair_batch",
    "batch_size": "a smaller --batch_size",
}


#: What absl and Python say of a flag's value, and what a user is told.
_WORDS = (
    (r"invalid literal for int\(\) with base 10: .*", "it must be a whole number"),
    (r"could not convert string to float: .*", "it must be a number"),
    (r"\('Non-boolean argument to boolean flag', .*\)", "it must be true or false"),
    (rf"\S+ is not an integer in the range \[(\d+), {_LARGEST}\]", r"it must be a whole number of at least \1"),
    (r"\S+ is not a number >= (\S+)", r"it must be at least \1"),
    (r"\S+ is not a (non-negative|positive) number", r"it must be a \1 number"),
)


class Group:
    """A titled group of flags."""

    def __init__(self, title: str, flag_values: flags.FlagValues):
        self.title = title
        self.holders: list[flags.FlagHolder] = []
        self._flag_values = flag_values

    def _keep(self, holder: flags.FlagHolder) -> flags.FlagHolder:
        self.holders.append(holder)
        return holder

    def string(self, name: str, default: str | None, text: str) -> flags.FlagHolder:
        return self._keep(flags.DEFINE_string(name, default, text, self._flag_values))

    def integer(self, name: str, default: int, text: str, *, at_least: int = 0) -> flags.FlagHolder:
        holder = flags.DEFINE_integer(name, default, text, at_least, _LARGEST, flag_values=self._flag_values)
        return self._keep(holder)

    def number(self, name: str, default: float, text: str, *, at_least: float | None = None) -> flags.FlagHolder:
        holder = flags.DEFINE_float(name, default, text, at_least, flag_values=self._flag_values)
        flags.register_validator(name, math.isfinite, "it must be finite", flag_values=self._flag_values)
        return self._keep(holder)

    def boolean(self, name: str, default: bool, text: str) -> flags.FlagHolder:
        return self._keep(flags.DEFINE_bool(name, default, text, self._flag_values))

    def choice(self, name: str, default: str, choices: Sequence[str], text: str) -> flags.FlagHolder:
        return self._keep(flags.DEFINE_enum(name, default, list(choices), text, self._flag_values))


@dataclasses.dataclass(frozen=True)
class Described:
    """What a flag is.

    Attributes:
      name: without the dashes.
      text: of the help.
      default: of its own type: bool, int, float or str.
      choices: its only values; empty where it has others.
    """

    name: str
    text: str
    default: Any
    choices: tuple[str, ...]


class Flags:
    """The flags of a program, in groups, and the program's outermost frame.

    They are the program's own, not absl's global ones: importing a program disturbs no other, and whatever is not
    listed in its help is unknown.

    Args:
      doc: the module's docstring; heads the help.
      positional: arguments without a name are allowed.

    Attributes:
      rest: these arguments.
    """

    def __init__(self, doc: str | None, *, positional: bool = False):
        self._doc = (doc or "").strip()
        self._positional = positional
        self.rest: list[str] = []
        self._flag_values = flags.FlagValues()
        self._groups: list[Group] = []
        self._general = Group("General", self._flag_values)
        self._debug = self._general.boolean("debug", False, "Show the traceback of an error.")

    def group(self, title: str) -> Group:
        group = Group(title, self._flag_values)
        self._groups.append(group)
        return group

    def values(self) -> dict[str, object]:
        """Every flag's value, by name."""
        return {h.name: h.value for g in self._groups for h in g.holders}

    def changed(self) -> list[str]:
        """The flags that differ from their defaults, as one would type them."""
        return [f"--{h.name}={h.value}" for g in self._groups for h in g.holders if h.value != h.default]

    def assign(self, values: Mapping[str, object]) -> None:
        """Gives flags their values, as a command line would; the others get their defaults.

        Raises:
          ConfigError: an unknown name, or a value that the flag does not take.
        """
        self._flag_values.unparse_flags()
        try:
            self._flag_values(["", *(f"--{name}={value}" for name, value in values.items())])
        except flags.Error as error:
            raise ConfigError(_in_words(error)) from error

    def describe(self, name: str) -> Described:
        """What the flag of that name is."""
        flag = self._flag_values[name]
        choices = tuple(getattr(flag.parser, "enum_values", None) or ())
        text = flag.help.strip().removeprefix(f"<{'|'.join(choices)}>: ")  # absl's own way of listing the choices
        return Described(name, text, flag.default, choices)

    def help(self) -> str:
        lines = [self._doc]
        for group in (*self._groups, self._general):
            lines += ["", f"{group.title}:"]
            for holder in group.holders:
                lines += self._lines(holder.name)
        return "\n".join(lines)

    def _lines(self, name: str) -> list[str]:
        flag = self.describe(name)
        is_switch = self._flag_values[name].boolean
        head = f"  --[no]{name}" if is_switch else f"  --{name}={'|'.join(flag.choices) or 'VALUE'}"
        text = flag.text
        if not is_switch and flag.default not in (None, ""):
            text += f" [{flag.default}]"
        elif is_switch:
            text += " [on]" if flag.default else " [off]"
        body = textwrap.wrap(text, 84, initial_indent=" " * 8, subsequent_indent=" " * 8)
        return [head, *body]

    def run(self, main: Callable[[], None]) -> NoReturn:
        """Executes this process's command line and ends the process."""
        leave(self.execute(main, sys.argv))

    def execute(self, main: Callable[[], None], argv: Sequence[str]) -> int:
        """Parses a command line and calls `main`; errors become one line and an exit code, which is returned."""
        if any(a in ("--help", "-h", "-help", "--helpshort", "--helpfull") for a in argv[1:]):
            print(self.help())
            return 0
        self._flag_values.unparse_flags()
        try:
            self.rest = self._flag_values([self._spelled(argument) for argument in argv])[1:]
        except flags.Error as error:
            return _complain(f"{_in_words(error)} (--help lists the flags)", 2)
        if self.rest and not self._positional:
            return _complain(f"Unexpected argument {self.rest[0]!r}: options are written --name=value (see --help).", 2)
        return guarded(main, debug=bool(self._debug.value), out_of_memory=self._out_of_memory())

    def _spelled(self, argument: str) -> str:
        """An argument as absl knows it: `--export-html=x` is `--export_html=x`."""
        name, equals, value = argument.partition("=")
        underscored = "--" + name[2:].replace("-", "_")
        return underscored + equals + value if name[:2] == "--" and underscored[2:] in self._flag_values else argument

    def _out_of_memory(self) -> str:
        """What to do where memory does not suffice: of the flags that there are."""
        advice = [text for name, text in _SMALLER.items() if name in self.values()]
        return f"use {' or '.join(advice)}" if advice else "this needs a machine or a device that has more"


def leave(code: int) -> NoReturn:
    """Ends the process. After Ctrl-C at once: XLA may still compute, and Python's own shutdown then often crashes."""
    if code == INTERRUPTED:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def guarded(main: Callable[[], None], *, debug: bool, out_of_memory: str) -> int:
    """Calls `main` and returns the exit code; errors that a user can mend become one line on stderr.

    Args:
      main: the program.
      debug: show the traceback too.
      out_of_memory: what to do where memory does not suffice.
    """
    try:
        main()
        return 0
    except KeyboardInterrupt:
        return _complain("Interrupted. Nothing half-written was left behind.", INTERRUPTED, debug=debug)
    except UserError as error:
        return _complain(str(error), 1, debug=debug)
    except MemoryError:
        return _complain(f"Out of memory: {out_of_memory}.", 1, debug=debug)
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT):
            raise
        where = f" ({error.filename})" if error.filename else ""
        return _complain(f"Cannot read or write{where}: {error.strerror}.", 1, debug=debug)
    except Exception as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return _complain(f"Out of memory: {out_of_memory}.", 1, debug=debug)


def _in_words(error: flags.Error) -> str:
    """What is wrong with a flag, in a line."""
    text = str(error).splitlines()[0]
    for theirs, ours in _WORDS:
        text = re.sub(theirs, ours, text)
    return text


def _complain(message: str, code: int, *, debug: bool = False) -> int:
    if debug:
        traceback.print_exc()
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return code
