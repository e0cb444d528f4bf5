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
# Tells the process that Python has reported the error, so that there is one line.
_REPORTED = b"\0reported\n"
_RECORD = re.compile(rb"[IWEF]\d{4} \d\d:\d\d:\d\d\.\d+ ")
# An abort because of the others, of JAX's client of the coordination service; others are the process's own.
_OF_OTHERS = re.compile(rb"client\.h|coordination|heartbeat|preempt", re.IGNORECASE)
_CONTINUATION = re.compile(rb"\s|[:{]|Additional GRPC|RPC: ")
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


def reported() -> None:
    """Says that this process has reported why it ends."""
    os.write(2, _REPORTED)


def main() -> None:
    """Copies standard input to stderr without the runtime's log, to the end of the process that writes it."""
    is_lost, was_reported, in_record = False, False, False
    for line in sys.stdin.buffer:
        if line == _REPORTED:
            was_reported = True
        elif found := _RECORD.match(line):
            in_record, is_abort = True, found[0][:1] == b"F"
            is_lost = is_lost or (is_abort and _OF_OTHERS.search(line) is not None)
            if is_abort and not is_lost:
                in_record = False
                sys.stderr.buffer.write(line)
                sys.stderr.buffer.flush()
        elif is_lost or (line.strip() and _MEMBERSHIP.fullmatch(line)):
            pass  # what follows the abort: a stack trace
        elif not in_record or not _CONTINUATION.match(line):
            in_record = False
            sys.stderr.buffer.write(line)
            sys.stderr.buffer.flush()
    if is_lost and not was_reported:
        print(LOST, file=sys.stderr)


if __name__ == "__main__":
    main()
