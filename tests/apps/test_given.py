"""Optical flow, masks and cameras from the command line: they reach the result; errors take one line."""

import json
import sys

import chex
import cv2
import numpy as np
import pytest

from easi3r_jax.apps import given, reconstruct
from easi3r_jax.inference import pipeline
from easi3r_jax.io import export
from easi3r_jax.io.sequences import CLIPS
from easi3r_jax.models import flow_network
from easi3r_jax.models.config import FlowConfig

QUICK = {"first": 3, "graph": "complete", "iterations": 5, "compare_plain": False}
EDGES = pipeline.clip_edges(3, "complete")
H, W = 64, 96


@pytest.fixture
def run(reconstruct_here):
    return lambda **values: reconstruct_here(**{**QUICK, **values})


@pytest.fixture
def complaint(run, tmp_path):
    def complaint(**values):
        code, _, errors = run(**values)
        assert code == 1, errors
        assert len(errors.splitlines()) == 1 and errors.startswith("error: "), errors
        assert not (tmp_path / "out").exists()
        return errors

    return complaint


@pytest.fixture(scope="module")
def truth():
    with np.load(CLIPS / "demo" / "ground_truth.npz") as file:
        return {name: file[name] for name in ("world_from_cam", "intrinsics", "masks")}


@pytest.fixture
def inputs(tmp_path, truth):
    """Files of a user's own: flow of nothing but one corner, a mask in the other, exact cameras of 2 of 3 frames."""
    flow = np.zeros((len(EDGES), H, W, 2), np.float32)
    flow[:, :8, :8] = 30.0
    export.write_flow(tmp_path / "flow", flow, EDGES)
    (tmp_path / "masks").mkdir()
    count = len(list((CLIPS / "demo" / "frames").iterdir()))
    for t in range(count):
        mask = np.zeros((H, W), np.uint8)
        mask[-6:, -6:] = 255
        cv2.imwrite(str(tmp_path / "masks" / f"{t:05d}.png"), mask)
    poses = truth["world_from_cam"].astype(float).copy()
    poses[1] = np.nan
    np.savez(tmp_path / "poses.npz", world_from_cam=poses)
    matrix = truth["intrinsics"][0]
    (tmp_path / "k.txt").write_text(f"{matrix[0, 0]} {matrix[1, 1]} {matrix[0, 2]} {matrix[1, 2]}\n")
    return tmp_path


def test_everything_given_reaches_the_result(run, inputs, truth):
    code, out, errors = run(
        masks=f"motion+flow+{inputs / 'masks'}",
        mask_dilation=1,
        flow=inputs / "flow",
        poses=inputs / "poses.npz",
        intrinsics=inputs / "k.txt",
        save_flow=True,
    )
    assert code == 0 and not errors, errors
    scene = export.load_scene(inputs / "out")
    assert scene.dynamic_mask[:, -7:, -7:].all()  # grown by a pixel
    assert scene.dynamic_mask[:, :8, :8].mean() > 0.9  # no camera explains that flow
    np.testing.assert_array_equal(scene.static_mask & scene.dynamic_mask, False)
    np.testing.assert_allclose(scene.world_from_cam[[0, 2]], truth["world_from_cam"][[0, 2]], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(scene.intrinsics, truth["intrinsics"][:3], rtol=1e-5)
    kept = sorted(path.name for path in (inputs / "out" / "flow").iterdir())
    assert kept == sorted([*(f"{i:05d}_{j:05d}.flo" for i, j in EDGES), "pairs.txt"])
    config = json.loads((inputs / "out" / "config.json").read_text())
    assert config["pipeline"]["masks"] == ["motion", "flow", "given"]
    assert "Optical flow" not in out


def test_flow_needs_no_weights_and_one_line_says_where_it_comes_from(run, tmp_path):
    code, out, errors = run()
    assert code == 0 and not errors
    assert [line for line in out.splitlines() if "Optical flow" in line] == [
        "  Optical flow: dense inverse search (--flow=dis); a network's weights: --flow_checkpoint."
    ]
    record = json.loads((tmp_path / "out" / "config.json").read_text())
    assert record["flow"] == {"name": "dis", "source_name": f"dense inverse search of OpenCV {cv2.__version__}"}
    path = (tmp_path / "out" / "trajectory.txt").read_text()
    code, out, _ = run(flow="dis")
    assert code == 0 and "Optical flow" not in out
    assert (tmp_path / "out" / "trajectory.txt").read_text() == path
    code, out, _ = run(flow="none")
    assert code == 0 and "Optical flow" not in out
    assert (tmp_path / "out" / "trajectory.txt").read_text() != path
    assert json.loads((tmp_path / "out" / "config.json").read_text())["flow"] is None


@pytest.mark.slow
def test_a_network_estimates_the_flow(run, monkeypatch, inputs):
    """The program gives the network's flow to the alignment; the network itself is tested elsewhere."""
    network = flow_network(FlowConfig("raft-small"), seed=0)
    seen = {}

    def estimate(net, frames, edges, *, progress):
        seen.update(net=net, shape=frames.rgb.shape)
        progress("flow", len(edges), len(edges), "")
        return np.full((len(edges), *frames.rgb.shape[1:3], 2), 2.0, np.float32), None

    align, aligned_with = pipeline.alignment.align, []

    def spy(*args, flow, **options):
        aligned_with.append(flow)
        return align(*args, flow=flow, **options)

    monkeypatch.setattr(pipeline.alignment, "align", spy)

    monkeypatch.setattr(given, "network_flow", estimate)
    monkeypatch.setattr(given, "load_flow_model_and_metadata", lambda path: (network, {}))
    for name in ("raft-small", "auto"):
        code, out, errors = run(flow=name, flow_checkpoint="some.pth")
        assert code == 0 and not errors, errors
        assert ("  Optical flow: raft-small of some.pth." in out.splitlines()) == (name == "auto")
        assert seen.pop("shape") == (3, H, W, 3)
        chex.assert_trees_all_equal(seen.pop("net"), network)
        np.testing.assert_array_equal(aligned_with.pop(), 2.0)
    code, _, errors = run(flow="sea-raft", flow_checkpoint="some.pth")
    assert code == 1 and "has weights of raft-small: use --flow=raft-small" in errors


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"masks": "flow", "flow": "none"}, "--masks=flow needs optical flow"),
        ({"save_flow": True, "flow": "none"}, "--save_flow needs optical flow"),
        ({"flow": "raft"}, "--flow=raft needs weights: --flow_checkpoint=WEIGHTS, or --flow=dis"),
        ({"masks": "motion+"}, "--masks=motion+: it must be none, or some of"),
        ({"masks": "none+motion"}, "none, or some of"),
        ({"masks": "a+b"}, "one folder"),
        ({"masks": "nowhere"}, "nowhere"),
        ({"flow": "nowhere"}, "neither auto, dis, sea-raft"),
        ({"flow": "none", "flow_checkpoint": "x.pth"}, "--flow_checkpoint requires"),
        ({"flow": "dis", "flow_checkpoint": "x.pth"}, "--flow_checkpoint requires"),
        ({"flow_checkpoint": "nowhere.pth"}, "nowhere.pth"),
        ({"intrinsics": "nowhere.txt"}, "nowhere.txt"),
        ({"poses": "nowhere.txt"}, "nowhere.txt"),
        ({"refine": "sam2", "masks": "none"}, "--refine=sam2: with --masks=none there are no masks"),
        ({"refine": "sam2", "motion": "none"}, "with --motion=none --masks=motion there are no masks"),
        ({"refine_checkpoint": "sam2/"}, "--refine_checkpoint requires --refine=sam2"),
        ({"refine": "reprojection", "refine_checkpoint": "sam2/"}, "--refine_checkpoint requires --refine=sam2"),
        ({"refine": "reprojection", "masks": "none"}, "--refine=reprojection: with --masks=none there are no masks"),
    ],
)
def test_errors_are_reported_in_one_line(complaint, flags, words):
    assert words in complaint(**flags)


@pytest.mark.parametrize("library", ["torch", "transformers"])
def test_without_its_libraries_refinement_is_refused_before_any_work(complaint, monkeypatch, library):
    monkeypatch.setitem(sys.modules, library, None)  # whether it is installed or not
    monkeypatch.setattr(reconstruct, "load_backbone_and_metadata", pytest.fail)
    assert "pip install 'easi3r_jax[sam2]'" in complaint(refine="sam2")


@pytest.fixture
def corner(monkeypatch):
    """Takes SAM 2's place: adds the upper left corner of every frame. Its weights are named by their folder."""

    class Corner:
        def __init__(self, checkpoint, *, progress):
            self.metadata = {"source_name": checkpoint}
            self.seen = []
            made.append(self)

        def __call__(self, rgb, masks, *, progress):
            self.seen.append(masks.shape)
            progress("refine", 0, 1, "")
            progress("refine", 1, 1, "")
            refined = masks.copy()
            refined[:, :10, :10] = True
            return refined

    made = []
    monkeypatch.setattr(given.sam2, "Sam2Refiner", Corner)
    return made


def test_refined_masks_reach_the_result_and_the_record(run, corner, tmp_path):
    code, out, errors = run(refine="sam2", refine_checkpoint="weights/", masks="motion", mask_dilation=1)
    assert code == 0 and not errors, errors
    assert [made.seen for made in corner] == [[(3, H, W)]]
    assert export.load_scene(tmp_path / "out").dynamic_mask[:, :11, :11].all()
    record = json.loads((tmp_path / "out" / "config.json").read_text())
    assert record["refiner"] == {"source_name": "weights/"} and record["options"]["refine"] == "sam2"
    assert "refine" in out  # in the closing table


def test_masks_are_refined_by_reprojection_without_weights(run, tmp_path):
    code, out, errors = run(refine="reprojection")
    assert code == 0 and not errors, errors
    record = json.loads((tmp_path / "out" / "config.json").read_text())
    assert record["refiner"]["source_name"] == "reprojection" and record["refiner"]["num_clusters"] == 30
    assert "refine" in out  # in the closing table


@pytest.mark.slow
def test_the_motionless_twin_is_refined_too(run, corner, tmp_path):
    """Else its figures would not be the method's; plain DUSt3R has no masks to refine."""
    code, _, errors = run(refine="sam2", compare_plain=True)
    assert code == 0, errors
    assert [made.seen for made in corner] == [[(3, H, W), (3, H, W)]]
    figures = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert figures["full, motionless twin"]["mask_share"] >= 100 / (H * W)


def test_inputs_of_another_clip_are_refused(complaint, inputs):
    for path in sorted((inputs / "masks").iterdir())[2:]:
        path.unlink()
    assert "masks" in complaint(masks=inputs / "masks")
    (inputs / "flow" / "00000_00002.flo").unlink()
    assert "00000_00002.flo" in complaint(flow=inputs / "flow")
    (inputs / "p.txt").write_text("0 0 0 0 1 0 0 1\n1 0 0 0 0 0 0 5\n2 0 0 0 0 0 0 1\n")
    assert "p.txt" in complaint(poses=inputs / "p.txt")


def test_known_focal_lengths_that_differ_are_refused_at_once(complaint, inputs):
    (inputs / "k.txt").write_text("80 80 48 32\n90 90 48 32\n" + 14 * "-\n")
    assert "--noshared_focal" in complaint(intrinsics=inputs / "k.txt")


def test_flow_that_is_not_known_is_kept_as_such(run, inputs):
    """What a folder marks as unknown is unknown in the one that --save_flow writes."""
    flow = np.zeros((len(EDGES), H, W, 2), np.float32)
    known = np.ones((len(EDGES), H, W), bool)
    known[:, 10:20] = False
    export.write_flow(inputs / "flow", flow, EDGES, known=known)
    code, _, errors = run(flow=inputs / "flow", save_flow=True)
    assert code == 0, errors
    again = cv2.readOpticalFlow(str(inputs / "out" / "flow" / "00000_00001.flo"))
    np.testing.assert_array_equal(np.abs(again[..., 0]) < 1e9, known[0])


def test_everything_masked_still_aligns(run, inputs):
    for path in (inputs / "masks").iterdir():
        cv2.imwrite(str(path), np.full((H, W), 255, np.uint8))
    code, _, errors = run(masks=inputs / "masks", flow=inputs / "flow")
    assert code == 0, errors
    scene = export.load_scene(inputs / "out")
    assert scene.dynamic_mask.all() and not scene.static_mask.any()
    assert all(np.isfinite(value).all() for value in vars(scene).values())
