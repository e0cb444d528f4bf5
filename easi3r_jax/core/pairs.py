"""Pair graphs: which frames the network sees together (named as in the released programs of DUSt3R and MonST3R).

With T frames and windows of k offsets,

    complete             every pair
    swin-k               offsets 1, 2, …, k
    swinstride-k         offsets 1, 3, …, 2k - 1
    swin2stride-k        offsets 1, 4, …, 3k - 2
    swinskip_start-k     offsets 2, 3, …, k + 1
    logwin-k             offsets 1, 2, 4, …, 2^(k - 1)
    oneref-i             frame i with every other

Windows are cyclic (the last frames are paired with the first) unless `-noncyclic` is appended. Default k is 3, i is 0.

Two differences from the released programs: no graph pairs a frame with itself or contains a pair twice (short cyclic
clips), and all graphs are symmetrised (there, `oneref` and any name beginning with `swin-1`, so also `swin-10`, are
not).
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

from easi3r_jax.core.arrays import Array, Bool, Int
from easi3r_jax.core.errors import ConfigError, InputError

_OFFSETS: dict[str, Callable[[int], list[int]]] = {
    "swin": lambda k: list(range(1, k + 1)),
    "swinstride": lambda k: list(range(1, 2 * k, 2)),
    "swin2stride": lambda k: list(range(1, 3 * k, 3)),
    "swinskip_start": lambda k: list(range(2, k + 2)),
    "logwin": lambda k: [2**power for power in range(k)],
}

# A hundred times as many as any device holds the point maps of; numbering them takes seconds.
_MAX_PAIRS = 10_000_000

GRAPHS = ("complete", *(f"{name}-K[-noncyclic]" for name in _OFFSETS), "oneref-I")


def make_edges(
    num_frames: int, graph: str = "swinstride-5-noncyclic", symmetrize: bool = True, prefilter: str | None = None
) -> Int[np.ndarray, "E 2"]:
    """Directed pairs of a clip.

    Args:
      num_frames: T >= 1.
      graph: one of `GRAPHS`, with numbers for K and I.
      symmetrize: add (j, i) for every (i, j). Without it each pair occurs once, directed as in the released programs:
        the earlier frame first, except the later one first in `complete` and frame i first in `oneref-i`.
      prefilter: keeps near pairs: "seqD" keeps those at most D frames apart, "cycD" those at most D apart on a cycle.

    Returns:
      (E, 2) int32, frame numbers (i, j), sorted and unique. Empty for one frame. A graph may omit frames (e.g.
      `swinskip_start` of a short clip); alignment then refuses it.

    Raises:
      ConfigError: an unknown graph or prefilter, a number out of range, more pairs than anything can hold.
      InputError: no frames.
    """
    if num_frames < 1:
        raise InputError("The clip has no frames.")
    pairs = _directed_pairs(num_frames, graph)
    distance = np.abs(pairs[:, 0] - pairs[:, 1])
    keep = distance > 0
    if prefilter is not None:
        keep &= _is_near(distance, num_frames, prefilter)
    pairs = pairs[keep]
    if symmetrize:
        pairs = np.concatenate([pairs, pairs[:, ::-1]])
    numbers = np.unique(pairs[:, 0].astype(np.int64) * num_frames + pairs[:, 1])  # of rows: twenty times as long
    return np.stack(np.divmod(numbers, num_frames), axis=-1).astype(np.int32)


def reverse_edges(edges: Int[Array, "E 2"], num_frames: int) -> tuple[Int[Array, "E"], Bool[Array, "E"]]:
    """The index of the reverse pair (j, i) of every pair (i, j); on the host for NumPy arrays.

    Args:
      edges: (E, 2) int, each directed pair at most once.
      num_frames: T.

    Returns:
      (E,) int32 index, arbitrary where the reverse is missing, and (E,) bool whether it exists. A frame paired with
      itself is its own reverse.
    """
    xp = edges.__array_namespace__()
    number, wanted = edges[:, 0] * num_frames + edges[:, 1], edges[:, 1] * num_frames + edges[:, 0]
    order = xp.argsort(number)
    index = order[xp.minimum(xp.searchsorted(number[order], wanted), len(edges) - 1)]
    return index.astype(np.int32), number[index] == wanted


def _directed_pairs(num_frames: int, graph: str) -> np.ndarray:
    """Every pair in one direction, (E, 2) int64; may repeat pairs and pair a frame with itself."""
    frames = np.arange(num_frames)
    if graph == "complete":
        _check_number(num_frames * (num_frames - 1) // 2, num_frames, graph)
        return np.stack(np.tril_indices(num_frames, -1), axis=-1)
    if match := re.fullmatch(r"oneref(?:-(\d{1,9}))?", graph, re.ASCII):
        reference = int(match[1] or 0)
        if reference >= num_frames:
            raise ConfigError(f"Pair graph {graph!r}: the clip only has frames 0..{num_frames - 1}.")
        return np.stack([np.full(num_frames, reference), frames], axis=-1)
    match = re.fullmatch(r"([a-z2_]+)(?:-(\d{1,9}))?(-noncyclic)?", graph, re.ASCII)
    if match is None or match[1] not in _OFFSETS or (match[2] and int(match[2]) < 1):
        raise ConfigError(
            f"Unknown pair graph {graph!r}: choose {', '.join(GRAPHS)}, with K >= 1 and I a frame number."
        )
    # More than 2 T offsets add nothing: offsets beyond T leave the clip, and on a cycle they repeat modulo T.
    count = min(int(match[2] or 3), 2 * num_frames)
    _check_number(count * num_frames, num_frames, graph)
    offsets = _OFFSETS[match[1]](count)
    if match[3]:
        steps = np.array([o for o in offsets if o < num_frames], np.int64)
        pairs = np.stack(np.broadcast_arrays(frames[:, None], frames[:, None] + steps), axis=-1).reshape(-1, 2)
        return pairs[pairs[:, 1] < num_frames]
    steps = np.array([o % num_frames for o in offsets], np.int64)
    pairs = np.stack(np.broadcast_arrays(frames[:, None], (frames[:, None] + steps) % num_frames), axis=-1)
    return np.sort(pairs.reshape(-1, 2), axis=-1)


def _check_number(count: int, num_frames: int, graph: str) -> None:
    """Raises ConfigError for more pairs than anything can hold: even listing them would take all memory."""
    if count > _MAX_PAIRS:
        raise ConfigError(
            f"Pair graph {graph!r} has {count:.2g} pairs for {num_frames} frames, more than {_MAX_PAIRS:.0e}: choose a "
            "graph of fewer, like swinstride-5-noncyclic, or fewer frames."
        )


def _is_near(distance: np.ndarray, num_frames: int, prefilter: str) -> np.ndarray:
    match = re.fullmatch(r"(seq|cyc)(\d{1,9})", prefilter, re.ASCII)
    if match is None:
        raise ConfigError(f"Unknown prefilter {prefilter!r}: 'seqD' or 'cycD', with D the largest frame distance.")
    if match[1] == "cyc":
        distance = np.minimum(distance, num_frames - distance)
    return distance <= int(match[2])
