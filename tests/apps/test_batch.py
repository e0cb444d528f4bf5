"""Many clips with one command: which clips, their table, what fails, what is not repeated."""

import csv
import types

import pytest

from easi3r_jax.apps import batch, clips, reconstruct
from easi3r_jax.apps.cluster.tasks import Ended, Task
from easi3r_jax.core.errors import InputError, OutputError


@pytest.fixture
def videos(tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    for name in ("b.mp4", "a.mp4", "c.mov"):
        (folder / name).write_bytes(b"x" * (10 if name == "a.mp4" else 20))
    (folder / ".hidden").touch()
    return folder


def names(seq, *, each=False):
    return [clip.name for clip in batch.clips_of(str(seq), each=each)]


def test_a_pattern_a_list_and_a_folder_name_clips(videos, tmp_path):
    assert names(videos / "*.mp4") == ["a", "b"]
    assert names(videos, each=True) == ["a", "b", "c"]
    listed = tmp_path / "list.txt"
    listed.write_text(f"# mine\n{videos / 'c.mov'}\n\n  {videos / 'a.mp4'}  \ndemo\n")
    assert names(f"@{listed}") == ["c", "a", "demo"]
    assert batch.clips_of(str(videos / "a.mp4"), each=False) is None
    (videos / "odd[1].mp4").touch()
    assert batch.clips_of(str(videos / "odd[1].mp4"), each=False) is None  # a file of that name, not a pattern


def test_what_names_no_clips_is_one_line(videos, tmp_path):
    for seq, each, says in (
        (videos / "*.avi", False, "there are no clips"),
        (tmp_path / "nothing", True, "--each needs a folder"),
        (f"@{tmp_path / 'no.txt'}", False, "Cannot read the list"),
    ):
        with pytest.raises(InputError, match=says):
            names(seq, each=each)
    (videos / "a.mov").touch()
    with pytest.raises(InputError, match=r"a\.mov and .*a\.mp4 would both be written to a"):
        names(videos / "a.*")


@pytest.fixture
def run(tmp_path, monkeypatch, capsys, cache):
    """`run("--seq=…")` runs the program with a reconstruction that only writes what the batch looks for."""
    monkeypatch.setenv("EASI3R_JAX_CACHE", str(cache))
    state = types.SimpleNamespace(seen=[], fails={})

    def stand_in(stages, load):
        seq, output = reconstruct.SEQ.value, reconstruct.OUTPUT.value
        state.seen.append((reconstruct.find_sequence(seq).name, reconstruct.METHOD.known.flow.value))
        print("a line of the clip's own")
        if (error := state.fails.get(state.seen[-1][0])) is not None:
            raise error
        folder = tmp_path / "out" / reconstruct.find_sequence(seq).name
        assert output == str(folder)
        (folder / "depth").mkdir(parents=True, exist_ok=True)
        (folder / "depth" / "00000.png").touch()
        (folder / "scene.npz").touch()
        (folder / "metrics.json").write_text('{"full method": {"ate": 0.25, "mask_iou": null}}')

    monkeypatch.setattr(reconstruct, "run", stand_in)

    def run(*arguments):
        code = reconstruct.FLAGS.execute(clips.main, ["", f"--output={tmp_path / 'out'}", *map(str, arguments)])
        return code, *capsys.readouterr()

    run.state = state
    return run


def rows(tmp_path):
    with (tmp_path / "out" / "batch.csv").open(newline="") as file:
        return {row["name"]: row for row in csv.DictReader(file)}


def test_every_clip_has_a_row_and_failures_do_not_stop_the_others(run, videos, tmp_path):
    run.state.fails = {"b": InputError("It is broken:\nmend it."), "c": ZeroDivisionError("0")}
    code, printed, errors = run(f"--seq={videos}", "--each", "--flow=none")
    assert code == 1 and errors.startswith("error: Failed: 2 of 3 clips") and len(errors.splitlines()) == 1
    assert "own" not in printed and "1/3" in printed and "3/3 a: 1 frames" in printed  # the smallest file is last
    found = rows(tmp_path)
    assert {name: row["state"] for name, row in found.items()} == {"a": "done", "b": "failed", "c": "failed"}
    assert (found["a"]["ate"], found["a"]["mask_iou"], found["a"]["frames"]) == ("0.25", "", "1")
    assert found["b"]["reason"] == "It is broken: mend it." and found["c"]["reason"] == "ZeroDivisionError: 0"
    assert (tmp_path / "out" / "a.log").read_text() == "a line of the clip's own\n"
    assert "ZeroDivisionError: 0" in (tmp_path / "out" / "c.log").read_text().splitlines()[-1]
    assert {flow for _, flow in run.state.seen} == {"none"}


def test_only_what_is_missing_is_repeated(run, videos, tmp_path):
    run.state.fails = {"b": InputError("broken")}
    run(f"--seq={videos / '*.mp4'}")
    run.state.fails, run.state.seen = {}, []
    code, printed, _ = run(f"--seq={videos / '*.mp4'}")
    assert code == 0 and "2 clips, 1 to do" in printed and [name for name, _ in run.state.seen] == ["b"]
    run.state.seen = []
    run(f"--seq={videos / '*.mp4'}", "--seed=3")  # other options
    assert sorted(name for name, _ in run.state.seen) == ["a", "b"]
    run.state.seen = []
    (tmp_path / "out" / "a" / "scene.npz").unlink()
    run(f"--seq={videos / '*.mp4'}", "--seed=3", "--nocompilation_cache")
    assert [name for name, _ in run.state.seen] == ["a"]
    assert len((tmp_path / "out" / "batch.csv").read_text().splitlines()) == 3


def test_a_result_of_another_command_is_not_replaced(run, videos, tmp_path):
    (tmp_path / "out" / "a").mkdir(parents=True)
    code, _, errors = run(f"--seq={videos / '*.mp4'}")
    assert code == 1 and "is not a result of a batch, not of" in errors and "choose another --output" in errors
    assert not run.state.seen


def test_only_leftovers_of_its_own_clips_are_removed(run, videos, tmp_path):
    """Another program may be writing its result into the same folder."""
    (own := tmp_path / "out" / ".a.tmp-123").mkdir(parents=True)
    (others := tmp_path / "out" / ".demo.tmp-123").mkdir()
    run(f"--seq={videos / '*.mp4'}")
    assert not own.exists() and others.exists()


def test_flags_of_one_clip_do_not_apply_to_many(run, videos, tmp_path):
    for flag in ("--ground_truth=x.npz", "--poses=x.txt", "--view"):
        code, _, errors = run(f"--seq={videos / '*.mp4'}", flag)
        assert code == 1 and f"{flag.split('=')[0]} belongs to one clip, and --seq names 2" in errors
    code, _, errors = run(f"--seq={videos / 'a.mp4'}", "--cluster=local")
    assert code == 1 and "--cluster distributes several clips" in errors


def test_a_truncated_table_is_read_as_far_as_it_goes(tmp_path, videos):
    clip = batch.Clip(str(videos / "a.mp4"), "a")
    state = batch.Batch(tmp_path, [clip], "0")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "scene.npz").touch()
    state.add(state.row(clip, Ended(Task("a", clip), "", seconds=1.0)))
    path = tmp_path / batch.TABLE
    path.write_text(path.read_text() + "videos/b.mp4,b,do")
    other = batch.Clip(str(videos / "b.mp4"), "b")
    again = batch.Batch(tmp_path, [clip, other], "0")  # the cut line is gone before another one is appended
    assert again.remaining() == [other]
    again.add(again.row(other, Ended(Task("b", other), "broken", seconds=1.0)))
    assert batch.Batch(tmp_path, [clip, other], "0").remaining() == [other]
    assert [row.split(",")[1:3] for row in path.read_text().splitlines()[1:]] == [["a", "done"], ["b", "begun"]]
    assert batch.Batch(tmp_path, [clip], "0").remaining() == []
    assert batch.Batch(tmp_path, [clip], "1").remaining() == [clip]
    path.write_text("something,else\n1,2\n")
    with pytest.raises(InputError, match="is not the table of a batch"):
        batch.Batch(tmp_path, [clip], "0")
    path.unlink()
    with pytest.raises(OutputError, match="is not a result of a batch"):
        batch.Batch(tmp_path, [clip], "0")


def test_a_batch_that_is_killed_knows_its_folders(tmp_path, videos):
    """Killed after a result was written and before its row: the folder is the batch's own."""
    clip = batch.Clip(str(videos / "a.mp4"), "a")
    batch.Batch(tmp_path, [clip], "0")
    (tmp_path / "a").mkdir()
    assert batch.Batch(tmp_path, [clip], "0").remaining() == [clip]
    other = videos.parent / "others"
    other.mkdir()
    (other / "a.mp4").touch()
    with pytest.raises(OutputError, match=r"is the result of .*videos/a\.mp4, not of .*others/a\.mp4"):
        batch.Batch(tmp_path, [batch.Clip(str(other / "a.mp4"), "a")], "0")


def test_a_result_that_is_not_there_is_a_failure(tmp_path, videos):
    clip = batch.Clip(str(videos / "a.mp4"), "a")
    row = batch.Batch(tmp_path, [clip], "0").row(clip, Ended(Task("a", clip), ""))
    assert row["state"] == "failed" and "all machines need the same folder" in row["reason"]


def test_a_worker_that_died_is_the_reason(tmp_path, videos):
    clip = batch.Clip(str(videos / "a.mp4"), "a")
    state = batch.Batch(tmp_path, [clip], "0")
    row = state.row(clip, Ended(Task("a", clip), None, "Begun 3 times; its worker died", 3, 2.0, "worker 4"))
    assert (row["state"], row["attempts"], row["worker"]) == ("failed", "3", "worker 4") and "died" in row["reason"]
