"""When the clip is aligned, with which masks, and what a refiner is given. The alignment itself is a stand-in."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from easi3r_jax.core.config import AlignConfig, PipelineConfig
from easi3r_jax.core.types import Frames, Geometry, Given
from easi3r_jax.inference import pipeline
from easi3r_jax.inference.clip import ClipInputs, reads_geometry
from tests.inference.small import Corner

H, W = 6, 8
#: Frames, and with padding.
LENGTH, PADDED = 3, 4


@pytest.fixture
def masks():
    masks = np.zeros((PADDED, H, W), bool)
    masks[:, 2:4] = True
    return jnp.asarray(masks)


@pytest.fixture
def calls(monkeypatch):
    """Options of every alignment; each gives another geometry."""
    calls = []

    def align(predictions, config, **options):
        calls.append(options)
        depth = jnp.arange(PADDED * H * W, dtype=jnp.float32).reshape(PADDED, H, W) + 1000 * len(calls)
        poses, matrices = (jnp.tile(jnp.eye(n)[None], (PADDED, 1, 1)) for n in (4, 3))
        return Geometry(poses, matrices, depth, jnp.ones_like(depth)), jnp.full(2, len(calls), jnp.float32)

    monkeypatch.setattr(pipeline.alignment, "align", align)
    return calls


def run(masks, refiner, *, flow=True, **alignment):
    frames = Frames(
        rgb=jnp.zeros((PADDED, H, W, 3), jnp.uint8),
        source_index=np.arange(PADDED),
        time=np.arange(PADDED) / 24,
        frame_from_source=np.eye(3),
        source_size=np.array([H, W]),
        valid=jnp.arange(PADDED) < LENGTH,
    )
    edges = pipeline.clip_edges(PADDED, "complete")
    given = Given(flow=jnp.zeros((len(edges), H, W, 2)) if flow else None)
    clip = ClipInputs(frames, LENGTH, edges, np.ones(len(edges), bool), given, None, False, (1, 1))
    config = PipelineConfig(mask_dilation=1, alignment=AlignConfig(**alignment))
    return pipeline.refine_and_align(None, masks, clip, config, refiner)


class Top:
    """A refiner that reads geometry: it leaves the third row, and records its arguments."""

    needs_geometry = True

    def __init__(self):
        self.seen = []

    def __call__(self, rgb, masks, *, geometry, progress):
        self.seen.append((rgb, masks, geometry))
        refined = masks.copy()
        refined[:, 3:] = False
        return refined


@reads_geometry
def unchanged(rgb, masks, *, geometry, progress):
    assert geometry.depth.shape == masks.shape
    return masks


def rows(masks):
    """The rows that are dynamic, the same in all frames."""
    masks = np.asarray(masks)
    assert (masks == masks[:1, :, :1]).all()
    return np.flatnonzero(masks[0, :, 0]).tolist()


@pytest.mark.parametrize("refiner", [None, Corner()])
def test_a_plain_refiner_comes_before_the_only_alignment(masks, calls, refiner):
    dynamic, geometry, losses = run(masks, refiner)
    (options,) = calls
    assert options["dynamic_mask"] is dynamic and options["release"]
    assert bool(dynamic[0, 0, 0]) == (refiner is not None) and losses[0] == 1 and geometry.depth[0, 0, 0] == 1000


def test_a_refiner_of_geometry_comes_between_two(masks, calls):
    refiner = Top()
    dynamic, geometry, losses = run(masks, refiner)
    first, second = calls
    assert rows(first["dynamic_mask"]) == [1, 2, 3, 4] and not first["release"]
    assert second["dynamic_mask"] is dynamic and rows(dynamic) == [1, 2, 3] and second["release"]
    assert losses[0] == 2 and geometry.depth[0, 0, 0] == 2000
    ((rgb, seen, first_geometry),) = refiner.seen
    assert {type(x) for x in jax.tree.leaves((rgb, seen, first_geometry))} == {np.ndarray}
    assert {len(x) for x in jax.tree.leaves((rgb, seen, first_geometry))} == {LENGTH}
    np.testing.assert_array_equal(seen, masks[:LENGTH])  # not dilated
    assert first_geometry.depth[0, 0, 0] == 1000


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({"flow": False}, 1),
        ({"flow": True, "flow_weight": 0.0}, 1),
        ({"flow": False, "depth_weight": 0.1}, 2),
    ],
)
def test_the_clip_is_aligned_again_only_if_the_alignment_depends_on_masks(masks, calls, options, count):
    dynamic, _, losses = run(masks, Top(), **options)
    assert len(calls) == count == losses[0] and rows(dynamic) == [1, 2, 3]
    assert [x["release"] for x in calls] == [False] * (count - 1) + [True]


def test_the_clip_is_not_aligned_again_with_the_same_masks(masks, calls):
    dynamic, _, losses = run(masks, unchanged)
    assert len(calls) == 1 == losses[0] and rows(dynamic) == [1, 2, 3, 4]
