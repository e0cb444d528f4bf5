"""One line instead of the pages that JAX's runtime prints when it ends a process because another one has died.

The runtime writes them from native code to file descriptor 2, just before it aborts, and gloo its connections to 1.
`filtered` leads both through a small process, which is this file: it drops these, and prints its own line after an
abort. Python's own stdout and stderr are not affected.
"""

import os
import re
import subprocess
import sys

#: What the process says of an abort.
LOST = "error: Another process was lost, because it or its host has stopped. Start all of them again."
# Begins what Python tells the process: that the error is reported, by the rest of the line unless that is empty.
_REPORTED = b"\0reported "
_RECORD = re.compile(rb"[IWEF]\d{4} \d\d:\d\d:\d\d\.\d+ ")
# An abort because of the others, of JAX's client of the coordination service; others are the process's own.
_OF_OTHERS = re.compile(rb"client\.h|coordination|heartbeat|preempt", re.IGNORECASE)
# What is never the rest of a record.
_OURS = (b"error: ", b"warning: ", b"Stopping ", b"Interrupted")
# What gloo says of its connections; the pieces of several threads may be mixed.
_MEMBERSHIP = re.compile(
    rb"(\[Gloo\]|Rank|is connected to|peer ranks|Expected number of connected|is|\d+|[\s.:])*", re.IGNORECASE
)


def filtered() -> None:
    """Leads the native code's stdout and stderr through the filter, for the rest of this process."""
    sys.stdout.flush()
    sys.stderr.flush()
    stdout, stderr = os.dup(1), os.dup(2)
    process = subprocess.Popen(
        [sys.executable, "-I", os.path.abspath(__file__)], stdin=subprocess.PIPE, start_new_session=True
    )
    assert process.stdin is not None
    for descriptor in (1, 2):
        os.dup2(process.stdin.fileno(), descriptor)
    process.stdin.close()
    process.returncode = 0  # it ends after this process; nobody is to wait for it
    sys.stdout = os.fdopen(stdout, "w", buffering=1 if os.isatty(stdout) else -1)
    sys.stderr = os.fdopen(stderr, "w", buffering=1, errors="backslashreplace")


def report(message: str = "") -> None:
    """Prints why this process ends, once, whatever the runtime has to say; "": it has been printed."""
    os.write(2, _REPORTED + " ".join(message.split()).encode() + b"\n")  # one write, which an abort does not divide


def main() -> None:
    """Copies standard input to stderr without the runtime's log, to the end of the process that writes it."""
    is_lost, was_reported, in_record = False, False, False
    for line in sys.stdin.buffer:
        if line.startswith(_REPORTED):
            was_reported, message = True, line.removeprefix(_REPORTED)
            sys.stderr.buffer.write(message if message.strip() else b"")
            sys.stderr.buffer.flush()
        elif found := _RECORD.match(line):
            in_record, is_abort = found[0][:1] in b"EF", found[0][:1] == b"F"
            is_lost = is_lost or (is_abort and _OF_OTHERS.search(line) is not None)
            if is_abort and not is_lost:
                in_record = False
                sys.stderr.buffer.write(line)
                sys.stderr.buffer.flush()
        elif is_lost or (line.strip() and _MEMBERSHIP.fullmatch(line)):
            pass  # what follows the abort: a stack trace
        elif not in_record or line.startswith(_OURS):
            in_record = False
            sys.stderr.buffer.write(line)
            sys.stderr.buffer.flush()
    if is_lost and not was_reported:
        print(LOST, file=sys.stderr)


if __name__ == "__main__":
    main()
