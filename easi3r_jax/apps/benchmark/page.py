"""docs/benchmarks.md: its numbers are written by the program, between markers; the text around them by people.

<!-- measured: NAME -->
...
<!-- end -->
"""

from __future__ import annotations

import os
import pathlib
import platform
import re
import textwrap
import time
from collections.abc import Mapping
from typing import Any

from easi3r_jax.apps.benchmark.suite import SUITE
from easi3r_jax.apps.benchmark.tables import as_markdown, remarks
from easi3r_jax.apps.environment import code_version, versions
from easi3r_jax.core.atomic import atomic_file
from easi3r_jax.core.errors import ConfigError, InputError

HEAD = "machine"
_BLOCK = re.compile(r"(<!-- measured: ([^>]*?) -->\n).*?(<!-- end -->)", re.DOTALL)
#: Characters of a line, and of a row of a table.
_WIDTH = 118


def check_page(path: str, *, draft: bool, quick: bool) -> None:
    """Refuses, before anything is measured, a page that could not be written or would not be of one commit.

    Raises:
      ConfigError: quick measurements, or changed files, but not a draft.
      InputError: the page cannot be read, or has other blocks than there are measurements.
    """
    if quick and not draft:
        raise ConfigError("--quick does not measure what the page says: omit --page, or add --draft.")
    if code_version().endswith("+") and not draft:
        raise ConfigError("Files were changed since the commit that the page would name: commit them, or add --draft.")
    text = _read(path)
    filled(text, dict.fromkeys([HEAD, *(m.name for m in SUITE)], ""))


def write_page(path: str, found: Mapping[str, Mapping[str, Any]], *, command: str, draft: bool) -> None:
    """Replaces all blocks of the page, atomically.

    Raises:
      ConfigError: the commit is no longer the one that was measured.
      InputError: as `check_page`.
    """
    before = code_version()
    code_version.cache_clear()
    if code_version() != before and not draft:
        raise ConfigError(f"The checkout has changed while {before} was measured: measure again.")
    text = filled(_read(path), blocks(found, head(command, draft=draft)))
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def filled(text: str, new: Mapping[str, str]) -> str:
    """The page with the contents of its blocks replaced.

    Raises:
      InputError: it lacks a block, or has one that nothing fills.
    """
    present = [name for _, name, _ in _BLOCK.findall(text)]
    if sorted(present) != sorted(new):
        different = ", ".join(sorted(set(present) ^ set(new))) or "a block that occurs twice"
        raise InputError(f"The page's blocks are not those that are measured: {different}.")
    return _BLOCK.sub(lambda match: f"{match[1]}\n{new[match[2]]}\n\n{match[3]}", text)


def blocks(found: Mapping[str, Mapping[str, Any]], first: str) -> dict[str, str]:
    """The contents of the page's blocks: what `run_suite` returns, after the machine."""
    contents = {HEAD: first}
    for name, run in found.items():
        lines = textwrap.wrap(
            run["command"], _WIDTH - 6, subsequent_indent="    ", break_on_hyphens=False, break_long_words=False
        )
        code = " \\\n".join(f"    {line}" for line in lines)
        parts = [code, as_markdown(run["stages"])]
        parts += ["\n".join(_wrapped(f"- {remark[0].upper()}{remark[1:]}.") for remark in remarks(run))]
        contents[name] = "\n\n".join(part for part in parts if part)
    return contents


def head(command: str, *, draft: bool) -> str:
    """Machine, date, commit, versions and command."""
    found = versions()
    program = ", ".join(f"{name} {found[name]}" for name in ("jax", "numpy", "python"))
    warning = "**A draft: not all of this was measured as it says.** " if draft else ""
    return _wrapped(
        f"{warning}{_machine()}; {found['device']}; {time.strftime('%Y-%m-%d')}; {code_version()}; {program}; "
        f"`{command}`.",
        indent="",
    )


def _machine() -> str:
    """e.g. "2 cores of an AMD EPYC, 24 GB, Linux"."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        model = platform.processor() or platform.machine()
    try:
        memory = f", {os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1e9:.0f} GB"
    except (ValueError, OSError, AttributeError):
        memory = ""
    load = f", load {os.getloadavg()[0]:.1f} at the end" if hasattr(os, "getloadavg") else ""
    return f"{os.cpu_count()} cores, {model}{memory}, {platform.system()}{load}"


def _wrapped(text: str, indent: str = "  ") -> str:
    return textwrap.fill(text, _WIDTH, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False)


def _read(path: str) -> str:
    try:
        return pathlib.Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"Cannot read the page {path}: name a page with markers, as docs/benchmarks.md.") from error
