"""`python -m experiments.study` and its parts."""

import dataclasses
import json
import math

import cv2
import jax
import numpy as np
import pytest

from easi3r_jax import motion
from easi3r_jax.apps.rendered import sampled
from easi3r_jax.apps.study import clips, report, scores, systems
from easi3r_jax.apps.study.report import Mean, choose, mean, over_clips
from easi3r_jax.apps.study.scores import ALL_LAYERS, FORMULA, MAPS, Score
from easi3r_jax.apps.study.systems import System
from easi3r_jax.core.config import AlignConfig, PipelineConfig, SegmentationConfig
from easi3r_jax.core.errors import ConfigError, InputError
from easi3r_jax.core.statistics import AttentionStats
from easi3r_jax.inference import pipeline
from easi3r_jax.io.sequences import CLIPS
from easi3r_jax.synthetic import sample_clip
from easi3r_jax.synthetic.clips import ClipConfig
from easi3r_jax.weights.checkpoint import save_checkpoint
from easi3r_jax.weights.load import load_model
from tests.networks import network as weights_of
from tests.networks import small_network

GRID = (3, 4)
SMALL = ClipConfig(size=(32, 48), num_frames=3)
NETWORK = small_network(mlp_ratio=4.0)


@jax.jit
def temporal_state(stats):
    edges = np.array([(i, j) for i in range(4) for j in range(4) if i != j], np.int32)
    state = motion.init_temporal(4, *stats.src.shape[1:])
    return motion.update_temporal(state, stats, edges, np.ones(len(edges), bool), GRID)


@jax.jit
def fused_and_score(state):
    fused = motion.fuse_temporal(state, GRID)
    return fused, motion.dynamic_score(fused)


def test_maps_of_a_layer_are_those_of_a_network_of_that_layer():
    rng = np.random.default_rng(0)
    stats = AttentionStats(*(rng.standard_normal((12, 3, 2, 12), np.float32) for _ in range(2)))
    maps = np.asarray(scores.attention_maps(temporal_state(stats), GRID))
    assert maps.shape == (4, len(MAPS), 4, *GRID)
    for n, chosen in enumerate((slice(None), slice(0, 1), slice(1, 2), slice(2, 3))):
        alone = temporal_state(jax.tree.map(lambda x, chosen=chosen: x[:, chosen], stats))
        fused, score = fused_and_score(alone)
        ours = dict(zip(MAPS, maps[n], strict=True))
        np.testing.assert_allclose(ours[FORMULA], score, atol=1e-5)
        for name in ("mean_src", "std_src", "mean_ref", "std_ref"):
            np.testing.assert_allclose(ours[name], getattr(fused, name), atol=1e-5)
            np.testing.assert_allclose(ours["1 - " + name], 1 - ours[name], atol=1e-6)


@pytest.mark.slow
def test_rendered_twins_differ_by_motion_only():
    first, other = clips.rendered(0, 1, 2, SMALL)
    assert first.name != other.name
    assert np.abs(first.moving.frames.rgb.astype(int) - other.moving.frames.rgb).max() > 0
    for twins in (first, other):
        moving, still = twins.moving, twins.still
        np.testing.assert_array_equal(moving.movers, moving.truth.masks)
        assert moving.movers.any()
        assert still.movers.any() and not still.truth.masks.any()
        np.testing.assert_array_equal(moving.truth.world_from_cam, still.truth.world_from_cam)
        # Nothing has moved yet in the middle frame.
        np.testing.assert_array_equal(moving.frames.rgb[1], still.frames.rgb[1])
        np.testing.assert_array_equal(moving.movers[1], still.movers[1])
        assert (moving.movers[0] != still.movers[0]).any()
    again = next(iter(clips.rendered(0, 1, 1, SMALL)))
    np.testing.assert_array_equal(again.still.frames.rgb, first.still.frames.rgb)


def test_a_clip_is_the_one_that_sample_clip_samples():
    """Planned and rendered by two programs instead of one."""
    key = jax.random.key(3)
    ours, expected = sampled(key, SMALL), jax.jit(lambda key: sample_clip(key, SMALL))(key)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        if a.dtype.kind == "f":
            assert np.mean(~np.isclose(a, b, rtol=1e-4, atol=1e-4)) < 1e-3  # rounding moves a pixel over an edge
        else:
            assert np.mean(np.abs(a.astype(int) - b.astype(int)) > (a.dtype == np.uint8)) < 1e-3


@pytest.fixture(scope="module")
def embedded():
    """The network that ships with the package, three frames of its bundled clip, and their features."""
    model = load_model("embedded", "exact")
    clip = clips.read(CLIPS / "demo", model.config).moving
    cut = jax.tree.map(lambda x: x[:3] if len(x) == 16 else x, (vars(clip.frames), vars(clip.truth)))
    clip = clips.StudyClip(type(clip.frames)(**cut[0]), type(clip.truth)(**cut[1]), clip.movers[:3])
    return model, clip, pipeline.encode(model, clip.frames)


@pytest.mark.slow
def test_the_readouts_score_is_that_of_the_first_pass(embedded):
    model, clip, features = embedded
    config = PipelineConfig(graph="complete", segmentation=SegmentationConfig(restarts=1))
    found = {score: (values, mask) for score, values, mask in scores.scored(model, clip, features, config)}
    grid, size = model.grid(clip.frames.rgb.shape[1:3]), clip.frames.rgb.shape[1:3]
    statistics = pipeline.attention_pass(model, features, pipeline.clip_edges(3, "complete"), grid, gram=True)
    labels = motion.cluster_labels(features, grid, config.segmentation, jax.random.key(0))
    residual = motion.Readout.from_config(model.readout).residual(statistics, grid)
    _, expected = pipeline.segment(statistics, labels, size, config.segmentation, residual)
    values, mask = found[Score(scores.READOUT, "", True)]
    np.testing.assert_allclose(values, expected.score, atol=1e-3)
    assert np.mean(mask != expected.mask) < 1e-2


def test_systems_differ_by_their_parts(embedded):
    """Flow changes the cameras; the true masks, used for flow alone, are the result's and change the cameras again."""
    model, clip, features = embedded
    config = PipelineConfig(graph="complete", alignment=AlignConfig(iterations=8, flow_start=0.1))
    flow, found = systems.flow_of(clip, config), {}
    for system in systems.parse("plain,flow,flow+truth+single-pass"):
        found[system.name] = systems.reconstruct(model, clip, features, system, config, flow).scene
    plain, with_flow, truth = (found[name].world_from_cam for name in found)
    assert np.abs(plain - with_flow).max() > 1e-4 and np.abs(with_flow - truth).max() > 1e-5
    np.testing.assert_array_equal(found["flow+truth+single-pass"].dynamic_mask, clip.truth.masks)
    assert not found["flow"].dynamic_mask.any()


def write_clip(folder, twins_clip, instance=None):
    (folder / "frames").mkdir(parents=True)
    for t, image in enumerate(twins_clip.frames.rgb):
        cv2.imwrite(str(folder / "frames" / f"{t:03}.png"), image[..., ::-1])
    arrays = {k: v for k, v in vars(twins_clip.truth).items() if v is not None}
    np.savez(folder / "ground_truth.npz", **arrays, **({} if instance is None else {"instance": instance}))


def test_folders_of_clips_are_read_with_their_twins(tmp_path):
    twins = next(iter(clips.rendered(0, 0, 1, SMALL)))
    for name in ("b", "a"):
        for part, ending in ((twins.moving, ""), (twins.still, "_still")):
            write_clip(tmp_path / (name + ending), part, np.where(part.movers, 2, 5) if name == "a" else None)
    write_clip(tmp_path / "alone", twins.moving)
    found = clips.folders(tmp_path)
    assert [p.name for p in found] == ["a", "b"]
    a, b = (clips.read(path, NETWORK) for path in found)
    np.testing.assert_array_equal(a.moving.frames.rgb, twins.moving.frames.rgb)
    np.testing.assert_array_equal(a.moving.movers, twins.moving.movers)
    np.testing.assert_array_equal(a.still.movers, twins.still.movers)
    assert b.still.movers is None  # no instance numbers: unknown
    np.testing.assert_array_equal(b.moving.movers, twins.moving.movers)


@pytest.mark.parametrize("damage", ["no folder", "no twin", "no masks", "short twin"])
def test_folders_without_clips_are_refused(tmp_path, damage):
    path = tmp_path / "clips"
    if damage != "no folder":
        twins = next(iter(clips.rendered(0, 0, 1, SMALL)))
        still = twins.still
        if damage == "no masks":
            still = dataclasses.replace(still, truth=dataclasses.replace(still.truth, masks=None))
        if damage == "short twin":
            still = dataclasses.replace(still, frames=dataclasses.replace(still.frames, rgb=still.frames.rgb[:2]))
        write_clip(path / "a", twins.moving)
        if damage != "no twin":
            write_clip(path / "a_still", still)
    with pytest.raises(InputError, match="clips"):
        clips.read(clips.folders(path)[0], NETWORK)


def test_means_and_standard_errors():
    assert mean([1.0, 2.0, None, 3.0]) == (2.0, pytest.approx(1 / math.sqrt(3)), 3)
    assert mean([0.5]) == Mean(0.5, None, 1)
    assert mean([None]) == Mean(None, None, 0)
    assert [str(mean(x)) for x in ([1.0, 3.0], [0.5], [])] == ["2.000 ± 1.000", "0.500", "–"]
    assert over_clips([{"a": {"x": 1.0}}, {"a": {"x": 3.0}}])["a"]["x"].mean == 2.0


def test_choices_are_the_best_of_their_kind_on_development_clips():
    def figures(auc, still):
        return {"auc": mean([auc]), "gain": mean([None if auc is None else auc - still])}

    development = {
        Score(ALL_LAYERS, FORMULA, False): figures(0.6, 0.5),
        Score(ALL_LAYERS, FORMULA, True): figures(0.7, 0.65),
        Score(ALL_LAYERS, "std_src", False): figures(0.5, 0.2),
        Score("layer 1", FORMULA, True): figures(0.4, 0.4),
        Score("layer 2", "mean_ref", False): figures(0.9, 0.9),
        Score("layer 2", "mean_src", False): figures(None, 0.5),
        Score("rigid", "", False): figures(0.95, 0.1),
    }
    assert choose(development) == {
        "the method's score, clustered or not": Score(ALL_LAYERS, FORMULA, True),
        "a single map of all layers": Score(ALL_LAYERS, "std_src", False),
        "the method's score of any layer": Score(ALL_LAYERS, FORMULA, True),
        "any map of any layer": Score("layer 2", "mean_ref", False),
        "any map of any layer, by AUC above still": Score(ALL_LAYERS, "std_src", False),
        "rigid, clustered or not": Score("rigid", "", False),
    }


def test_differences_are_paired_and_of_twins_to_twins():
    clips = [{"a": {"x": x}, "a, still": {"x": 2 * x}, "b": {"x": x + 1}, "b, still": {"x": 2 * x + 3}} for x in (1, 9)]
    assert report.differences(clips) == {"b": {"x": Mean(1, 0, 2)}, "b, still": {"x": Mean(3, 0, 2)}}
    clips[0]["b"]["x"] = None
    assert report.differences(clips)["b"]["x"] == Mean(1, None, 1)


@pytest.mark.parametrize(
    ("name", "system"),
    [
        ("plain", System("plain", flow=False, masks="", reattention=True, refined=False)),
        ("flow+truth+single-pass", System("flow+truth+single-pass", True, "truth", False, False)),
        ("match+reprojection", System("match+reprojection", False, "match", True, True)),
    ],
)
def test_systems_are_their_parts(name, system):
    assert systems.parse(f" {name},") == [system]


@pytest.mark.parametrize(
    "name",
    [
        "plain+flow",
        "flow+flow",
        "match+rigid",
        "flow+single-pass",
        "none",
        "flow+",
        "truth+single-pass",
        "match+flow,flow+match",
    ],
)
def test_systems_that_mean_nothing_are_refused(name):
    with pytest.raises(ConfigError, match=name.split(",")[0].split("+")[0]):
        systems.parse(name)


def test_tables_are_markdown():
    table = report.Table("Title", ("a", "b"), [("x", "1"), ("y", "2")])
    assert table.markdown() == "**Title**\n\n| a | b |\n|---|---|\n| x | 1 |\n| y | 2 |\n"


@pytest.fixture(scope="module")
def study(command, tmp_path_factory):
    """A small random network, studied as two."""
    parent = tmp_path_factory.mktemp("study")
    folder, network = parent / "result", parent / "network"
    save_checkpoint(network, NETWORK, weights_of(NETWORK), source_name="random")
    done = command(
        "study",
        *(
            "--num=1",
            "--dev_num=1",
            "--num_frames=3",
            "--iterations=5",
            "--systems=plain,flow+attention,flow+truth+single-pass",
            "--clusters=8",
        ),
        *(f"--checkpoint={network}", f"--tuned={network}", f"--output={folder}"),
    )
    assert done.returncode == 0, done.stderr
    return done, folder


@pytest.mark.slow
def test_the_study_writes_what_it_prints(study):
    done, folder = study
    assert sorted(p.name for p in folder.iterdir()) == ["report.md", "results.json"]
    written = (folder / "report.md").read_text()
    assert "python -m experiments.study --checkpoint=" in written
    assert "--num=1 --dev_num=1 --num_frames=3" in written and "--output" not in written
    results = json.loads((folder / "results.json").read_text())
    assert set(results["clips"]["development"]).isdisjoint(results["clips"]["test"])
    figures = results["test"]["formula, all layers, clustered"]
    for figure in ("auc", "still_auc", "iou", "still_share"):
        text = f"{figures[figure]['mean']:.3f}"
        assert text in written and text in done.stdout
    assert figures["gain"]["mean"] == pytest.approx(figures["auc"]["mean"] - figures["still_auc"]["mean"])
    assert len(results["test"]) == 2 * (3 * len(MAPS) + 2)
    assert set(results["chosen"]) == set(report.CHOICES) - {"read-out, clustered or not"}  # this network has none
    assert all(name in results["test"] for name in results["chosen"].values())


@pytest.mark.slow
def test_the_study_reconstructs_with_both_networks(study):
    record = json.loads((study[1] / "results.json").read_text())
    results, rows = record["reconstructions"], ("plain", "flow+attention", "flow+truth+single-pass")
    names = [f"{network}{row}{still}" for network in ("", "fine-tuned: ") for row in rows for still in ("", ", still")]
    assert list(results) == names
    for name in names:
        assert results[name]["ate"]["mean"] > 0
        assert ("mask_iou" in results[name]) == ("attention" in name)
    # The same weights twice: the same figures twice.
    assert results["flow+attention"] == results["fine-tuned: flow+attention"]
    assert list(record["differences"]) == [name for name in names if name not in ("plain", "plain, still")]
    off = record["differences"]["flow+attention, still"]["ate"]["mean"]
    assert off == pytest.approx(
        results["flow+attention, still"]["ate"]["mean"] - results["plain, still"]["ate"]["mean"]
    )


@pytest.mark.parametrize(
    ("argument", "says"),
    [("--systems=plain,folw", "folw"), ("--clips=nowhere", "nowhere"), ("--tuned=nothing", "nothing")],
)
def test_what_cannot_work_fails_in_one_line(here, tmp_path, argument, says):
    done = here("study", argument, f"--output={tmp_path / 'x'}")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1 and says in done.stderr
    assert not list(tmp_path.iterdir())
