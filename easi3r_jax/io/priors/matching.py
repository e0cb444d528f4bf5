"""Which entry of a user's file, or which file of a user's folder, belongs to which frame of the clip.

Lists have an entry for each frame of the clip, or for each frame of its source. Frames know their numbers in the source
and their times, not the source's length: where every n-th frame is taken, the source ends within n frames of the last
one, unless reading stopped early (`FrameConfig.first`).
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
import re
from collections.abc import Sequence

import numpy as np

from easi3r_jax.core.errors import InputError
from easi3r_jax.core.types import Frames
from easi3r_jax.io.video.clip import ASSUMED_RATE
from easi3r_jax.io.video.images import in_order

#: In place of an entry's number: there is none for the frame.
NONE = -1


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """A clip's frames as the source has them.

    Attributes:
      index: (T,) int, numbers in the source.
      time: (T,) float64, seconds since the source's first frame.
      stopped_early: reading stopped before the source's end.
      names: file names of all the source's images in their order; empty where they are unknown.
    """

    index: np.ndarray
    time: np.ndarray
    stopped_early: bool
    names: Sequence[str]

    @classmethod
    def of(cls, frames: Frames, stopped_early: bool = False, names: Sequence[str] = ()) -> Source:
        """The source of a clip."""
        return cls(np.asarray(frames.source_index), np.asarray(frames.time), stopped_early, names)

    @property
    def least(self) -> int:
        """How many frames the source has at least."""
        return len(self.names) or int(self.index.max()) + 1

    @property
    def most(self) -> float:
        """How many frames the source has at most; infinite where nothing tells."""
        if self.names:
            return len(self.names)
        if self.stopped_early:
            return math.inf
        return int(self.index.max()) + (int(np.diff(self.index).max()) if len(self.index) > 1 else 1)

    @property
    def interval(self) -> float:
        """Mean seconds from one frame of the source to the next."""
        if len(self.index) < 2:
            return float(1 / ASSUMED_RATE)
        return float((self.time[-1] - self.time[0]) / (self.index[-1] - self.index[0]))


def by_count(count: int, source: Source, what: str) -> np.ndarray:
    """(T,) entries of a list without names or stamps: one for each frame of the source, or one for each of the clip.

    Args:
      count: number of entries.
      source: of the clip.
      what: the list in a message, "poses.txt: poses".

    Raises:
      InputError: neither, with both counts.
    """
    if source.least <= count <= source.most:
        return source.index
    if count == len(source.index):
        return np.arange(count)
    raise InputError(
        f"{what} for {count} frames, the clip has {_length(source)}: "
        "give one for each frame of the clip or of its source."
    )


def by_stamp(stamps: np.ndarray, source: Source, what: str) -> np.ndarray:
    """(T,) entries by their time stamps, `NONE` where a frame has none.

    - As many entries as the clip has frames: in the order of the stamps, whatever those are.
    - Whole stamps below the number of the source's frames, with gaps: frame numbers of the source, counted from 0.
    - As many entries as the source has frames, if that is known: in the order of the stamps.
    - Whole stamps below the number of the source's frames: frame numbers of the source.
    - Else seconds since the source's first frame: the nearest stamp, at most half a frame of the source away.

    Args:
      stamps: (N,) finite.
      source: of the clip.
      what: as in `by_count`.

    Raises:
      InputError: a stamp that is there twice, or none that is near a frame.
    """
    order = np.argsort(stamps, kind="stable")
    ordered = stamps[order]
    if len(stamps) == len(source.index):
        return order
    whole = bool(np.all((ordered == np.rint(ordered)) & (ordered >= 0) & (ordered < source.most)))
    fits = source.least <= len(stamps) <= source.most < math.inf
    if fits and not (whole and np.ptp(ordered) >= len(ordered)):
        return order[source.index]
    twice = ordered[1:][np.diff(ordered) == 0]
    if len(twice):
        raise InputError(f"{what} with the stamp {twice[0]:.15g} twice: remove one.")
    if whole:
        return _looked_up({int(stamp): int(entry) for stamp, entry in zip(ordered, order, strict=True)}, source)
    after = np.searchsorted(ordered, source.time)
    around = np.clip(np.stack([after - 1, after]), 0, len(ordered) - 1)
    distance = np.abs(ordered[around] - source.time)
    nearest = np.where(distance[0] <= distance[1], around[0], around[1])
    near = distance.min(axis=0) <= source.interval / 2
    if not near.any():
        raise InputError(
            f"{what} at {ordered[0]:.15g} to {ordered[-1]:.15g} s, none within half a frame of the clip's "
            f"{_length(source)}, at {source.time[0]:.6g} to {source.time[-1]:.6g} s: count seconds from the source's "
            "first frame, or give one for each frame."
        )
    return np.where(near, order[nearest], NONE)


def by_name(names: Sequence[str], source: Source, what: str) -> np.ndarray:
    """(T,) entries by the names of image files, `NONE` where a frame has none.

    - The source's own names, where they are known and any of them is there; folders and suffixes do not count.
    - As many entries as the clip has frames: in the order of the names, as of a folder.
    - As many as the source has frames, the numbers at the names' ends without gaps: likewise.
    - Else these numbers are the frames' in the source, counted from 0.

    Raises:
      InputError: a name that is there twice; names without a number, or numbers beyond the source.
    """
    paths = [pathlib.PurePosixPath(name.replace("\\", "/")) for name in names]
    entry_of = {path.stem: entry for entry, path in enumerate(paths)}
    if len(entry_of) < len(paths):
        twice = next(path for entry, path in enumerate(paths) if entry_of[path.stem] != entry)
        raise InputError(f"{what} with {twice.stem!r} twice: remove one.")
    own = {number: entry_of.get(pathlib.PurePath(name).stem, NONE) for number, name in enumerate(source.names)}
    if any(entry != NONE for entry in own.values()):
        return _looked_up(own, source)

    order = np.array([entry_of[path.stem] for path in in_order(paths)])
    if len(order) == len(source.index):
        return order
    ends = ((re.search(r"[0-9]{1,18}$", stem), entry) for stem, entry in entry_of.items())
    by_number = {int(end[0]): entry for end, entry in ends if end}
    numbered = len(by_number) == len(order)
    gaps = numbered and max(by_number) - min(by_number) >= len(order)
    # Of a source of unknown length no part is taken for the whole, unless it begins as a folder does.
    begins = source.most < math.inf or (numbered and min(by_number) <= 1)
    if source.least <= len(order) <= source.most and begins and not gaps:
        return order[source.index]
    if not numbered:
        raise InputError(
            f"{what} for {len(order)} images, the clip has {_length(source)}: give one for each frame, or let each "
            "name end in a number of its own, the frame's in the source."
        )
    if max(by_number) >= source.most:
        raise InputError(
            f"{what} for an image number {max(by_number)}, the clip's source ends with {int(source.most) - 1}: give "
            "one for each frame, or let names end in the frame's number in the source, counted from 0."
        )
    return _looked_up(by_number, source)


def _looked_up(entry_of_number: dict[int, int], source: Source) -> np.ndarray:
    return np.array([entry_of_number.get(int(number), NONE) for number in source.index])


def _length(source: Source) -> str:
    first, last, length = int(source.index.min()), int(source.index.max()), len(source.index)
    return str(length) if last - first + 1 == length else f"{length} ({first} to {last} of its source)"
