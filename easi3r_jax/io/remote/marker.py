"""The marker of an uploaded folder: which files it has, and whether it is complete.

Object stores have no folders and nothing that replaces many files at once, but they replace one object atomically. The
marker is that object. It is written before the first file changes (not complete), and after the last (complete).
"""

from __future__ import annotations

import dataclasses
import json
import secrets
from collections.abc import Mapping

from easi3r_jax.io.remote.address import Place, Stored

MARKER = "easi3r_upload.json"
#: Written and removed again to find out whether a place can be written.
PROBE = ".easi3r_probe"


@dataclasses.dataclass(frozen=True)
class Marker:
    """Content of a marker.

    Attributes:
      complete: whether the program that wrote the folder ended well.
      files: sizes in bytes by relative name, of the files that were whole when the marker was written.
      id: of this version of the folder.
    """

    complete: bool
    files: Mapping[str, int]
    id: str = dataclasses.field(default_factory=lambda: secrets.token_hex(8))


def read_marker(place: Place) -> Marker | None:
    """The marker of a folder; None if it has none.

    Raises:
      UserError: it is damaged, or cannot be read.
    """
    content = place.read_bytes(MARKER)
    if content is None:
        return None
    try:
        read = json.loads(content)
        files = {str(name): int(size) for name, size in read["files"].items()}
        return Marker(read["complete"] is True, files, str(read["id"]))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise place.refused(f"its {MARKER} is damaged: write the result again") from error


def write_marker(place: Place, marker: Marker) -> None:
    """Replaces the marker of a folder."""
    place.write_bytes(MARKER, json.dumps(dataclasses.asdict(marker)).encode())


def check_complete(place: Place, marker: Marker, files: Mapping[str, Stored]) -> None:
    """Refuses a folder that was not completely written, or has lost something since.

    Raises:
      InputError: it is not complete.
    """
    if not marker.complete:
        raise place.refused("it was not completely written: run the program that writes it again")
    lost = [n for n, size in marker.files.items() if n not in files or files[n].size not in (None, size)]
    if lost:
        raise place.refused(f"{len(lost)} of its {len(marker.files)} files are missing or changed, such as {lost[0]}")
