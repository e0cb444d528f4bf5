"""Global alignment: closed forms, initialisation, gradients, the optimiser's trajectory and result."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from easi3r_jax import alignment
from easi3r_jax.alignment import state as state_of
from easi3r_jax.alignment.clean import clean_confidence
from easi3r_jax.alignment.terms import depth_change, relative_pose_residual
from easi3r_jax.apps.parity.flow_masks import check_flow_masks
from easi3r_jax.apps.parity.report import ROUNDING, Golden, Row, at_most, compare, equal
from easi3r_jax.core.config import AlignConfig
from easi3r_jax.core.geometry import se3
from easi3r_jax.core.geometry.focal import weiszfeld_focal
from easi3r_jax.core.geometry.procrustes import register_similarity
from easi3r_jax.core.types import Geometry, PairPredictions
from easi3r_jax.inference.flow import consistent_flow

_GRADIENT = 1e-4
_FIRST_LOSSES = 1e-4
_CURVE = 3e-2  # the reference itself changes this much when its input changes by 1e-7
_FINAL_LOSS = 1e-3
_ROTATION_DEGREES = 0.2
_FOCAL = 2e-4
_OWN_START = 1.02
_CLOSED_FORM = 1e-5
#: Arrays of the documented format that are skipped: intermediate states, equivalent forms of compared arrays, and, if a
#: case lacks the initial depth, everything that depends on it.
_NOT_COMPARED = (
    r"(after|before_iter)\d+_.*|iter\d+_.*|im_conf_.*|init_.*|mst_im_poses_unscaled|final_(im|pw)_poses_param|final_pw_scale"
    r"|final_(depth|log_focal_param|pts3d_frame0|intrinsics|tum_.*|focals|im_poses)"
)


def check_folder(folder: pathlib.Path) -> Iterator[Row]:
    """Every case of the folder: with optical flow and without, both schedules, shared or separate focal lengths."""
    settings = json.loads((folder / "config.json").read_text())
    predictions, num_frames = load_predictions(folder)
    for case, options in settings["cases"].items():
        if (folder / f"{case}.npz").is_file():
            golden = Golden(folder / f"{case}.npz")
            flow, dynamic = load_flow(folder) if options.get("flow_w") else (None, None)
            config = case_config(options)
            problem = alignment.make_problem(predictions, config, flow=flow, dynamic_mask=dynamic)
            yield from _check_case(f"{folder.name}/{case}", golden, predictions, num_frames, problem, config)
    if (folder / "primitives.npz").is_file():
        yield from _check_primitives(folder)
    if (folder / "motion_masks_from_pairs.npz").is_file():
        golden = Golden(folder / "motion_masks_from_pairs.npz")
        yield from check_flow_masks(f"{folder.name}/motion_masks_from_pairs", golden, predictions, load_flow(folder)[0])
    for path in sorted(folder.glob("pairviewer_*.npz")):
        yield from _check_two_frames(f"{folder.name}/{path.stem}", path)


def load_predictions(folder: pathlib.Path) -> tuple[PairPredictions, int]:
    """The folder's network-like predictions and the number of frames."""
    with np.load(folder / "predictions.npz") as p, np.load(folder / "scene.npz") as s:
        predictions = PairPredictions(
            edges=jnp.asarray(s["edges"]),
            points_i=jnp.asarray(p["pts3d_1"]),
            points_j=jnp.asarray(p["pts3d_2"]),
            confidence_i=jnp.asarray(p["conf_1"]),
            confidence_j=jnp.asarray(p["conf_2"]),
        )
        return predictions, len(s["frames_u8"])


def load_flow(folder: pathlib.Path) -> tuple[jax.Array, jax.Array]:
    """The folder's flow of every pair (E, H, W, 2), and masks of dynamic regions (T, H, W)."""
    with np.load(folder / "flow.npz") as flow, np.load(folder / "scene.npz") as scene:
        return jnp.moveaxis(jnp.asarray(flow["flow_ij"]), 1, -1), jnp.asarray(scene["masks"])


def case_config(options: dict) -> AlignConfig:
    """Options of a golden case; missing ones are the defaults of the golden format."""
    return AlignConfig(
        iterations=options.get("niter", 300),
        schedule=options.get("schedule", "linear"),
        shared_focal=options.get("shared", True),
        smoothing_weight=0.01,
        translation_weight=1.0,
        flow_weight=options.get("flow_w", 0.0),
        min_confidence=2.5,
    )


def golden_start(golden: dict[str, np.ndarray], predictions: PairPredictions) -> alignment.AlignState:
    """The golden initial state."""
    return alignment.AlignState(
        pair_poses=jnp.asarray(golden["init_pw_poses_param"]),
        frame_poses=jnp.asarray(golden["init_im_poses_param"]),
        log_depth=jnp.log(jnp.asarray(golden["init_depth"])),
        log_focal=jnp.asarray(golden["init_log_focal_param"]).ravel(),
    )


def _check_case(stage, golden, predictions, num_frames, problem, config: AlignConfig) -> Iterator[Row]:
    yield compare(stage, "edge_scores", alignment.edge_scores(predictions), golden["edge_scores"], ROUNDING)
    yield compare(stage, "learning rates", alignment.learning_rates(config), golden["lrs_f64"], ROUNDING)
    yield from _check_start(stage, golden, predictions, num_frames)

    own = alignment.initial_state(predictions, config)
    _, losses = alignment.optimise(own, problem, config)
    best = float(golden["losses"][-1])
    yield at_most(stage, "final loss from our start / golden's", float(losses[-1]) / best, _OWN_START)

    if "init_depth" in golden:
        yield from _check_path(stage, golden, predictions, num_frames, problem, config)
    yield from golden.unread(stage, _NOT_COMPARED)


def _check_start(stage, golden, predictions, num_frames) -> Iterator[Row]:
    """The spanning tree, and the focal lengths with the released program's bug (a stale point map) enabled."""
    edges = np.asarray(predictions.edges)
    tree = alignment.spanning_tree(edges, np.asarray(alignment.edge_scores(predictions)), num_frames, stale_focal=True)
    yield equal(stage, "spanning tree", edges[tree.edges], golden["mst_edges"])
    height, width = predictions.points_i.shape[1:3]
    centre = jnp.array([width / 2, height / 2], jnp.float32)
    focals = [weiszfeld_focal(predictions.points_i[e], centre) for e in tree.focal_edges]
    yield compare(stage, "mst_focals (with the stale map)", np.array(focals), golden["mst_focals"], _CLOSED_FORM)


def _check_path(stage, golden, predictions, num_frames, problem, config: AlignConfig) -> Iterator[Row]:
    start = golden_start(golden, predictions)
    observed, problem = problem, dataclasses.replace(problem, flow=None)  # it does not count yet
    terms, sides = jax.jit(alignment.loss_terms)(start, problem), jax.jit(alignment.pair_terms)(start, problem)
    ours = {"total": terms["total"], "points, i": sides[0], "points, j": sides[1], "smoothness": terms["smoothness"]}
    for k, (name, value) in enumerate(ours.items()):
        yield compare(stage, f"loss term {name}", value, golden["iter0_loss_terms"][k], _CLOSED_FORM)
    gradient = jax.jit(jax.grad(alignment.total_loss))(start, problem)
    for name, ours in _by_golden_name(gradient).items():
        if f"iter0_grad_{name}" in golden:
            array = golden[f"iter0_grad_{name}"]
            ours = ours.reshape(array.shape)
            row = compare(stage, f"iter0_grad_{name}", ours, array, _GRADIENT)
            if row.passed or name != "logdepth_f0":
                yield row
                continue
            # The gradient of a distance is a direction. If the initial state is nearly exact, the distance is as small
            # as float32 rounding, and its direction is rounding too. Float64 shows which is right: ours must be right
            # everywhere, and equal the golden value wherever that is right too.
            exact = _exact_gradient(start, predictions, num_frames, config).log_depth[0].reshape(array.shape)
            yield compare(stage, f"iter0_grad_{name}, ours against float64", ours, exact, _GRADIENT)
            right = np.abs(array - exact) <= _GRADIENT * np.abs(array).max()
            name = f"iter0_grad_{name}, {right.size - right.sum()} pixels omitted where the golden is off"
            yield compare(stage, name, np.where(right, ours, 0), np.where(right, array, 0), _GRADIENT)

    if observed.flow is not None:
        yield from _check_flow_start(stage, golden, start, observed, config)
    end, losses = alignment.optimise(start, observed, config)
    losses = np.asarray(losses)
    first = np.abs(losses[:10] / golden["losses"][:10] - 1).max()
    yield at_most(stage, "losses of iterations 0-9, relative", first, _FIRST_LOSSES)
    yield at_most(stage, "whole loss curve, relative", np.abs(losses / golden["losses"] - 1).max(), _CURVE)
    yield at_most(stage, "final loss, relative", abs(losses[-1] / golden["losses"][-1] - 1), _FINAL_LOSS)
    turn = rotation_degrees(np.asarray(state_of.world_from_cam(end)), golden["final_im_poses"])
    yield at_most(stage, "final rotations, degrees", turn, _ROTATION_DEGREES)
    focal_error = np.abs(np.asarray(state_of.focals(end)) / golden["final_focals"] - 1).max()
    yield at_most(stage, "final focals, relative", focal_error, _FOCAL)

    if "im_conf_before_clean" in golden:
        before = alignment.frame_confidence(predictions)
        yield compare(stage, "im_conf_before_clean", before, golden["im_conf_before_clean"], ROUNDING)
        done = Geometry(
            world_from_cam=jnp.asarray(golden["final_im_poses"]),
            intrinsics=jnp.asarray(golden["final_intrinsics"]),
            depth=jnp.asarray(golden["final_depth"]),
            confidence=before,
        )
        after = np.asarray(clean_confidence(done, config))
        # A projection that rounds to the next pixel may change a decision.
        differ = float((np.abs(after - golden["im_conf_after_clean"]) > ROUNDING * after.max()).mean())
        yield at_most(stage, "im_conf_after_clean, share of pixels", differ, 1e-3)


def _by_golden_name(gradient: alignment.AlignState) -> dict[str, jax.Array]:
    """The parts of a gradient that golden files contain, by their golden names."""
    return {
        "im_poses": gradient.frame_poses,
        "pw_poses": gradient.pair_poses,
        "log_focal": gradient.log_focal,
        "logdepth_f0": gradient.log_depth[0],
    }


def _check_flow_start(stage, golden, start, problem, config: AlignConfig) -> Iterator[Row]:
    """Loss terms and gradients at the first iteration in which the flow counts.

    The golden state at that iteration is stored except for the depth, which is ours after the same number of steps.
    """
    first = int(np.ceil(config.flow_start * config.iterations))
    ((_, state, _),) = alignment.iterate(start, problem, config, [first])
    state = dataclasses.replace(
        state,
        pair_poses=jnp.asarray(golden[f"before_iter{first}_pw_poses_param"]),
        frame_poses=jnp.asarray(golden[f"before_iter{first}_im_poses_param"]),
        log_focal=jnp.asarray(golden[f"before_iter{first}_log_focal_param"]).ravel(),
    )
    terms = jax.jit(alignment.loss_terms)(state, problem)
    theirs = golden[f"iter{first}_loss_terms"]
    for name, expected in (("total", theirs[0]), ("flow", theirs[4] + theirs[5])):
        error = abs(float(terms[name]) / expected - 1)
        yield at_most(stage, f"iter{first} loss term {name}, relative", error, _FIRST_LOSSES)
    gradient = jax.jit(jax.grad(alignment.total_loss))(state, problem)
    for name, ours in _by_golden_name(gradient).items():
        if f"iter{first}_grad_{name}" in golden:
            array = golden[f"iter{first}_grad_{name}"]
            # Those of focal and depth are affected by the rounding of 30 steps in the depth, which Adam amplifies.
            tolerance = _GRADIENT if name.endswith("poses") else _CURVE
            yield compare(stage, f"iter{first}_grad_{name}", ours.reshape(array.shape), array, tolerance)


def _exact_gradient(start, predictions, num_frames: int, config: AlignConfig) -> alignment.AlignState:
    """The gradient of the plainly written loss in float64, as NumPy arrays."""

    def plain(state, problem):
        return sum(alignment.pair_terms(state, problem)) + alignment.total_loss(
            state, problem, alignment.DEFAULT_TERMS[1:]
        )

    def widen(x):
        return jnp.asarray(x, jnp.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x

    with jax.enable_x64(True):
        problem = alignment.make_problem(jax.tree.map(widen, predictions), config)
        return jax.tree.map(np.asarray, jax.jit(jax.grad(plain))(jax.tree.map(widen, start), problem))


def rotation_degrees(ours: np.ndarray, golden: np.ndarray) -> float:
    """Largest angle between corresponding rotations, after removing the first frame's (the gauge is free)."""
    relative = [np.linalg.inv(p[0].astype(np.float64)) @ p.astype(np.float64) for p in (ours, golden)]
    difference = np.swapaxes(relative[0][:, :3, :3], 1, 2) @ relative[1][:, :3, :3]
    sine = np.linalg.norm(difference - np.swapaxes(difference, 1, 2), axis=(1, 2)) / np.sqrt(8)
    return float(np.degrees(np.arcsin(np.clip(sine, 0, 1))).max())


def _check_primitives(folder: pathlib.Path) -> Iterator[Row]:
    golden = Golden(folder / "primitives.npz")
    stage = f"{folder.name}/primitives"
    if "focal_weiszfeld" in golden:
        focals = [
            weiszfeld_focal(jnp.asarray(points), jnp.asarray(centre))
            for points, centre in zip(golden["focal_pts3d"], golden["focal_pp"], strict=True)
        ]
        yield compare(stage, "focal_weiszfeld", np.array(focals), golden["focal_weiszfeld"], _CLOSED_FORM)
    if "rigid_s" in golden:
        source, target, weights = (
            jnp.asarray(golden[f"rigid_{k}"]).reshape(-1, *tail)
            for k, tail in (("pts1", (3,)), ("pts2", (3,)), ("conf", ()))
        )
        for name, ours in zip("sRT", register_similarity(source, target, weights), strict=True):
            # T is a difference of means of points far from the origin, which costs a digit in float32.
            tolerance = 5 * _CLOSED_FORM if name == "T" else _CLOSED_FORM
            yield compare(stage, f"rigid_{name}", ours, golden[f"rigid_{name}"], tolerance)
    if "rel_pose_loss" in golden:
        with np.load(folder / "scene.npz") as scene:
            poses = jnp.asarray(scene["poses_c2w"])
        for name, weight in (("rel_pose_loss", 1.0), ("rel_pose_loss_w01", 0.1)):
            ours = relative_pose_residual(poses, weight)
            if ours.shape == golden[name].shape:
                yield compare(stage, name, ours, golden[name], _CLOSED_FORM)
    if "ego_flow" in golden:
        poses = [
            se3.from_parts(jnp.asarray(golden[f"ego_R_{k}"]), jnp.asarray(golden[f"ego_T_{k}"])[..., 0])
            for k in ("src", "tgt")
        ]
        ours = alignment.ego_flow(
            se3.compose(se3.inverse(poses[1]), poses[0]),
            *(jnp.asarray(golden[f"ego_{k}"]) for k in ("depth_src", "K_src", "K_tgt")),
        )
        array = golden["ego_flow"][:, :2]  # the third channel is 0 up to rounding
        yield compare(stage, "ego_flow", ours.reshape(array.shape), array, _CLOSED_FORM)
    if "smooth_l1_value" in golden:
        error = jnp.asarray(golden["occ_flow12"] - golden["smooth_l1_target"]).reshape(2, -1)
        static = ~jnp.asarray(golden["smooth_l1_dynamic_mask"]).ravel()
        for name, outlier in (("smooth_l1_value", 50.0), ("smooth_l1_value_thre3", 3.0)):
            total, count = alignment.robust_sum(error, static, outlier)
            yield compare(stage, name, total / count, golden[name], _CLOSED_FORM)
    if "occ_valid12" in golden:
        forward, backward = (jnp.moveaxis(jnp.asarray(golden[f"occ_flow{k}"]), 0, -1)[None] for k in ("12", "21"))
        yield equal(stage, "occ_valid12", np.asarray(consistent_flow(forward, backward))[0], golden["occ_valid12"])
        yield equal(stage, "occ_valid21", np.asarray(consistent_flow(backward, forward))[0], golden["occ_valid21"])
    if "depth_reg_value" in golden:
        predicted, initial = (jnp.log(jnp.asarray(golden[f"depth_reg_{k}"])) for k in ("pred", "init"))
        with np.load(folder / "scene.npz") as scene:
            moving = jnp.asarray(scene["masks"][: len(predicted)], jnp.float32)
        for name, weight in (("depth_reg_value", 1 + moving), ("depth_reg_value_nomask", jnp.ones_like(moving))):
            ours = depth_change(predicted, alignment.DepthPrior(initial, weight, jnp.ones(())))
            yield compare(stage, name, ours, golden[name], _CLOSED_FORM)
    # Smooth L1 without outliers has another denominator; the median focal is not a default.
    yield from golden.unread(stage, r"rel_pose_loss_.*|ego_tgt_coord|smooth_l1_value_nothre|focal_median")


def _check_two_frames(stage: str, path: pathlib.Path) -> Iterator[Row]:
    golden = Golden(path)
    predictions = PairPredictions(
        edges=jnp.array([[0, 1], [1, 0]]),
        points_i=jnp.asarray(golden["pts3d_1"]),
        points_j=jnp.asarray(golden["pts3d_2"]),
        confidence_i=jnp.asarray(golden["conf_1"]),
        confidence_j=jnp.asarray(golden["conf_2"]),
    )
    yield compare(stage, "conf_product", alignment.edge_scores(predictions), golden["conf_product"], ROUNDING)
    config = dataclasses.replace(AlignConfig(), shared_focal=False, min_confidence=2.5)
    result, _ = alignment.align(predictions, config)
    yield compare(stage, "focals", result.intrinsics[:, 0, 0], golden["focals"], _CLOSED_FORM)
    # RANSAC draws its own samples: the other camera agrees to the noise of the point maps.
    turn = rotation_degrees(np.asarray(result.world_from_cam), golden["im_poses"])
    yield at_most(stage, "rotation, degrees", turn, _ROTATION_DEGREES)
    reference = int(np.argmin([np.abs(p - np.eye(4)).max() for p in golden["im_poses"]]))
    yield compare(stage, "depth of the reference", result.depth[reference], golden["depth"][reference], _CLOSED_FORM)
    yield from golden.unread(stage, "K|gt_poses|pair_scale|pp|pts3d_from_depth_stride2")
