"""The public API, `import easi3r_jax as e3r`: every name is used, and pure functions agree with the host's drivers."""

import ast
import dataclasses
import functools
import inspect
import pathlib
import re
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import easi3r_jax as e3r
from easi3r_jax import motion
from easi3r_jax.inference import passes, pipeline
from easi3r_jax.models.config import FlowConfig
from easi3r_jax.weights.checkpoint import save_checkpoint
from tests.networks import SMALL_VGGT, flow_network, vggt

#: Ten pairs of the four frames, in the pure functions and in whole reconstructions: compiled once for both.
GRAPH = "swin-2-noncyclic"
QUICK = e3r.PipelineConfig(alignment=e3r.AlignConfig(iterations=20), graph=GRAPH)
#: Whose code is run as a test.
DOCUMENTS = ("README.md", "docs/extending.md", "docs/differentiating.md", "docs/backbones.md")


@pytest.fixture(scope="module")
def model() -> e3r.DUSt3R:
    return e3r.load_model("embedded")


@pytest.fixture(scope="module")
def frames(model) -> e3r.Frames:
    return e3r.load_frames("demo", e3r.FrameConfig.for_model(model, first=4))


@pytest.fixture(scope="module")
def edges(frames) -> np.ndarray:
    return e3r.make_edges(len(frames.rgb), GRAPH)


@pytest.fixture(scope="module")
def predicted(model, frames, edges):
    """Point maps and statistics by the host's drivers."""
    features = pipeline.encode(model, frames)
    return pipeline.prediction_pass(model, features, edges, model.grid(frames.rgb.shape[1:3]))


@pytest.fixture(scope="module")
def result(model, frames) -> e3r.Reconstruction:
    return e3r.reconstruct(model, frames, QUICK)


def close(ours, expected, share: float = 1e-5) -> None:
    """Equal but for rounding: a network's batches are added up in another order."""
    chex.assert_trees_all_equal_structs(ours, expected)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        np.testing.assert_allclose(a, b, atol=share * max(np.abs(b).max(), 1e-30))


def test_every_name_is_there_and_says_what_it_is():
    assert set(e3r.__all__) <= set(dir(e3r))
    for name in e3r.__all__:
        value = getattr(e3r, name)
        if not callable(value):  # a constant: what help() says of it is its type's
            continue
        assert inspect.getdoc(value), name
        assert value.__name__ in (name, "total_loss"), name  # the face names what these are of


def test_constants_say_what_they_are():
    """In a string below them, which the site shows."""
    constants = {name for name in e3r.__all__ if not callable(getattr(e3r, name))}
    assert constants == {"DEFAULT_TERMS"}
    source = inspect.getsource(sys.modules[e3r.Term.__module__])
    statements = ast.parse(source).body
    (place,) = (n for n, s in enumerate(statements) if ast.unparse(s).startswith("DEFAULT_TERMS = "))
    assert isinstance(ast.literal_eval(statements[place + 1].value), str)
    assert all(isinstance(term, e3r.Term) for term in e3r.DEFAULT_TERMS)


def test_every_name_is_used_through_the_face():
    """By the tests or the documents that are run as tests."""
    root = pathlib.Path(__file__).parents[1]
    texts = [path.read_text(encoding="utf-8") for path in (root / "tests").rglob("*.py")]
    texts += [(root / name).read_text(encoding="utf-8") for name in DOCUMENTS]
    used = set(re.findall(r"\be3r\.(\w+)", "\n".join(texts)))
    assert set(e3r.__all__) - used == set()


def test_unknown_names_raise_attribute_errors():
    with pytest.raises(AttributeError, match="reconstrct"):
        _ = e3r.reconstrct


@pytest.mark.parametrize("batch_size", [0, 1, 4])
def test_pure_predictions_are_those_of_the_pass(model, frames, edges, predicted, batch_size):
    pairs = jax.jit(functools.partial(e3r.predict_pairs, batch_size=batch_size))(model, frames.rgb, edges)
    assert pairs.num_frames == 4
    close(pairs, predicted[0])


def test_masked_predictions_are_those_of_masked_re_attention(model, frames, edges, predicted):
    mask = jnp.zeros(frames.rgb.shape[:3], bool).at[1, :32, 8:40].set(True)
    grid, features = model.grid(frames.rgb.shape[1:3]), e3r.encode_frames(model, frames.rgb)
    tokens = motion.token_masks(mask, model.config.patch_size)
    expected, _ = pipeline.prediction_pass(model, features, edges, grid, dynamic_tokens=tokens)
    close(e3r.predict_pairs(model, frames.rgb, edges, dynamic_mask=mask, features=features), expected)
    assert np.abs(np.asarray(expected.points_i - predicted[0].points_i)).max() > 1e-3


@pytest.mark.parametrize("batch_size", [0, 3])
def test_pure_attention_is_that_of_the_pass(model, frames, edges, predicted, batch_size):
    grid, features = model.grid(frames.rgb.shape[1:3]), e3r.encode_frames(model, frames.rgb, batch_size=batch_size)
    close(features, passes.encode(model, frames))
    statistics = e3r.attention_statistics(model, features, edges, grid, batch_size=batch_size)
    close(statistics, predicted[1], share=1e-4)
    maps = e3r.attention_maps(model, frames.rgb, edges, batch_size=batch_size)
    close(maps, e3r.fuse_temporal(predicted[1], grid), share=1e-3)


def test_pure_masks_are_those_of_the_first_pass(model, frames, edges):
    """That they are differentiable: tests/motion, test_gradients.py and test_readout.py."""
    config, size = QUICK.segmentation, frames.rgb.shape[1:3]
    segmentation = e3r.motion_masks(model, frames.rgb, edges, config, batch_size=4)
    assert isinstance(segmentation, e3r.Segmentation)
    grid, features = model.grid(size), pipeline.encode(model, frames)
    labels = pipeline._cluster(features, grid, config, jax.random.key(0))
    temporal = pipeline.attention_pass(model, features, edges, grid, gram=True)
    residual = e3r.Readout.from_config(model.readout).residual(temporal, grid)
    _, expected = pipeline.segment(temporal, labels, size, config, residual)
    np.testing.assert_allclose(segmentation.score, expected.score, atol=1e-3)
    assert np.mean(segmentation.mask != expected.mask) < 1e-2  # a threshold decides, and rounding may cross it


def test_the_alignment_by_its_parts_is_the_alignment(model, frames, predicted):
    """`align` is start, problem, steps, cameras; and the pure loop takes the same steps."""
    pairs, config = predicted[0], QUICK.alignment
    start, problem = e3r.initial_state(pairs, config), e3r.make_problem(pairs, config)
    assert isinstance(start, e3r.AlignState) and isinstance(problem, e3r.AlignProblem)
    state, losses = e3r.optimise(start, problem, config)
    np.testing.assert_allclose(losses[0], jax.jit(e3r.alignment_loss)(start, problem), rtol=1e-5)
    geometry, expected = e3r.align(pairs, config)
    assert isinstance(geometry, e3r.Geometry)
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    ours = jax.jit(e3r.geometry_of)(state, problem, geometry.confidence)
    np.testing.assert_allclose(ours.depth, geometry.depth, rtol=1e-3)
    rates, active = np.full(3, config.learning_rate, np.float32), np.ones(3, bool)
    _, _, first = jax.jit(e3r.adam_steps)(start, e3r.init_moments(start), problem, rates, active)
    np.testing.assert_allclose(first[0], losses[0], rtol=1e-5)


def test_a_result_is_host_arrays_and_shows_itself(result, frames):
    assert isinstance(result.scene, e3r.Scene4D)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves((result.scene, result.motion, result.losses)))
    assert repr(result).startswith("Reconstruction(4 frames of 96x64, ")
    html = result._repr_html_()
    assert "4 frames of 96x64" in html and "data:image/png;base64," in html
    assert result.show().get_axes()
    with pytest.raises(e3r.InputError, match="save_result"):
        result.saved_folder()
    assert result.frames.rgb.shape == frames.rgb.shape


def test_results_are_saved_and_read_back(result, tmp_path):
    folder = e3r.save_result(tmp_path / "clip", result, clouds=e3r.CloudOptions(foreground="none"))
    same = e3r.load_result(folder)
    assert same.saved_folder() == folder and same.record["pipeline"]["graph"] == GRAPH
    chex.assert_trees_all_equal(same.scene, result.scene)
    chex.assert_trees_all_equal(same.motion, result.motion)
    np.testing.assert_array_equal(same.frames.time, result.frames.time)
    assert same.frames.names == result.frames.names and same.frames.names is not None
    with pytest.raises(e3r.ConfigError, match="Foreground"):
        e3r.save_result(tmp_path / "other", result, clouds=e3r.CloudOptions(foreground=4))


def test_a_function_is_a_cue(model, frames):
    seen = []

    @e3r.reads_attention
    def cue(evidence: e3r.Evidence) -> e3r.MotionResidual:
        seen.append(evidence)
        doubt = jnp.ones((len(evidence.features), *evidence.grid)).at[:, 2, 3].set(5.0)
        return e3r.MotionResidual(doubt, doubt > 0)

    segmentation = e3r.SegmentationConfig(num_clusters=384, restarts=1)
    config = dataclasses.replace(QUICK, segmentation=segmentation)
    other = e3r.reconstruct(model, frames, config, cue=cue)
    assert len(seen) == 2 and seen[0].predictions is None
    assert other.scene.dynamic_mask[:, 20, 28].all() and other.scene.dynamic_mask.mean() < 0.05


def test_per_pair_values_become_a_residual(edges, frames):
    value = jnp.ones((len(edges), 2, 3)).at[:, 0, 0].set(3.0)
    residual = e3r.mean_over_partners(value, value > 0, edges, len(frames.rgb))
    np.testing.assert_allclose(residual.value, jnp.broadcast_to(value[0], (4, 2, 3)))
    assert residual.observed.all()


def test_frames_of_another_network_are_refused(model):
    big = e3r.load_frames("demo", e3r.FrameConfig(first=2))
    for call in (e3r.reconstruct, e3r.reconstruct_stream, lambda m, f: e3r.predict_pairs(m, f.rgb, [[0, 1]])):
        with pytest.raises(e3r.UserError, match=r"FrameConfig\.for_model"):
            call(model, big)


def test_other_ways_to_reconstruct(model, frames):
    stream = e3r.reconstruct_stream(model, frames)
    assert not stream.scene.dynamic_mask.any() and stream.scene.depth.shape == frames.rgb.shape[:3]
    longer = e3r.load_frames("demo", e3r.FrameConfig.for_model(model, first=5))
    windows = e3r.reconstruct_windows(model, longer, QUICK, window=4, overlap=3)
    assert windows.scene.depth.shape == longer.rgb.shape[:3] and windows.threshold is None


def test_results_are_measured(model, frames, result):
    truth = e3r.load_ground_truth("demo", frames)
    assert isinstance(truth, e3r.GroundTruth)
    metrics = e3r.evaluate_scene(result.scene, truth)
    assert 0 < metrics["abs_rel"] < 1 and 0 <= metrics["mask_iou"] <= 1


def test_weights_are_named_by_strings_and_paths(tmp_path, monkeypatch):
    monkeypatch.setenv("EASI3R_JAX_CACHE", str(tmp_path))
    weights = pathlib.Path(e3r.__file__).parent / "assets" / "model"
    model = e3r.load_model(weights, "exact")
    chex.assert_trees_all_equal(model, e3r.load_model(str(weights), "exact"))
    for load in (e3r.load_model, e3r.load_flow_model):
        with pytest.raises(e3r.CheckpointError, match="no checkpoint at"):
            load(tmp_path / "none.pth")


def test_flow_is_estimated_where_it_is_asked_for(model, frames, edges, tmp_path):
    network = flow_network(FlowConfig("raft-small"))
    flow = e3r.estimate_flow(network, frames.rgb, edges[:1])
    assert flow.shape == (1, *frames.rgb.shape[1:3], 2) and np.isfinite(flow).all()
    asked = []

    def standing(frames, edges, *, progress):
        asked.append(len(edges))
        return np.zeros((len(edges), *frames.rgb.shape[1:3], 2), np.float32), None

    result = e3r.reconstruct(model, frames, QUICK, flow=standing)
    assert asked == [10] and result.given.flow.shape == (10, *frames.rgb.shape[1:3], 2)
    again, known = functools.partial(e3r.network_flow, network)(frames, edges[:1])
    np.testing.assert_array_equal(again, flow)
    assert known is None


def test_flow_without_weights(model, frames, edges, tmp_path):
    result = e3r.reconstruct(model, frames, QUICK, flow=e3r.dense_flow)
    flow, known = e3r.dense_flow(frames, result.edges)
    np.testing.assert_array_equal(result.given.flow, flow)
    np.testing.assert_array_equal(result.given.flow_known, known)
    assert 0.3 < known.mean() < 1
    e3r.save_result(tmp_path / "out", result, keep_flow=True)
    folder = e3r.FlowFolder(tmp_path / "out" / "flow", frames)
    again, read = folder(frames, result.edges)
    np.testing.assert_array_equal(np.where(read[..., None], again, 0), np.where(known[..., None], flow, 0))
    with pytest.raises(e3r.CheckpointError, match="no checkpoint at"):
        e3r.load_flow_model(str(tmp_path / "none.pth"))


def test_known_cameras_masks_and_flow(model, frames):
    count = len(frames.rgb)
    cameras = e3r.KnownCameras(
        focal=np.full(count, 80.0),
        principal_point=np.tile([48.0, 32.0], (count, 1)),
        intrinsics_known=np.ones(count, bool),
        world_from_cam=np.tile(np.eye(4), (count, 1, 1)),
        poses_known=np.zeros(count, bool),
    )
    scene = e3r.reconstruct(model, frames, QUICK, given=e3r.Given(cameras=cameras)).scene
    np.testing.assert_allclose(scene.intrinsics[:, 0, 0], 80, rtol=1e-6)


def test_custom_networks_and_devices():
    config = e3r.DUSt3RConfig.thumbnail()
    small = e3r.random_model(config, seed=3)
    assert small.config == config
    assert e3r.data_mesh(1).size == 1
    assert e3r.on_devices(small, 1) is small
    with pytest.raises(e3r.ConfigError, match="devices"):
        e3r.data_mesh(10_000)


def test_a_network_that_takes_all_frames_at_once(tmp_path):
    save_checkpoint(tmp_path / "vggt", SMALL_VGGT, vggt(), source_name="random")
    model = e3r.load_multiview_model(tmp_path / "vggt")
    assert isinstance(model, e3r.VGGT) and isinstance(model.config, e3r.VGGTConfig)
    clip = e3r.load_frames("demo", e3r.FrameConfig.for_model(model, first=2))
    assert clip.rgb.shape == (2, 14, 28, 3)  # the width of the network, and a multiple of its patch
    result = e3r.reconstruct_multiview(model, clip, e3r.PipelineConfig(cue="none"))
    assert result.scene.depth.shape == (2, 14, 28) and not result.scene.dynamic_mask.any()


def test_point_maps_are_a_pytree_of_pairs(predicted):
    some = jax.tree.map(lambda x: x[:3], predicted[0])
    assert isinstance(some, e3r.PairPredictions) and len(some.edges) == 3 and some.total_frames == 4


def test_errors_are_one_family():
    for kind in (e3r.InputError, e3r.ConfigError, e3r.CheckpointError, e3r.OutputError, e3r.GradientError):
        assert issubclass(kind, e3r.UserError)


@pytest.mark.parametrize("edges", [[[0, 4]], [[-1, 0]], np.zeros((0, 2), int)])
def test_pairs_of_frames_that_do_not_exist_are_refused(model, frames, edges):
    """Indexing would take the last frame for a missing one."""
    edges = np.asarray(edges)
    for function in (e3r.predict_pairs, e3r.attention_maps, e3r.motion_masks):
        with pytest.raises(e3r.InputError, match=r"frames 0\.\.3"):
            function(model, frames.rgb, edges)


def test_arrays_of_another_clip_are_refused(model, frames, edges):
    masks = np.zeros((3, *frames.rgb.shape[1:3]), bool)
    with pytest.raises(e3r.InputError, match="dynamic_mask of 3 frames for a clip of 4"):
        e3r.predict_pairs(model, frames.rgb, edges, dynamic_mask=masks)
    with pytest.raises(e3r.InputError, match="features of 3 frames"):
        e3r.predict_pairs(model, frames.rgb, edges, features=e3r.encode_frames(model, frames.rgb[:3]))


def test_a_start_needs_pairs_that_connect_all_frames(model, frames):
    apart = e3r.predict_pairs(model, frames.rgb, np.array([[0, 1], [1, 0], [2, 3], [3, 2]]))
    with pytest.raises(e3r.ConfigError, match="disconnected"):
        e3r.initial_state(apart)


def test_padding_of_the_callers_own_is_refused(model, frames):
    padded = dataclasses.replace(frames, valid=np.arange(4) < 3)
    with pytest.raises(e3r.InputError, match="include padding"):
        e3r.reconstruct(model, padded, QUICK)


def test_results_are_arrays_of_numpy_whatever_was_given(model, frames, edges):
    size = frames.rgb.shape[:3]
    given = e3r.Given(
        flow=jnp.zeros((len(edges), *size[1:], 2)),
        flow_known=jnp.ones((len(edges), *size[1:]), bool),
        masks=jnp.zeros(size, bool).at[:, 20:30, 20:40].set(True),
    )
    config = e3r.PipelineConfig(alignment=QUICK.alignment, graph=GRAPH, masks=("given",), cue="none")
    found = e3r.reconstruct(model, frames, config, given=given)
    assert {type(x) for x in jax.tree.leaves(found)} == {np.ndarray}
    np.testing.assert_array_equal(found.scene.dynamic_mask, given.masks)


def test_what_is_given_is_used_or_refused(model, frames):
    masks = np.ones(frames.rgb.shape[:3], bool)
    with pytest.raises(e3r.ConfigError, match="not used"):
        e3r.reconstruct(model, frames, QUICK, given=e3r.Given(masks=masks))
    with pytest.raises(e3r.InputError, match="there is no flow"):
        e3r.reconstruct(model, frames, QUICK, given=e3r.Given(flow_known=masks))
