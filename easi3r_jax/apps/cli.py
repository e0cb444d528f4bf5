"""Shared by all programs: grouped flags with a readable `--help`, one-line errors, exit codes.

    FLAGS = cli.Flags(__doc__)
    INPUT = FLAGS.group("Input")
    SEQ = INPUT.string("seq", "demo", "A video, a folder of images …")
    …
    def main() -> None: ...

`command.run` starts a program: it parses the command line into `FLAGS` and calls `main`.

Exit codes: 0 success, 1 an error that the user can fix (one line on stderr), 2 wrong flags, 130 Ctrl-C.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import re
import sys
import textwrap
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from absl import flags

from easi3r_jax.apps import flag_values
from easi3r_jax.apps.streams import outputs_that_may_close
from easi3r_jax.core.atomic import ensure_file_writable, ensure_usable
from easi3r_jax.core.errors import ConfigError, UserError

INTERRUPTED = 130
_MAX_SEED = 2 * 10**9

#: Flags that determine a program's memory, with the advice to print if memory does not suffice.
_MEMORY_ADVICE = {
    "first": "fewer frames (--every, --first)",
    "frames": "fewer --frames",
    "num_frames": "fewer --num_frames",
    "size": "a smaller --size",
    "height": "a smaller --height and --width",
    "pair_batch": "a smaller --pair_batch",
    "batch_size": "a smaller --batch_size",
}


#: Messages of absl on a flag's value, and our wording; see also `flag_values`.
_FLAG_MESSAGES = (
    (r"\('Non-boolean argument to boolean flag', .*\)", "it must be true or false"),
    (r"^flag (--\S*?=.*): (it must)", r"\1: \2"),
)


class Group:
    """A titled group of flags."""

    def __init__(self, title: str, flag_values: flags.FlagValues):
        self.title = title
        self.holders: list[flags.FlagHolder] = []
        self.output_files: list[flags.FlagHolder] = []
        self.output_folders: list[flags.FlagHolder] = []
        self._flag_values = flag_values

    def _keep(self, holder: flags.FlagHolder) -> flags.FlagHolder:
        self.holders.append(holder)
        return holder

    def string(
        self, name: str, default: str | None, text: str, *, may_be_empty: bool | None = None
    ) -> flags.FlagHolder:
        """A text. It may be empty if its default is, unless told otherwise."""
        return self._define(
            flag_values.Text(not default if may_be_empty is None else may_be_empty), name, default, text
        )

    def output_file(self, name: str, text: str) -> flags.FlagHolder:
        """A file to write, or nothing. That it can be written is tried before the program begins."""
        holder = self.string(name, "", text)
        self.output_files.append(holder)
        return holder

    def output_folder(self, name: str, default: str, text: str) -> flags.FlagHolder:
        """A folder to write, or its address. That files can be written there is tried before the program begins."""
        holder = self.string(name, default, text)
        self.output_folders.append(holder)
        return holder

    def integer(
        self, name: str, default: int, text: str, *, at_least: int = 0, at_most: int = flag_values.MOST
    ) -> flags.FlagHolder:
        """A whole number between two bounds, which it may equal."""
        return self._define(flag_values.WholeNumber(at_least, at_most), name, default, text)

    def seed(self, name: str, default: int, text: str) -> flags.FlagHolder:
        """A seed. Programs add to it, and JAX takes 32 bits."""
        return self.integer(name, default, text, at_most=_MAX_SEED)

    def number(
        self,
        name: str,
        default: float,
        text: str,
        *,
        at_least: float | None = None,
        at_most: float = flag_values.MOST,
    ) -> flags.FlagHolder:
        """A finite number between two bounds, which it may equal; see `flag_values.Number`.

        The lower bound is 0 by default, or the default value if that is negative: it then stands for something else.
        """
        low = min(0.0, default) if at_least is None else at_least
        return self._define(flag_values.Number(low, at_most), name, default, text)

    def boolean(self, name: str, default: bool, text: str) -> flags.FlagHolder:
        return self._keep(flags.DEFINE_bool(name, default, text, self._flag_values))

    def choice(self, name: str, default: str, choices: Sequence[str], text: str) -> flags.FlagHolder:
        return self._define(flag_values.Choice(tuple(choices)), name, default, text)

    def _define(self, parser: flags.ArgumentParser, name: str, default: Any, text: str) -> flags.FlagHolder:
        return self._keep(flags.DEFINE(parser, name, default, text, self._flag_values))


@dataclasses.dataclass(frozen=True)
class FlagDescription:
    """Description of a flag.

    Attributes:
      name: without the dashes.
      text: of the help.
      default: of the flag's type: bool, int, float or str.
      choices: the allowed values; empty if other values are possible.
    """

    name: str
    text: str
    default: Any
    choices: tuple[str, ...]


class Flags:
    """The flags of a program, in groups, and the program's entry point.

    They are the program's own, not absl's global ones: importing a program does not affect others, and flags that are
    not listed in its help are unknown.

    Args:
      doc: the module's docstring, printed first in the help.
      positional: whether positional arguments are allowed.
      cached: whether programs compiled by JAX are kept for later runs.

    Attributes:
      rest: the positional arguments.
    """

    def __init__(self, doc: str | None, *, positional: bool = False, cached: bool = False):
        self._doc = (doc or "").strip()
        self._positional = positional
        self.rest: list[str] = []
        self._flag_values = flags.FlagValues()
        self._groups: list[Group] = []
        self._general = Group("General", self._flag_values)
        text = "Keep what JAX compiles for later runs: up to 2 GB in the user's cache folder."
        self._cache = self._general.boolean("compilation_cache", True, text) if cached else None
        self._debug = self._general.boolean("debug", False, "Show the traceback of an error.")

    def group(self, title: str) -> Group:
        group = Group(title, self._flag_values)
        self._groups.append(group)
        return group

    def values(self) -> dict[str, object]:
        """Every flag's value, by name."""
        return {h.name: h.value for g in self._groups for h in g.holders}

    @property
    def keeps_compiled(self) -> bool:
        """Whether programs compiled by JAX are kept."""
        return self._cache is not None and bool(self._cache.value)

    def changed(self, *but: Group) -> list[str]:
        """The flags that differ from their defaults, as typed on a command line; without those of some groups."""
        groups = [g for g in self._groups if g not in but]
        return [f"--{h.name}={h.value}" for g in groups for h in g.holders if h.value != h.default]

    def assign(self, values: Mapping[str, object]) -> None:
        """Sets flags to the given values, as a command line would, and the others to their defaults.

        Raises:
          ConfigError: an unknown name, or an invalid value.
        """
        self._flag_values.unparse_flags()
        try:
            self._flag_values(["", *(f"--{name}={value}" for name, value in values.items())])
        except flags.Error as error:
            raise ConfigError(_message_of(error)) from error

    def describe(self, name: str) -> FlagDescription:
        """Description of the flag with that name."""
        flag = self._flag_values[name]
        return FlagDescription(name, flag.help.strip(), flag.default, getattr(flag.parser, "enum_values", ()))

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
            self.rest = self._flag_values([self._normalised(argument) for argument in argv])[1:]
        except flags.Error as error:
            return _complain(f"{_message_of(error)} (--help lists the flags)", 2)
        if self.rest and not self._positional:
            return _complain(f"Unexpected argument {self.rest[0]!r}: options are written --name=value (see --help).", 2)

        def cached_main() -> None:
            if self.keeps_compiled:
                from easi3r_jax.apps import compilation  # not above: it imports JAX, which not every program needs

                compilation.use_cache()
            self._try_outputs()
            main()

        return guarded(cached_main, debug=bool(self._debug.value), out_of_memory=self._out_of_memory())

    def _try_outputs(self) -> None:
        """Fails now where what is written at the end could not be."""
        for group in self._groups:
            for holders, ensure in ((group.output_files, ensure_file_writable), (group.output_folders, ensure_usable)):
                for holder in holders:
                    if holder.value and "://" not in holder.value:
                        ensure(holder.value)

    def _normalised(self, argument: str) -> str:
        """An argument in absl's spelling: `--export-html=x` becomes `--export_html=x`."""
        name, equals, value = argument.partition("=")
        underscored = "--" + name[2:].replace("-", "_")
        return underscored + equals + value if name[:2] == "--" and underscored[2:] in self._flag_values else argument

    def _out_of_memory(self) -> str:
        """Advice for running out of memory, from the flags that this program has."""
        advice = [text for name, text in _MEMORY_ADVICE.items() if name in self.values()]
        return f"use {' or '.join(advice)}" if advice else "this needs a machine or a device with more memory"


def leave(code: int) -> NoReturn:
    """Ends the process. After Ctrl-C at once: XLA may still compute, and Python's own shutdown then often crashes."""
    if code == INTERRUPTED:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def guarded(main: Callable[[], None], *, debug: bool, out_of_memory: str) -> int:
    """Calls `main` and returns the exit code; errors that the user can fix become one line on stderr.

    Args:
      main: the program.
      debug: also show the traceback.
      out_of_memory: advice for running out of memory.
    """
    try:
        with outputs_that_may_close():
            main()
            sys.stdout.flush()
        return 0
    except KeyboardInterrupt:
        return _complain("Interrupted. Nothing half-written was left behind.", INTERRUPTED, debug=debug)
    except UserError as error:
        return _complain(str(error), 1, debug=debug)
    except MemoryError:
        return _complain(f"Out of memory: {out_of_memory}.", 1, debug=debug)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT):
            raise
        where = f" ({error.filename})" if error.filename else ""
        return _complain(f"Cannot read or write{where}: {error.strerror}.", 1, debug=debug)
    except Exception as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return _complain(f"Out of memory: {out_of_memory}.", 1, debug=debug)


def _message_of(error: flags.Error) -> str:
    """An error on a flag, as one line."""
    text = str(error).splitlines()[0]
    for theirs, ours in _FLAG_MESSAGES:
        text = re.sub(theirs, ours, text)
    return text


def _complain(message: str, code: int, *, debug: bool = False) -> int:
    if debug:
        traceback.print_exc()
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return code
