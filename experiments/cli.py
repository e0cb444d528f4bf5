"""What every program shares: grouped flags with a `--help` that teaches, one-line errors, exit codes.

    FLAGS = cli.Flags(__doc__)
    INPUT = FLAGS.group("Input")
    SEQ = INPUT.string("seq", "demo", "A video, a folder of images …")
    …
    if __name__ == "__main__":
        FLAGS.run(main)

Exit codes: 0 done, 1 an error the user can mend (one line on stderr), 2 wrong flags, 130 Ctrl-C.
"""

from __future__ import annotations

import errno
import os
import sys
import textwrap
import traceback
from collections.abc import Callable, Sequence
from typing import NoReturn

from absl import flags

from easi3r_jax.errors import UserError

INTERRUPTED = 130


class Group:
    """A titled group of flags."""

    def __init__(self, title: str):
        self.title = title
        self.holders: list[flags.FlagHolder] = []

    def _keep(self, holder: flags.FlagHolder) -> flags.FlagHolder:
        self.holders.append(holder)
        return holder

    def string(self, name: str, default: str | None, text: str) -> flags.FlagHolder:
        return self._keep(flags.DEFINE_string(name, default, text))

    def integer(self, name: str, default: int, text: str, *, at_least: int | None = None) -> flags.FlagHolder:
        return self._keep(flags.DEFINE_integer(name, default, text, lower_bound=at_least))

    def number(self, name: str, default: float, text: str, *, at_least: float | None = None) -> flags.FlagHolder:
        return self._keep(flags.DEFINE_float(name, default, text, lower_bound=at_least))

    def boolean(self, name: str, default: bool, text: str) -> flags.FlagHolder:
        return self._keep(flags.DEFINE_bool(name, default, text))

    def choice(self, name: str, default: str, choices: Sequence[str], text: str) -> flags.FlagHolder:
        return self._keep(flags.DEFINE_enum(name, default, list(choices), text))


class Flags:
    """The flags of a program, in groups, and the program's outermost frame.

    Args:
      doc: the module's docstring; heads the help.
    """

    def __init__(self, doc: str | None):
        self._doc = (doc or "").strip()
        self._groups: list[Group] = []

    def group(self, title: str) -> Group:
        group = Group(title)
        self._groups.append(group)
        return group

    def values(self) -> dict[str, object]:
        """Every flag's value, by name."""
        return {h.name: h.value for g in self._groups for h in g.holders}

    def help(self) -> str:
        lines = [self._doc]
        for group in self._groups:
            lines += ["", f"{group.title}:"]
            for holder in group.holders:
                lines += self._describe(holder)
        return "\n".join(lines)

    @staticmethod
    def _describe(holder: flags.FlagHolder) -> list[str]:
        flag = flags.FLAGS[holder.name]
        choices = getattr(flag.parser, "enum_values", None)
        value = "|".join(choices) if choices else "VALUE"
        head = f"  --[no]{flag.name}" if flag.boolean else f"  --{flag.name}={value}"
        text = flag.help.strip().removeprefix(f"<{value}>: ")  # absl's own way of listing the choices
        if not flag.boolean and flag.default not in (None, ""):
            text += f" [{flag.default}]"
        elif flag.boolean:
            text += " [on]" if flag.default else " [off]"
        body = textwrap.wrap(text, 84, initial_indent=" " * 8, subsequent_indent=" " * 8)
        return [head, *body]

    def run(self, main: Callable[[], None], argv: Sequence[str] | None = None) -> None:
        """Parses the command line, calls `main`, turns its errors into one line and an exit code."""
        general = self.group("General")
        debug = general.boolean("debug", False, "Show the traceback of an error.")
        arguments = list(sys.argv if argv is None else argv)
        if any(a in ("--help", "-h", "-help", "--helpshort", "--helpfull") for a in arguments[1:]):
            print(self.help())
            sys.exit(0)
        try:
            rest = flags.FLAGS(arguments)[1:]
        except flags.Error as error:
            sys.exit(_complain(f"{str(error).splitlines()[0]} (--help lists the flags)", 2))
        if rest:
            sys.exit(_complain(f"Unexpected argument {rest[0]!r}: options are written --name=value (see --help).", 2))
        leave(guarded(main, debug=bool(debug.value)))


def leave(code: int) -> NoReturn:
    """Ends the process. After Ctrl-C at once: XLA may still compute, and Python's own shutdown then often crashes."""
    if code == INTERRUPTED:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def guarded(main: Callable[[], None], *, debug: bool = False) -> int:
    """Calls `main` and returns the exit code; errors that a user can mend become one line on stderr."""
    try:
        main()
        return 0
    except KeyboardInterrupt:
        return _complain("Interrupted. Nothing half-written was left behind.", INTERRUPTED)
    except UserError as error:
        return _complain(str(error), 1, debug=debug)
    except MemoryError:
        return _complain(_OUT_OF_MEMORY, 1, debug=debug)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT):
            raise
        where = f" ({error.filename})" if error.filename else ""
        return _complain(f"Cannot write{where}: {error.strerror}.", 1, debug=debug)
    except Exception as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return _complain(_OUT_OF_MEMORY, 1, debug=debug)


_OUT_OF_MEMORY = "Out of memory: use fewer frames (--every, --first), a smaller --size or a smaller --pair_batch."


def _complain(message: str, code: int, *, debug: bool = False) -> int:
    if debug:
        traceback.print_exc()
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return code
