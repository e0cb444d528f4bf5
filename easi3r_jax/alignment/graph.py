"""The spanning tree along which a clip is assembled (host code)."""

from __future__ import annotations

import dataclasses

import numpy as np

from easi3r_jax.core.arrays import Bool, Float, Int
from easi3r_jax.core.errors import ConfigError, InputError


@dataclasses.dataclass(frozen=True)
class SpanningTree:
    """Maximum spanning tree, in the order in which its edges join the world.

    Attributes:
      edges: (T - 1,) indices of the directed pairs. Camera i of the first one defines the world.
      joins_i: (T - 1,) bool: True if frame i is already placed and frame j joins, False the other way round
        (meaningless for the first edge).
      focal_edges: (T,) index of the pair in which each frame's focal length is measured, always as frame i; -1 if the
        frame is never frame i.
    """

    edges: Int[np.ndarray, "joins"]
    joins_i: Bool[np.ndarray, "joins"]
    focal_edges: Int[np.ndarray, "T"]


def check_edges(edges: Int[np.ndarray, "E 2"], num_frames: int) -> None:
    """Refuses pairs of frames that do not exist, and disconnected graphs.

    Raises:
      InputError: frame numbers out of range.
      ConfigError: the pairs do not connect all frames.
    """
    from scipy import sparse

    if len(edges) == 0 or edges.min() < 0 or edges.max() >= num_frames:
        raise InputError(f"The pairs must be of frames 0..{num_frames - 1}, got {len(edges)} pairs with others.")
    adjacency = sparse.coo_array((np.ones(len(edges)), edges.T), shape=(num_frames, num_frames))
    parts, label = sparse.csgraph.connected_components(adjacency, directed=False)
    if parts > 1:
        unreached = np.flatnonzero(label != label[0])
        raise ConfigError(
            f"The pair graph is disconnected: {parts} parts, frame {unreached[0]} is not connected to frame 0. "
            "Choose a graph that joins all frames (e.g. 'complete' or 'swinstride-5-noncyclic')."
        )


def spanning_tree(
    edges: Int[np.ndarray, "E 2"], scores: Float[np.ndarray, "E"], num_frames: int, *, stale_focal: bool = False
) -> SpanningTree:
    """Builds the tree in order of decreasing score (DUSt3R's released initialisation).

    Edges are taken from best to worst; an edge with neither frame placed goes to the back of the queue. A frame's focal
    length is measured in its first tree edge as frame i, else in its best pair as frame i.

    Args:
      edges: (E, 2) connected pairs.
      scores: (E,) positive.
      num_frames: T >= 2.
      stale_focal: reproduces a bug of the released program, for comparison: the focal length of a tree edge's frame i
        is measured in the *previous* tree edge (another frame's point map).
    """
    from scipy import sparse

    number = {(int(i), int(j)): e for e, (i, j) in enumerate(edges) if i != j}
    cost = sparse.dok_array((num_frames, num_frames))
    for pair, e in number.items():
        cost[pair] = -float(scores[e])
    tree = sparse.csgraph.minimum_spanning_tree(cost.tocsr()).tocoo()
    waiting = sorted(zip(-tree.data, tree.row.tolist(), tree.col.tolist(), strict=True))

    order, joins_i, known = [], [], set()
    focal_edges = np.full(num_frames, -1)
    while waiting:
        score, i, j = waiting.pop()
        if focal_edges[i] < 0:
            focal_edges[i] = order[-1] if stale_focal and order else number[i, j]
        if known and not {i, j} & known:
            waiting.insert(0, (score, i, j))
            continue
        order.append(number[i, j])
        joins_i.append(i in known)
        known |= {i, j}

    for e in np.argsort(-scores, kind="stable"):
        if focal_edges[edges[e, 0]] < 0:
            focal_edges[edges[e, 0]] = e
    return SpanningTree(np.asarray(order), np.asarray(joins_i), focal_edges)


def nearest_first(edges: Int[np.ndarray, "E 2"], scores: Float[np.ndarray, "E"]) -> Float[np.ndarray, "E"]:
    """Positive scores (E,) that rank pairs by frame distance, nearest first, and then by decreasing `scores`."""
    apart = np.abs(edges[:, 0] - edges[:, 1])
    return 1 + apart.max() - apart + 0.5 * scores / scores.max()
