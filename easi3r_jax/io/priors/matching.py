"""Matches the entries of a user's file, or the files of a user's folder, to the frames of the clip.

Lists have one entry per frame of the clip, or per frame of its source. Frames know their numbers in the source and
their times, but not the source's length: with every n-th frame taken, the source ends within n frames of the last one,
unless reading stopped early (`FrameConfig.first`).
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
import re
from collections.abc import Sequence

import numpy as np

from easi3r_jax.core.arrays import Float, Int
from easi3r_jax.core.errors import InputError
from easi3r_jax.core.types import Frames
from easi3r_jax.io.files.names import canonical, natural_order, stem_of
from easi3r_jax.io.video.clip import ASSUMED_RATE

#: In place of an entry's number: the frame has no entry.
NONE = -1


@dataclasses.dataclass(frozen=True, eq=False)
class SourceFrames:
    """What is known of a clip's source.

    Attributes:
      index: (T,) int, numbers of the clip's frames in the source.
      time: (T,) float64, their seconds since the source's first frame.
      stopped_early: reading stopped before the source's end.
      names: file names of all images of the source in order; empty if unknown.
    """

    index: Int[np.ndarray, "T"]
    time: Float[np.ndarray, "T"]
    stopped_early: bool
    names: Sequence[str]

    @classmethod
    def of(cls, frames: Frames, stopped_early: bool = False, names: Sequence[str] = ()) -> SourceFrames:
        """The source of a clip."""
        return cls(np.asarray(frames.source_index), np.asarray(frames.time), stopped_early, names)

    @property
    def min_length(self) -> int:
        """The smallest number of frames that the source can have."""
        return len(self.names) or int(self.index.max()) + 1

    @property
    def max_length(self) -> float:
        """The largest number of frames that the source can have; infinite if nothing limits it."""
        if self.names:
            return len(self.names)
        if self.stopped_early:
            return math.inf
        return int(self.index.max()) + (int(np.diff(self.index).max()) if len(self.index) > 1 else 1)

    @property
    def interval(self) -> float:
        """Mean time between consecutive frames of the source, in seconds."""
        if len(self.index) < 2:
            return float(1 / ASSUMED_RATE)
        return float((self.time[-1] - self.time[0]) / (self.index[-1] - self.index[0]))


def by_count(count: int, source: SourceFrames, what: str) -> Int[np.ndarray, "T"]:
    """(T,) entries of a list without names or stamps: one entry per frame of the source, or one per frame of the clip.

    Args:
      count: number of entries.
      source: of the clip.
      what: name of the list for messages, "poses.txt: poses".

    Raises:
      InputError: neither; the message has both counts.
    """
    if source.min_length <= count <= source.max_length:
        return source.index
    if count == len(source.index):
        return np.arange(count)
    raise InputError(
        f"{what} for {count} frames, the clip has {_length(source)}: give one per frame of the clip or of its source."
    )


def by_name_or_count(names: Sequence[str], source: SourceFrames, what: str) -> Int[np.ndarray, "T"]:
    """(T,) entries of files that are named as the source's images, or else as `by_count`.

    Files that are one per image of the source may be numbered in another way, for example from 0 and not from 1.

    Args:
      names: of the files, in order.
      source: of the clip.
      what: as in `by_count`.

    Raises:
      InputError: as `by_count`; or some files have the names of the source's images, but not those of all frames.
    """
    own = _by_stem({stem_of(name): entry for entry, name in enumerate(names)}, [stem_of(name) for name in source.names])
    if all(entry == NONE for entry in own.values()) or len(names) > len(source.names):
        return by_count(len(names), source, what)
    entries = _looked_up(own, source)
    if (entries != NONE).all():
        return entries
    if len(names) == len(source.names):
        return source.index
    missing = source.names[int(source.index[np.flatnonzero(entries == NONE)[0]])]
    raise InputError(
        f"{what} for {len(names)} frames with the names of the clip's images, but none for {missing}: give one per "
        "frame of the clip or of its source."
    )


def by_stamp(stamps: Float[np.ndarray, "N"], source: SourceFrames, what: str) -> Int[np.ndarray, "T"]:
    """(T,) entries by their time stamps, `NONE` where a frame has none.

    The first rule that applies is used:

    - As many entries as the clip has frames: matched in the order of the stamps, whatever their values.
    - Integer stamps below the number of the source's frames, with gaps: frame numbers of the source, from 0.
    - As many entries as the source has frames, if that is known: matched in the order of the stamps.
    - Integer stamps below the number of the source's frames: frame numbers of the source.
    - Otherwise seconds since the source's first frame: the nearest stamp, at most half a frame of the source away.

    Args:
      stamps: (N,) finite.
      source: of the clip.
      what: as in `by_count`.

    Raises:
      InputError: a stamp occurs twice, or no stamp is near a frame.
    """
    order = np.argsort(stamps, kind="stable")
    ordered = stamps[order]
    twice = ordered[1:][np.diff(ordered) == 0]
    if len(twice):
        raise InputError(f"{what} with the stamp {twice[0]:.15g} twice: remove one.")
    if len(stamps) == len(source.index):
        return order
    integers = bool(np.all((ordered == np.rint(ordered)) & (ordered >= 0) & (ordered < source.max_length)))
    fits = source.min_length <= len(stamps) <= source.max_length < math.inf
    if fits and not (integers and np.ptp(ordered) >= len(ordered)):
        return order[source.index]
    if integers:
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
            "first frame, or give one per frame."
        )
    return np.where(near, order[nearest], NONE)


def by_name(names: Sequence[str], source: SourceFrames, what: str) -> Int[np.ndarray, "T"]:
    """(T,) entries by the names of image files, `NONE` where a frame has none.

    The first rule that applies is used:

    - The source's own names, if they are known and any of them occurs; folders and image
      suffixes are ignored, and upper or lower case and Unicode's forms if nothing else differs.
    - As many entries as the clip has frames: matched in the order of the names, sorted as in a folder.
    - As many as the source has frames, and the numbers at the ends of the names have no gaps: likewise.
    - Otherwise these numbers are frame numbers of the source, from 0.

    Raises:
      InputError: a name occurs twice, names have no number, or numbers exceed the source.
    """
    stems = [stem_of(name) for name in names]
    entry_of = {stem: entry for entry, stem in enumerate(stems)}
    if len(entry_of) < len(stems):
        twice = next(stem for entry, stem in enumerate(stems) if entry_of[stem] != entry)
        raise InputError(f"{what} with {twice!r} twice: remove one.")
    own = _by_stem(entry_of, [stem_of(name) for name in source.names])
    if any(entry != NONE for entry in own.values()):
        return _looked_up(own, source)

    order = np.array([entry_of[path.name] for path in natural_order(map(pathlib.PurePosixPath, stems))])
    if len(order) == len(source.index):
        return order
    ends = ((re.search(r"[0-9]{1,18}$", stem), entry) for stem, entry in entry_of.items())
    by_number = {int(end[0]): entry for end, entry in ends if end}
    numbered = len(by_number) == len(order)
    gaps = numbered and max(by_number) - min(by_number) >= len(order)
    # If the source's length is unknown, a list is taken to be complete only if it starts like a folder, with 0 or 1.
    begins = source.max_length < math.inf or (numbered and min(by_number) <= 1)
    if source.min_length <= len(order) <= source.max_length and begins and not gaps:
        return order[source.index]
    if not numbered:
        raise InputError(
            f"{what} for {len(order)} images, the clip has {_length(source)}: give one per frame, or let each name end "
            "in the number of its frame in the source."
        )
    if max(by_number) >= source.max_length:
        raise InputError(
            f"{what} for an image number {max(by_number)}, but the clip's source ends with "
            f"{int(source.max_length) - 1}: give one per frame, or let each name end in the number of its frame in the "
            "source, from 0."
        )
    return _looked_up(by_number, source)


def _by_stem(entry_of: dict[str, int], stems: Sequence[str]) -> dict[int, int]:
    """Number of an image of the source -> entry of the same name, or else of the only one that differs in case only."""
    similar: dict[str, list[int]] = {}
    for stem, entry in entry_of.items():
        similar.setdefault(canonical(stem), []).append(entry)
    found = {}
    for number, stem in enumerate(stems):
        entries = similar.get(canonical(stem), [])
        found[number] = entry_of.get(stem, entries[0] if len(entries) == 1 else NONE)
    return found


def _looked_up(entry_of_number: dict[int, int], source: SourceFrames) -> np.ndarray:
    return np.array([entry_of_number.get(int(number), NONE) for number in source.index])


def _length(source: SourceFrames) -> str:
    first, last, length = int(source.index.min()), int(source.index.max()), len(source.index)
    return str(length) if last - first + 1 == length else f"{length} ({first} to {last} of its source)"
