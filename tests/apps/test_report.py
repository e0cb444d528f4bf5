"""`python -m experiments.report`, and the flags of reconstruct that do the same. Results are made by hand."""

import base64
import dataclasses
import json
import re
import shutil

import av
import numpy as np
import PIL.Image
import pytest
from matplotlib.figure import Figure

from easi3r_jax.apps import report, report_page, reporting
from easi3r_jax.apps.compilation import Compilations
from easi3r_jax.apps.progress import Stages
from easi3r_jax.core.errors import InputError
from easi3r_jax.core.types import Frames, MotionMaps, Scene4D, TemporalMaps
from easi3r_jax.evaluation import metrics
from easi3r_jax.io import results
from easi3r_jax.io.export import write_json
from easi3r_jax.io.pictures import gallery
from easi3r_jax.io.pictures import movies as video
from tests.html_page import HOSTILE, Reader
from tests.results import write_result

T, H, W = 4, 16, 24
FILMS = {"panel", "depth", "masks", "attention"}
STILLS = {
    *("report.html", "overview.jpg", "contact_image.jpg", "contact_depth.jpg", "contact_masks.jpg"),
    *("plot_losses.png", "plot_trajectory.png", "plot_score.png"),
}


@pytest.fixture(autouse=True, scope="module")
def plain_overview():
    """The overview takes as long as all else, and has tests of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gallery, "summary_figure", lambda *arguments, **options: Figure(figsize=(1, 1)))
        yield


def make_clip(folder):
    """A clip folder with a true path: of a world twice as large, and turned, that the result should have."""
    (folder / "frames").mkdir(parents=True)
    for t in range(T):
        PIL.Image.new("RGB", (W, H), (40 * t, 90, 20)).save(folder / "frames" / f"{t}.png")
    true = np.tile(np.eye(4), (T, 1, 1))
    turn = np.array([[0, 0, 1], [1, 0, 0], [0, 1, 0]])
    true[:, :3, :3] = turn
    true[:, :3, 3] = 2 * centres() @ turn.T + 5
    np.savez(folder / "ground_truth.npz", world_from_cam=true)


def centres():
    t = np.arange(T)
    return np.stack([0.1 * t, 0.02 * t**2, 0.3 * np.sin(t)], axis=1)


def make_result(folder):
    """Of the clip beside it."""
    rng = np.random.default_rng(0)
    world_from_cam = np.tile(np.eye(4, dtype=np.float32), (T, 1, 1))
    world_from_cam[:, :3, 3] = centres()
    score = rng.random((T, H, W), np.float32)
    scene = Scene4D(
        world_from_cam=world_from_cam,
        intrinsics=np.tile(np.array([[20, 0, W / 2], [0, 20, H / 2], [0, 0, 1]], np.float32), (T, 1, 1)),
        depth=rng.uniform(1, 4, (T, H, W)).astype(np.float32),
        confidence=rng.uniform(1, 9, (T, H, W)).astype(np.float32),
        dynamic_mask=score > 0.7,
        dynamic_score=score,
        static_mask=score <= 0.7,
        rgb=rng.integers(0, 256, (T, H, W, 3), np.uint8),
    )
    maps = rng.random((6, T, 2, 3), np.float32)
    maps = MotionMaps(TemporalMaps(*maps[:4]), maps[4], np.zeros((T, 2, 3), np.int32), maps[5])
    frames = Frames(scene.rgb, np.arange(T, dtype=np.int32), np.arange(T) / 8, np.eye(3), np.array([H, W], np.int32))
    write_result(
        folder,
        scene,
        maps,
        frames=frames,
        metrics={"plain": {"ate": 0.25, "abs_rel": None}, "full": {"ate": 0.125, "own_figure": 3}},
        threshold=0.7,
        losses=np.linspace(1, 0.1, 7, dtype=np.float32),
        config={
            "options": {"seq": str(folder.parent / "clip"), "fps": 0.0, "masks": "motion", "crop": True},
            "changed": ["seq"],
            "checkpoint": {"source_name": "weights.pth", "source_sha256": "ab" * 32, "licence": "terms"},
            "refiner": None,
            "flow": {"source_name": "raft.pth", "licence": "BSD"},
            "versions": {"jax": "1.2.3"},
        },
    )
    write_json(
        folder / "timings.json",
        {"stages": {"align": {"seconds": 12.34, "items": 7}}, "seconds": 56.78, "peak_memory_bytes": {"host": 1.5e9}},
    )


def execute(**values):
    return report.FLAGS.execute(report.main, ["", *(f"--{k}={v}" for k, v in values.items())])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a clip, its result, and another result that is shown."""
    folder = tmp_path_factory.mktemp("made")
    make_clip(folder / "clip")
    make_result(folder / "result")
    shutil.copytree(folder / "result", folder / "shown")
    assert execute(scene=folder / "shown", gif=True) == 0
    return folder


@pytest.fixture
def clip(made):
    return made / "clip"


@pytest.fixture
def folder(made, tmp_path):
    """A result of its own, for a test that changes it."""
    return shutil.copytree(made / "result", tmp_path / "result")


@pytest.fixture
def run(capsys):
    """`run(scene=…)`: exit code, stdout, stderr."""

    def run(**values):
        return execute(**values), *capsys.readouterr()

    return run


def names(folder):
    return {path.name for path in folder.iterdir()}


def read(folder):
    text = (folder / "report.html").read_text(encoding="utf-8")
    return Reader(text), text


def cells(text):
    """Rows of the page's tables: lists of text."""
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", text)
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in rows]


def test_everything_is_written_into_the_result(made):
    folder = made / "shown"
    before = {p.name: p.read_bytes() for p in (made / "result").iterdir() if p.is_file()}
    new = {f"{film}.{suffix}" for film in FILMS for suffix in ("mp4", "gif")} | STILLS | {"pictures.json"}
    assert names(folder) == new | before.keys() | {"depth", "masks"}
    assert {name: (folder / name).read_bytes() for name in before} == before
    for film in FILMS:
        with av.open(str(folder / f"{film}.mp4")) as container:
            assert container.streams.video[0].average_rate == 8
            assert len(list(container.decode(video=0))) == T
        with PIL.Image.open(folder / f"{film}.gif") as gif:
            assert gif.n_frames == T
    assert json.loads((folder / "pictures.json").read_text())["left_out"] == {}


def test_the_page_holds_the_pictures_and_what_the_result_says(made):
    folder = made / "shown"
    page, text = read(folder)
    embedded = {base64.b64decode(a["src"].split(",")[1]) for tag in ("img", "video") for a in page.all(tag)}
    shown = STILLS - {"report.html"} | {"panel.mp4", "attention.mp4"}
    assert embedded == {(folder / name).read_bytes() for name in shown}
    rows = cells(text)
    assert ["", "plain", "full"] in rows
    assert ["camera path, ATE (units of the truth)", "0.2500", "0.1250"] in rows
    assert ["depth, AbsRel", "-", "-"] in rows and ["own_figure", "-", "3.0000"] in rows
    assert ["global alignment", "7", "12.3"] in rows and [
        "total before the pictures, compilation included",
        "",
        "56.8",
    ] in rows
    assert rows.index(["optical flow", "raft.pth"]) == rows.index(["its licence", "BSD"]) - 1
    assert ("p", f"{T} frames of {W}x{H}, 0.38 s.") in page.texts and ("p", "Peak memory: host 1.50 GB.") in page.texts
    assert ["its SHA-256", "ab" * 32] in rows and ["its licence", "terms"] in rows and ["jax", "1.2.3"] in rows
    assert "CC BY-NC-SA 4.0" in text
    assert ["--masks", "motion"] in rows and ["--crop", "true"] in rows
    marked = re.findall(r'<tr class="marked">(.*?)</tr>', text)
    assert len(marked) == 1 and "--seq" in marked[0]
    assert "without" not in text.lower() and "Left out" not in text


def test_the_true_path_is_brought_to_the_result(made):
    saved = results.load_result(made / "result")
    found, why_not = reporting.true_centres(saved)
    assert why_not == ""
    np.testing.assert_allclose(found, centres(), atol=1e-5)


def test_the_gaps_between_the_paths_are_those_of_the_ate(made, tmp_path):
    """Also where the result is poor: the similarity that fits the truth to it would make the truth smaller."""
    saved = results.load_result(made / "result")
    truth = np.tile(np.eye(4), (T, 1, 1))
    truth[:, :3, 3] = 3 * centres() + np.random.default_rng(0).normal(0, 0.2, (T, 3))
    np.savez(tmp_path / "truth.npz", world_from_cam=truth)
    found, _ = reporting.true_centres(saved, str(tmp_path / "truth.npz"))
    gaps = np.linalg.norm(found - centres(), axis=1)
    scale = np.linalg.norm(np.diff(truth[:, :3, 3], axis=0), axis=1) / np.linalg.norm(np.diff(found, axis=0), axis=1)
    np.testing.assert_allclose(scale, scale[0])  # a similarity
    ate = metrics.pose_metrics(np.asarray(saved.scene.world_from_cam), truth)["ate"]
    np.testing.assert_allclose(scale[0] * np.sqrt(np.mean(gaps**2)), ate, rtol=1e-5)


def test_paths_that_are_not_numbers_are_refused(made, tmp_path):
    np.savez(tmp_path / "truth.npz", world_from_cam=np.full((T, 4, 4), "x"))
    with pytest.raises(InputError, match="not numbers"):
        reporting.true_centres(results.load_result(made / "result"), str(tmp_path / "truth.npz"))


def test_a_page_without_videos_is_smaller(made, run, tmp_path):
    folder = shutil.copytree(made / "shown", tmp_path / "result")
    larger = (folder / "report.html").stat().st_size
    assert run(scene=folder, videos=False)[0] == 0
    assert (folder / "report.html").stat().st_size < larger
    assert not [name for name in names(folder) if name.endswith(".mp4")]  # those of the run before have gone
    assert read(folder)[0].all("video") == []


def test_videos_that_are_too_large_are_beside_the_page(made, monkeypatch, tmp_path):
    sizes = {name: (made / "shown" / f"{name}.mp4").stat().st_size for name in ("panel", "attention")}
    videos = {name: (made / "shown" / f"{name}.mp4").read_bytes() for name in sizes}

    def shown(most, folder=made / "shown"):
        monkeypatch.setattr(report_page, "_MAX_VIDEO_BYTES", most)
        text = report_page.report_page(results.load_result(made / "shown"), "name", folder, {}, {}, {})
        beside = re.findall(r"Stored beside this page, which would otherwise be too large: (.*?)\.</p>", text)
        return [base64.b64decode(a["src"].split(",")[1]) for a in Reader(text).all("video")], beside

    assert shown(sum(sizes.values())) == ([videos["panel"], videos["attention"]], [])
    assert shown(sum(sizes.values()) - 1) == ([videos["panel"]], ["attention.mp4"])
    assert shown(10) == ([], ["panel.mp4, attention.mp4"])
    shutil.copy(made / "shown" / "panel.mp4", tmp_path)
    assert shown(10, tmp_path) == ([], ["panel.mp4"])


@pytest.mark.parametrize(
    ("pipeline", "said", "unsaid"),
    [
        (
            {"motion": "attention", "masks": ["motion"]},
            ["score computed from them", "score above its threshold"],
            ["not made"],
        ),
        (
            {"cue": "rigid", "masks": ["motion", "flow"]},
            ["another cue: --motion=rigid", "or optical flow"],
            ["computed from"],
        ),
        (
            {"cue": "attention", "masks": ["flow"]},
            ["masks are not computed from it", "(red): optical flow"],
            ["above its"],
        ),
        (
            {"cue": "attention", "masks": []},
            ["(red): none, since no masks were requested", "not computed from it"],
            [],
        ),
        ({"cue": HOSTILE, "masks": {}}, ["the dynamic score, which comes from another cue"], ["computed from"]),
        ({"cue": ["x"], "masks": 3}, ["the dynamic score."], ["computed from", "another cue"]),
        (None, ["the dynamic score.", "Dynamic regions (red)."], ["computed from", "another cue"]),
    ],
)
def test_captions_say_what_score_and_masks_were_made_of(made, pipeline, said, unsaid):
    saved = dataclasses.replace(results.load_result(made / "shown"), record={"pipeline": pipeline})
    read = Reader(report_page.report_page(saved, "name", made / "shown", {}, {}, {}))
    captions = " ".join(text for tag, text in read.texts if tag == "figcaption")
    assert [words for words in said if words not in captions] == []
    assert [words for words in unsaid if words in captions] == []


def test_another_folder(made, run, tmp_path):
    """The same files to the byte, and reported."""
    result, output = made / "result", tmp_path / "deep" / "page"
    before = names(result)
    code, out, err = run(scene=result, output=output)
    assert (code, err) == (0, "")
    written = {f"{film}.mp4" for film in FILMS} | STILLS
    assert names(output) == written | {"pictures.json"}
    assert names(result) == before
    for name in written - {"report.html"}:
        assert (output / name).read_bytes() == (made / "shown" / name).read_bytes()
    for name in written - STILLS | {"report.html"}:
        assert f"{output / name}, {(output / name).stat().st_size / 1e6:.2f} MB" in out


def test_hostile_names_are_text(folder, run):
    name = HOSTILE.replace("/", "\u2215")
    folder = folder.rename(folder.with_name(name))
    config = {"options": {HOSTILE: HOSTILE}, "changed": [HOSTILE, 3], "versions": {HOSTILE: HOSTILE}}
    write_json(folder / "config.json", config | {"checkpoint": {"source_name": HOSTILE, "licence": [HOSTILE]}})
    write_json(folder / "metrics.json", {HOSTILE: {HOSTILE: HOSTILE, "ate": True}})
    write_json(folder / "timings.json", {"stages": {HOSTILE: {"seconds": HOSTILE}, "b": 1, "c": {"seconds": 10**400}}})
    code, _, err = run(scene=folder, videos=False)
    assert (code, err) == (0, "")
    page, _ = read(folder)
    assert ("h1", name) in page.texts
    assert not {"script", "link", "iframe"} & {tag for tag, _ in page.elements}
    for _, attributes in page.elements:
        assert attributes.get("src", "data:").startswith("data:")
        assert not {"onerror", "href"} & attributes.keys()


def test_the_page_says_that_the_embedded_network_is_small(made):
    saved = results.load_result(made / "shown")
    for name, said in (("embedded", True), ("weights.pth", False)):
        small = dataclasses.replace(saved, record={"checkpoint": {"source_name": name}})
        assert ("for trials" in report_page.report_page(small, "name", made / "shown", {}, {}, {})) == said


def test_an_older_result_says_what_it_lacks(folder, run):
    with np.load(folder / "scene.npz") as file:
        kept = {k: v for k, v in file.items() if k in ("images", *Scene4D.__dataclass_fields__)}
    np.savez(folder / "scene.npz", **kept)
    for name in ("config.json", "timings.json", "metrics.json"):
        (folder / name).unlink()
    code, out, err = run(scene=folder, videos=False)
    assert (code, err) == (0, "")
    lacking = {"attention", "threshold of the score", "losses", "true path", "metrics"}
    assert set(json.loads((folder / "pictures.json").read_text())["left_out"]) == lacking
    assert {name for name in lacking if f"without {name}: " in out} == lacking
    assert "plot_losses.png" not in names(folder)
    assert {"contact_masks.jpg", "plot_score.png", "plot_trajectory.png"} <= names(folder)
    _, text = read(folder)
    assert {row[0] for row in cells(text)} >= lacking
    assert "does not record" in text


def test_ground_truth_that_is_gone_is_left_out_and_one_that_is_asked_for_is_needed(folder, run, clip):
    write_json(folder / "config.json", {"options": {"seq": "/nowhere/clip"}})
    saved = results.load_result(folder)
    found, why_not = reporting.true_centres(saved)
    assert found is None and "the ground truth is not available (There is no video" in why_not
    found, _ = reporting.true_centres(saved, str(clip / "ground_truth.npz"))
    np.testing.assert_allclose(found, centres(), atol=1e-5)
    code, _, err = run(scene=folder, ground_truth=clip / "none.npz")
    assert code == 1 and "No ground truth at" in err and err.count("\n") == 1


@pytest.mark.parametrize("still", ["estimate", "truth"])
def test_a_path_of_one_place_is_compared_to_none(folder, tmp_path, still):
    saved = results.load_result(folder)
    path = tmp_path / "truth.npz"
    truth = np.tile(np.eye(4), (T, 1, 1))
    if still == "estimate":
        truth[:, :3, 3] = centres()
        poses = np.tile(np.eye(4, dtype=np.float32), (T, 1, 1))
        saved = dataclasses.replace(saved, scene=dataclasses.replace(saved.scene, world_from_cam=poses))
    np.savez(path, world_from_cam=truth)
    found, why_not = reporting.true_centres(saved, str(path))
    assert found is None and "no similarity" in why_not


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"scene": ""}, "--scene is required"),
        ({"scene": "/nowhere"}, "No scene at /nowhere"),
        ({"videos": False, "report": False}, "nothing to write"),
        ({"output": "{folder}/scene.npz"}, "it is a file"),
        ({"output": "{folder}/scene.npz/x"}, "is a file, not a folder"),
    ],
)
def test_a_wrong_command_is_refused_in_one_line(folder, run, values, words):
    before = names(folder)
    values = {name: str(value).format(folder=folder) for name, value in values.items()}
    code, _, err = run(**({"scene": folder} | values))
    assert code == 1 and words in err and err.count("\n") == 1
    assert names(folder) == before


@pytest.mark.parametrize("name", ["metrics.json", "timings.json", "config.json"])
def test_a_damaged_record_is_refused_and_nothing_is_left(folder, run, name):
    (folder / name).write_text("[1")
    before = names(folder)
    code, _, err = run(scene=folder)
    assert code == 1 and name in err and err.count("\n") == 1
    assert names(folder) == before


@pytest.fixture
def no_work(monkeypatch):
    """That the output cannot be written is reported before anything is drawn."""
    monkeypatch.setattr(reporting, "Gallery", lambda *arguments, **options: pytest.fail("it has begun"))


def test_a_missing_encoder_is_reported_before_the_work(folder, run, no_work, monkeypatch):
    monkeypatch.setattr(video, "_ENCODER", "none_such")
    before = names(folder)
    code, _, err = run(scene=folder)
    assert code == 1 and "Cannot write videos" in err and err.count("\n") == 1
    assert names(folder) == before


def test_another_page_is_not_replaced(made, run, no_work, tmp_path):
    (tmp_path / "page").mkdir()
    (tmp_path / "page" / "report.html").write_text("mine")
    code, _, err = run(scene=made / "result", output=tmp_path / "page")
    assert code == 1 and "in the way" in err
    assert names(tmp_path / "page") == {"report.html"}


def test_interrupted_while_it_writes_leaves_nothing(folder):
    before = names(folder)

    def progress(stage, done, total, note):
        assert (stage, total) == ("pictures", 13)
        if note == "plot_trajectory.png":
            assert any(path.name.startswith(".pictures.json.tmp-") for path in folder.iterdir())
            raise KeyboardInterrupt

    report.FLAGS.execute(lambda: None, ["", "--videos", "--report"])
    with pytest.raises(KeyboardInterrupt):
        report.PICTURES.write(results.load_result(folder), folder, name="x", progress=progress)
    assert names(folder) == before


def test_timings_are_those_of_the_stages():
    stages = Stages(quiet=True)
    for stage, count in (("encode", 3), ("align", 5)):
        stages(stage, 0, count)
        stages(stage, count, count)
    record = reporting.timings(stages, 1.5, Compilations())
    assert {stage: row["items"] for stage, row in record["stages"].items()} == {"encode": 3, "align": 5}
    assert all(row["seconds"] >= 0 for row in record["stages"].values())
    assert record["compiled"] == {"programs": 0, "cached": 0, "seconds": 0.0}
    assert record["seconds"] == 1.5 and record["peak_memory_bytes"]["host"] > 1e6
