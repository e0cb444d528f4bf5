"""Pair graphs against the released programs' edge lists (except their documented bugs), and their properties."""

import json

import jax
import numpy as np
import pytest

from easi3r_jax.core.errors import ConfigError, InputError
from easi3r_jax.core.pairs import make_edges, reverse_edges

WINDOWS = ["swin", "swinstride", "swin2stride", "swinskip_start", "logwin"]


@pytest.fixture(scope="module")
def listed(golden):
    return json.loads((golden / "pairs" / "pairs.json").read_text())


def as_set(edges) -> set:
    return {(int(i), int(j)) for i, j in edges}


def test_edge_sets_equal_golden_where_the_reference_is_sound(listed):
    compared = 0
    for graph, by_count in listed["symmetrize_true"].items():
        for count, pairs in by_count.items():
            if graph.startswith("oneref") and int(graph.partition("-")[2] or 0) >= int(count):
                continue
            expected = {(i, j) for i, j in pairs["sorted"] if i != j}
            if graph.startswith(("swin-1", "oneref")):  # there left in one direction, by mistake
                expected |= {(j, i) for i, j in expected}
            assert as_set(make_edges(int(count), graph)) == expected, (graph, count)
            compared += 1
    assert compared > 400


def test_one_direction_equals_golden(listed):
    for graph, pairs in listed["symmetrize_false_n6"].items():
        expected = {(i, j) for i, j in pairs if i != j}
        assert as_set(make_edges(6, graph, symmetrize=False)) == expected, graph


def test_forced_symmetry_equals_golden(listed):
    for graph, pairs in listed["force_symmetrize_n6"].items():
        assert as_set(make_edges(6, graph)) == as_set(pairs), graph


def test_prefilters_equal_golden(listed):
    for name, pairs in listed["prefilter"].items():
        prefilter = name.split("prefilter=")[1]
        assert as_set(make_edges(8, "complete", prefilter=prefilter)) == as_set(pairs), name


@pytest.mark.parametrize("graph", ["complete", "oneref-1", *(f"{w}-{k}{c}" for w in WINDOWS for k in (1, 4, 10)
                                                              for c in ("", "-noncyclic"))])  # fmt: skip
@pytest.mark.parametrize("count", [2, 3, 7, 20])
def test_edges_are_sorted_symmetric_without_self_or_repeated_pairs(graph, count):
    edges = make_edges(count, graph)
    assert edges.dtype == np.int32
    assert edges.shape == (len(edges), 2)
    listed = [tuple(e) for e in edges.tolist()]
    assert listed == sorted(set(listed))
    assert all(i != j and 0 <= i < count and 0 <= j < count and (j, i) in set(listed) for i, j in listed)


@pytest.mark.parametrize("window", WINDOWS)
def test_noncyclic_windows_are_the_cyclic_ones_that_do_not_wrap(window):
    long = as_set(make_edges(40, f"{window}-2-noncyclic"))
    cyclic = as_set(make_edges(40, f"{window}-2"))
    assert long == {(i, j) for i, j in cyclic if abs(i - j) <= 20}
    # On a cycle every frame has the same number of partners.
    degrees = np.bincount(make_edges(40, f"{window}-2")[:, 0], minlength=40)
    assert degrees.min() == degrees.max() > 0


def test_default_graph_of_a_long_clip():
    edges = make_edges(100)
    assert set(np.abs(edges[:, 0] - edges[:, 1])) == {1, 3, 5, 7, 9}
    assert len(edges) == 2 * (99 + 97 + 95 + 93 + 91)


@pytest.mark.parametrize("graph", ["complete", "swin-3", "swinstride-5-noncyclic", "logwin-2", "oneref"])
def test_one_frame_has_no_pairs_and_two_frames_have_one_both_ways(graph):
    assert make_edges(1, graph).shape == (0, 2)
    assert make_edges(2, graph).tolist() == [[0, 1], [1, 0]]


def test_windows_wider_than_the_clip_are_complete():
    for graph in ("swin-9999999", "swin-9999999-noncyclic"):
        np.testing.assert_array_equal(make_edges(9, graph), make_edges(9, "complete"))


@pytest.mark.parametrize("graph", ["", "swim-3", "swin-0", "swin-x", "swin--2", "complete-noncyclic", "swin-3-cyclic",
                                   "oneref-noncyclic", "swin-3-noncyclic-noncyclic", "swin-³"])  # fmt: skip
def test_unknown_graph_is_refused_and_the_choices_named(graph):
    with pytest.raises(ConfigError, match="swinstride-K") as caught:
        make_edges(5, graph)
    assert repr(graph) in str(caught.value)


def test_numbers_outside_the_clip_are_refused():
    with pytest.raises(ConfigError, match=r"frames 0\.\.3"):
        make_edges(4, "oneref-4")
    with pytest.raises(ConfigError, match="prefilter"):
        make_edges(4, "complete", prefilter="near2")
    with pytest.raises(InputError, match="no frames"):
        make_edges(0, "complete")


@pytest.mark.parametrize("function", [reverse_edges, jax.jit(reverse_edges, static_argnums=1)])
def test_reverse_edges_are_found(function):
    edges = np.random.default_rng(0).permutation(make_edges(7, "swinstride-3"))
    back, exists = function(edges, 7)
    assert np.all(exists)
    np.testing.assert_array_equal(edges[back], edges[:, ::-1])
    edges = np.array([[0, 1], [3, 2], [1, 0], [2, 2], [2, 3], [1, 3]], np.int32)
    index, exists = function(edges, 4)
    np.testing.assert_array_equal(exists, [True, True, True, True, True, False])
    np.testing.assert_array_equal(index[exists], [2, 4, 0, 3, 1])
