"""The parts of an evaluation: metrics with known answers, records that survive, means with the right weights."""

import dataclasses
import json
import math
import os
import types

import jax
import numpy as np
import pytest

from easi3r_jax.apps import cli, compilation
from easi3r_jax.apps.evaluate import compare, records, tables
from easi3r_jax.apps.evaluate.configuration import describe, weights_hash
from easi3r_jax.apps.evaluate.records import Record, configuration_digest
from easi3r_jax.apps.evaluate.schedule import Job, Part, all_jobs
from easi3r_jax.apps.evaluate.sequence_metrics import MAX_POINTS, Prediction, depth_metrics, evaluate_sequence, tasks_of
from easi3r_jax.apps.evaluate.summary import Mean, data_set_mean, summarise
from easi3r_jax.core.config import AlignConfig, FrameConfig, PipelineConfig
from easi3r_jax.core.errors import InputError
from easi3r_jax.core.geometry.grids import resample_nearest
from easi3r_jax.evaluation import metrics
from easi3r_jax.evaluation.datasets import Published, TestSequence, TestSet, Trajectory, Truth
from easi3r_jax.evaluation.metrics import DepthOptions
from easi3r_jax.inference.refine import ReprojectionRefiner
from easi3r_jax.io.video import frame_geometry

SOURCE = (70, 100)
T = 5
SCALE = DepthOptions()


def a_set(depth=SCALE, tasks=("masks", "poses", "depth", "points"), **options):
    return TestSet("set", "Set", tasks, lambda root: [], "", "", depth, **options)


@pytest.fixture
def perfect():
    """A sequence and a perfect prediction: at the crop, in a world with another origin, rotation and scale."""
    rng = np.random.default_rng(0)
    geometry = frame_geometry(SOURCE[1], SOURCE[0], FrameConfig(size=48, patch_size=8))
    crop, shape = geometry.frame_from_source, geometry.size[::-1]
    depth = rng.uniform(1, 5, (T, *SOURCE)).astype(np.float32)
    masks = np.zeros((T, *SOURCE), bool)
    for t in range(T):
        masks[t, 20:50, 10 + 8 * t : 45 + 8 * t] = True
    poses = np.tile(np.eye(4), (T, 1, 1))
    poses[:, :3, 3] = rng.normal(size=(T, 3))
    intrinsics = np.tile(np.array([[90.0, 0, 50], [0, 90, 35], [0, 0, 1]]), (T, 1, 1))
    times = np.arange(T) / 10
    truth = Truth(lambda t: masks[t], None, lambda t: depth[t], intrinsics, Trajectory(times + 0.004, poses))
    sequence = TestSequence("one", (), times, truth, T)

    turn, scale = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]]), 2.5
    own = poses.copy()
    own[:, :3, :3] = turn @ poses[:, :3, :3]
    own[:, :3, 3] = scale * poses[:, :3, 3] @ turn.T + 7
    prediction = Prediction(
        depth=scale * resample_nearest(depth, crop, shape),
        masks=resample_nearest(masks, crop, shape),
        world_from_cam=own,
        intrinsics=crop @ intrinsics,
        frame_from_source=crop,
        source_size=SOURCE,
    )
    return sequence, prediction


def test_a_perfect_prediction_has_no_error(perfect):
    sequence, prediction = perfect
    measured = evaluate_sequence(a_set(), sequence, prediction)
    assert measured["masks"]["pooled_j_mean"] == measured["masks"]["pooled_f_mean"] == 1
    assert measured["masks"]["pooled_frames"] == T and measured["masks"]["davis_frames"] == T - 2
    assert 0.85 < measured["masks"]["davis_j_mean"] < 1  # the network's pixels are twice as large
    assert measured["poses"]["poses"] == T
    for name in ("ate", "rpe_translation", "rpe_rotation_deg", "focal_relative_error"):
        assert measured["poses"][name] == pytest.approx(0, abs=1e-6), name
    assert measured["points"]["distance"] == pytest.approx(0, abs=1e-5)
    assert measured["points"]["points"] == prediction.depth.size < MAX_POINTS


def test_only_tasks_with_ground_truth_are_evaluated(perfect):
    sequence, prediction = perfect
    truth = dataclasses.replace(sequence.truth, trajectory=None)
    assert tasks_of(a_set(), truth) == ("masks", "depth")
    assert tasks_of(a_set(tasks=("poses",)), truth) == ()
    measured = evaluate_sequence(a_set(), dataclasses.replace(sequence, truth=truth), prediction)
    assert set(measured) == {"masks", "depth"}


def test_void_pixels_do_not_count(perfect):
    sequence, prediction = perfect
    wrong = prediction.masks.copy()
    wrong[:, :5] = True
    void = np.zeros(SOURCE, bool)
    void[:16] = True
    truth = dataclasses.replace(sequence.truth, void=lambda t: void)
    measured = [
        evaluate_sequence(
            a_set(), dataclasses.replace(sequence, truth=t), dataclasses.replace(prediction, masks=wrong)
        )["masks"]
        for t in (sequence.truth, truth)
    ]
    assert measured[0]["pooled_j_mean"] < 0.8 and measured[1]["pooled_j_mean"] == 1


@pytest.mark.parametrize("options", [DepthOptions("median"), DepthOptions("median", per_frame=True, max_depth=4.0)])
def test_sparse_depth_gives_the_metrics_of_full_maps(perfect, options):
    """The same numbers as from arrays of all pixels; pixels outside the crop are ignored."""
    sequence, prediction = perfect
    rng = np.random.default_rng(1)
    keep = rng.uniform(size=(T, *SOURCE)) < 0.3
    keep[2] = False  # a frame without ground truth
    depth = np.stack([sequence.truth.depth(t) for t in range(T)]) * keep
    noisy = dataclasses.replace(prediction, depth=prediction.depth * rng.uniform(0.7, 1.3, prediction.depth.shape))
    found = depth_metrics(noisy, Truth(depth=lambda t: depth[t]), options)
    back = np.linalg.inv(prediction.frame_from_source)
    full = resample_nearest(noisy.depth, back, SOURCE, outside=0.0)
    covered = resample_nearest(np.ones(noisy.depth.shape, bool), back, SOURCE, outside=False)
    assert not covered.all()
    expected = metrics.depth_metrics(full, np.where(covered, depth, 0), options)
    assert found.pop("pixels") == metrics.evaluated_pixels(np.where(covered, depth, 0), options).sum()
    assert found == pytest.approx(expected, rel=1e-9)


def test_ground_truth_of_another_size_and_none_at_all(perfect):
    sequence, prediction = perfect
    other = Truth(depth=lambda t: np.ones((10, 10), np.float32))
    with pytest.raises(InputError, match=r"depth of frame 0 has shape \(10, 10\), its image \(70, 100\)"):
        evaluate_sequence(a_set(), dataclasses.replace(sequence, truth=other), prediction)
    nothing = Truth(depth=lambda t: np.zeros(SOURCE, np.float32))
    measured = evaluate_sequence(a_set(), dataclasses.replace(sequence, truth=nothing), prediction)["depth"]
    assert measured["abs_rel"] is None and measured["pixels"] == 0


def test_points_need_a_camera_that_moves(perfect):
    sequence, prediction = perfect
    still = Trajectory(sequence.truth.trajectory.times, np.tile(np.eye(4), (T, 1, 1)))
    sequence = dataclasses.replace(sequence, truth=dataclasses.replace(sequence.truth, trajectory=still))
    measured = evaluate_sequence(a_set(), sequence, prediction)
    assert measured["points"]["distance"] is None and measured["points"]["points"] == 0
    assert measured["poses"]["ate"] is None and measured["poses"]["rpe_rotation_deg"] is not None


def test_a_frozen_camera_has_errors(perfect):
    """Not better than nothing: its points are where the true cameras are on average."""
    sequence, prediction = perfect
    frozen = dataclasses.replace(prediction, world_from_cam=np.tile(np.eye(4), (T, 1, 1)))
    measured = evaluate_sequence(a_set(), sequence, frozen)
    centres = sequence.truth.trajectory.world_from_cam[:, :3, 3]
    spread = np.sqrt(np.square(centres - centres.mean(0)).sum(1).mean())
    assert measured["poses"]["ate"] == pytest.approx(spread)
    assert measured["points"]["distance"] > 1 and measured["points"]["points"] > 0  # depths are 1 to 5


def record(sequence="a", seed=0, metrics=None, **options):
    values = {"dataset": "set", "config": "c", "num_frames": 3, "error": None, "seconds": 1.0, "ended": 1.0}
    values |= {"peak_memory_bytes": {"host": 1}, "hardware": "x", "code": "y"}
    return Record(sequence=sequence, seed=seed, metrics={"depth": metrics or {}}, **(values | options))


def test_records_survive_a_truncated_line(tmp_path):
    first, second = tmp_path / "results.jsonl", tmp_path / "results.001.jsonl"
    records.append(first, record("a", metrics={"abs_rel": 0.1, "sq_rel": None, "log_rmse": math.nan}))
    line = first.read_bytes()
    first.write_bytes(line + line[:50])  # power loss
    assert [r.sequence for r in records.read(tmp_path)] == ["a"]
    records.append(first, record("b", ended=3.0))
    records.append(second, record("c", ended=2.0))
    with second.open("a") as file:
        file.write('{"another": "program"}\n\n[]\n{"dataset": NaN}\n')
    found = records.read(tmp_path)
    assert [r.sequence for r in found] == ["a", "c", "b"]  # in the order of their ends
    assert found[0].metrics["depth"] == {"abs_rel": 0.1, "sq_rel": None, "log_rmse": None}
    assert [json.loads(text)["sequence"] for text in first.read_text().splitlines() if text.endswith("}")] == ["a", "b"]


@pytest.mark.parametrize(
    "change",
    [
        {"metrics": None},
        {"metrics": {"depth": None}},
        {"metrics": {"depth": {"abs_rel": "0.1"}}},
        {"seed": [0]},
        {"num_frames": None},
        {"ended": "yesterday"},
        {"seconds": None},
        {"hardware": 3},
        {"peak_memory_bytes": None},
        {"error": 1},
    ],
)
def test_an_invalid_line_is_skipped(tmp_path, change):
    path = tmp_path / "results.jsonl"
    records.append(path, record("a", metrics={"abs_rel": 0.1}))
    line = json.loads(path.read_text())
    path.write_text(json.dumps(line | {"sequence": "b"} | change) + "\n" + json.dumps(line) + "\n")
    assert [r.sequence for r in records.read(tmp_path)] == ["a"]


def test_results_that_cannot_be_read(tmp_path):
    (tmp_path / "results.jsonl").mkdir()
    with pytest.raises(InputError, match=r"results\.jsonl"):
        records.read(tmp_path)


def test_the_last_record_of_a_sequence_counts():
    failed, again = record(error="no", ended=1.0), record(ended=2.0)
    other = record(config="d", ended=3.0)
    assert records.latest([failed, again, other]) == {again.key: again, other.key: other}


def test_the_first_sequences_are_evaluated_and_all_are_expected():
    sequences = [TestSequence(name, (), np.arange(3.0), Truth(depth=lambda t: t), 3) for name in "abc"]
    part = Part.of(a_set(tasks=("depth", "masks")), sequences, 2, {})
    assert [job.sequence.name for job in all_jobs([part], [0])] == ["a", "b"]
    assert isinstance(all_jobs([part], [0])[0], Job)
    own = part.own([record("a", config=part.digest), record("b", config="other"), record("c", num_frames=9)])
    assert [r.sequence for r in own] == ["a"]
    (summary,) = part.summaries([0], own)  # no sequence has masks
    assert (summary.task, summary.done, summary.expected, summary.is_complete) == ("depth", 1, 3, False)


def test_means_have_the_weights_of_their_protocols():
    pooled = [{"pooled_j_mean": 0.2, "pooled_frames": 30}, {"pooled_j_mean": 0.8, "pooled_frames": 10}]
    assert data_set_mean("pooled_j_mean", pooled) == pytest.approx(0.35)
    davis = [{"davis_j_mean": 0.2, "davis_frames": 30}, {"davis_j_mean": 0.8, "davis_frames": 10}]
    assert data_set_mean("davis_j_mean", davis) == pytest.approx(0.5)
    depth = [{"abs_rel": 0.1, "pixels": 300}, {"abs_rel": 0.5, "pixels": 100}, {"abs_rel": None, "pixels": 0}]
    assert data_set_mean("abs_rel", depth) == pytest.approx(0.2)
    assert data_set_mean("ate", [{"ate": 1.0}, {"ate": 2.0}, {"ate": None}]) == pytest.approx(1.5)
    assert data_set_mean("ate", [{"ate": None}]) is None and data_set_mean("ate", []) is None


def test_summaries_are_over_seeds_of_the_same_sequences():
    found = [record(n, s, {"abs_rel": v, "pixels": 1}) for n, s, v in (("a", 0, 1.0), ("a", 1, 3.0), ("b", 0, 100.0))]
    found.append(record("b", 1, error="broken"))
    summary = summarise("set", "depth", ["a", "b"], [0, 1], found)
    assert (summary.done, summary.expected, summary.is_complete) == (1, 2, False)
    assert summary.metrics["abs_rel"] == Mean(2.0, pytest.approx(math.sqrt(2)), 0)
    assert "pixels" not in summary.metrics
    one = summarise("set", "depth", ["a"], [0], found)
    assert one.is_complete and one.metrics["abs_rel"] == Mean(1.0, None, 0)
    unknown = summarise("set", "depth", ["a", "c"], [0], [*found, record("c", metrics={"abs_rel": None, "pixels": 0})])
    assert unknown.is_complete and unknown.metrics["abs_rel"] == Mean(1.0, None, 1)


def test_pooled_metrics_are_those_of_all_frames_at_once():
    rng = np.random.default_rng(3)
    sequences = [[rng.uniform(size=(n, 24, 30)) < 0.4 for _ in range(2)] for n in (4, 9)]
    together = metrics.pooled_metrics(*zip(*sequences, strict=True))
    apart = []
    for masks, truth in sequences:
        measured = metrics.pooled_metrics(masks, truth)
        apart.append({f"pooled_{name}": value for name, value in measured.items()})
    for name in ("j_mean", "j_recall", "f_mean", "f_recall"):
        assert data_set_mean(f"pooled_{name}", apart) == pytest.approx(together[name])


def test_rows_of_papers_are_in_the_table_of_their_protocol():
    table, davis, *_ = tables.TABLES
    row = Published("M", "masks", {"j_mean": 0.5, "davis_f_mean": 0.25}, "there")
    assert tables.published_metrics(table, row) == {"j_mean": 0.5}
    assert tables.published_metrics(davis, row) == {"f_mean": 0.25}
    found = [record("a", metrics={"pooled_j_mean": 0.4, "pooled_frames": 3})]
    found = [dataclasses.replace(r, metrics={"masks": r.metrics["depth"]}) for r in found]
    known = a_set(published=(row,))
    for expected, allow, cells in ((["a"], False, "0.400"), (["a", "b"], False, "-"), (["a", "b"], True, "0.400*")):
        summary = summarise("set", "masks", expected, [0], found)
        columns, rows = tables.lay_out(table, known, summary, allow_missing=allow)
        assert [column.title for column in columns] == ["J mean"]
        assert rows[0][1:] == (f"1/{len(expected)}", cells) and rows[1] == ("M", "", "0.500")
        assert ("INCOMPLETE" in rows[0][0]) == (cells == "-")
    assert tables.written(Mean(0.25, 0.5, 2), columns[0]) == "0.250 ± 0.500 (2 undefined)"
    assert tables.written(Mean(None, None, 1), columns[0], "*") == "- (1 undefined)"
    assert tables.written(None, columns[0]) == "-"
    assert "| a\\|b | c |" in tables.markdown([("a|b", "c")], ("x", "y"))


def test_titles_state_how_depth_is_aligned():
    titles = [
        next(tables.title_of(table, a_set(depth)) for table in tables.TABLES if table.task == "depth")
        for depth in (DepthOptions("scale", max_depth=70.0), DepthOptions("median", per_frame=True, max_depth=None))
    ]
    assert titles[0].endswith("fitted once per sequence (scale), true depth below 70")
    assert titles[1].endswith("fitted frame by frame (median)")
    assert tables.title_of(tables.TABLES[0], a_set()) == tables.TABLES[0].title


def described(
    pipeline=PipelineConfig(), frames=FrameConfig(), weights=None, known=None, protocol=None, precision="exact"
):
    return configuration_digest(
        describe(
            known or a_set(),
            protocol or {},
            pipeline=pipeline,
            frames=frames,
            precision=precision,
            weights=weights or {},
        )
    )


def test_the_digest_depends_only_on_what_determines_results():
    assert described() == described() == described(PipelineConfig(pair_batch=4, frame_batch=2, seed=5))
    others = [
        described(PipelineConfig(graph="complete")),
        described(PipelineConfig(alignment=AlignConfig(camera_weight=2.0))),
        described(frames=FrameConfig(crop=False)),
        described(weights={"network": "5e"}),
        described(known=a_set(DepthOptions("median"))),
        described(known=a_set(single_frames=True)),
        described(protocol={"seed": 1}),
        described(precision="bf16"),
    ]
    assert len({described(), *others}) == 9


def test_compiled_programs_are_cached_where_the_user_says(tmp_path, monkeypatch):
    assert str(compilation.use_cache()) == jax.config.values["jax_compilation_cache_dir"]  # the tests' own
    changed = {}
    config = types.SimpleNamespace(values={"jax_compilation_cache_dir": None}, update=changed.__setitem__)
    monkeypatch.setattr(compilation, "jax", types.SimpleNamespace(config=config))
    monkeypatch.delenv("EASI3R_JAX_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = compilation.use_cache()
    assert folder is not None and folder.is_dir() and folder.parent == tmp_path / "easi3r_jax" / "compiled"
    assert changed["jax_compilation_cache_dir"] == str(folder)
    for age, name in enumerate("abc"):
        (folder / name).write_bytes(bytes(10))
        os.utime(folder / name, (0, 100 - age))
    compilation._prune(folder, 25)
    assert sorted(path.name for path in folder.iterdir()) == ["a", "b"]  # the oldest one is gone
    monkeypatch.setenv("EASI3R_JAX_CACHE", str(tmp_path / "file"))
    (tmp_path / "file").write_text("")
    assert compilation.use_cache() is None  # not writable: no cache


def test_programs_that_compute_keep_what_they_compile(monkeypatch):
    calls = []
    monkeypatch.setattr(compilation, "use_cache", lambda: calls.append("on"))
    flags = cli.Flags("", cached=True)
    assert flags.execute(lambda: calls.append("main"), [""]) == 0 and calls == ["on", "main"]
    assert flags.execute(lambda: None, ["", "--nocompilation_cache"]) == 0 and len(calls) == 2
    assert "--[no]compilation_cache" in flags.help() and "compilation_cache" not in cli.Flags("").help()


def test_weights_without_a_file_are_hashed_themselves():
    assert weights_hash(None, None) is None
    assert weights_hash({"source_sha256": "ab"}, None) == "ab"
    one, same, other = ({"w": np.full(3, value)} for value in (1.0, 1.0, 2.0))
    assert weights_hash({}, one) == weights_hash({"source_sha256": ""}, same) != weights_hash({}, other)
    plain, fine = (ReprojectionRefiner(num_clusters=count).metadata for count in (30, 60))
    assert weights_hash(plain, None) == weights_hash(dict(plain), None) != weights_hash(fine, None)


def test_the_bootstrap_separates_chance_from_a_difference():
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 1, 400)
    low, high = compare.bootstrap_interval(noise)
    assert low < 0.1 and high > -0.1 and high - low == pytest.approx(2 * 1.96 / math.sqrt(400), rel=0.15)
    assert compare.bootstrap_interval(noise + 5)[0] > 4.8
    assert compare.bootstrap_interval(noise) == (low, high)  # seeded
    assert compare.bootstrap_interval(np.ones(5)) == (None, None)  # 1 in 16 by chance
    assert compare.bootstrap_interval(np.ones(6)) == (1.0, 1.0)  # 1 in 32


def test_runs_are_compared_over_common_sequences_and_their_newest_configuration(tmp_path):
    for folder, values in (("a", {"x": 1.0, "y": 2.0, "z": 9.0}), ("b", {"x": 1.5, "y": 3.5})):
        (tmp_path / folder).mkdir()
        path = tmp_path / folder / "results.jsonl"
        for name, value in values.items():
            records.append(path, record(name, metrics={"abs_rel": 77.0}, config="old", ended=1.0))
            for seed, offset in ((0, -0.25), (1, 0.25)):
                values_of_seed = {"abs_rel": value + offset, "sq_rel": None, "pixels": 10}
                records.append(path, record(name, seed, values_of_seed, ended=2.0))
        records.append(path, record("w", error="broken", ended=3.0))
    (found, other), notes = compare.compare(tmp_path / "a", tmp_path / "b")
    assert (found.name, found.count, found.first, found.second, found.difference) == ("abs_rel", 2, 1.5, 2.5, 1.0)
    assert found.of == (4, 3) and (other.name, other.first, other.undefined) == ("sq_rel", None, (0, 0, 2))
    assert notes[0] == "A: set has 2 configurations; the newest is compared."
    assert notes[2] == "set: 2 of 4 and 3 sequences, left out: failed in A and B: w; not in B: z."
    assert found.low is None and "-" in compare.printed([found])
    known = dataclasses.replace(found, low=0.5, high=1.5)
    line = compare.printed([known]).splitlines()[-1]
    assert "[+0.5000, +1.5000]" in line and line.endswith("*")
    assert not compare.printed([dataclasses.replace(known, low=-0.5)]).endswith("*")
    with pytest.raises(InputError, match="no results"):
        compare.compare(tmp_path / "a", tmp_path / "c")
