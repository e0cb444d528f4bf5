"""The estimated cost of an evaluation."""

import pathlib
import re

import pytest

from easi3r_jax.apps import cost
from easi3r_jax.apps.evaluate.records import Record, append
from tests.timed_clips import timed_records

#: What the operations and bytes depend on.
COUNTED = (cost.PRESET, cost.FRAMES, cost.HEIGHT, cost.WIDTH, cost.GRAPH, cost.ITERATIONS, cost.WITH_FLOW)
SCALING = pathlib.Path(__file__).parents[2] / "docs" / "scaling.md"


@pytest.fixture(scope="module", autouse=True)
def counted_once():
    """The same work is counted once: rates and numbers of sequences and devices do not change it."""
    known, count = {}, cost.counted

    def counted(num_edges):
        key = (num_edges, *(flag.value for flag in COUNTED))
        if key not in known:
            known[key] = count(num_edges)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cost, "counted", counted)
        yield


@pytest.fixture
def run(capsys):
    def run(*arguments):
        code = cost.FLAGS.execute(cost.main, ["", *arguments])
        return code, *capsys.readouterr()

    return run


def rows(text: str) -> dict[str, list[float]]:
    """Stage -> numbers of the printed table."""
    found = {}
    for line in text.splitlines():
        if match := re.fullmatch(r"  (\S.*?)((?:\s+[\d.]+){6})", line):
            found[match[1].strip()] = [float(x) for x in match[2].split()]
    return found


def test_sequences_divide_over_devices(run):
    hours = []
    for arguments in (("--sequences=1000",), ("--sequences=2000",), ("--sequences=2000", "--devices=4")):
        code, out, errors = run(*arguments)
        assert code == 0 and not errors
        hours.append(float(re.search(r"own: ([\d.]+) h", out)[1]))
    assert hours[1] == pytest.approx(2 * hours[0], abs=0.02) and hours[2] == pytest.approx(hours[1] / 4, abs=0.01)


def test_workers_are_simulated_from_what_an_evaluation_took(run, tmp_path):
    code, _, errors = run(f"--records={tmp_path}")
    assert code == 1 and "no sequence was evaluated" in errors
    timed = [
        Record("synthetic", str(n), 0, "0", frames, {}, None, seconds, {}, "cpu", "0", n)
        for n, (frames, seconds) in enumerate([(8, 10.0), (30, 60.0), (8, 14.0)])
    ]
    failed = Record("synthetic", "bad", 0, "0", 8, {}, "why", 1e6, {}, "cpu", "0", 9)
    append(tmp_path / "results.jsonl", *timed, failed)
    code, out, errors = run(f"--records={tmp_path}", "--sequences=3000", "--compile_seconds=30")
    assert code == 0 and not errors and "3000 sequences of 2 shapes" in out
    found = simulated(out)
    assert found[1][0] == pytest.approx(3000 * 28 / 3600, rel=0.05)  # the mean of the three
    assert all(share > 0.95 for workers, (_, share) in found.items() if workers <= 16)
    assert found[64][0] < found[32][0]


def simulated(text):
    """Workers -> hours and efficiency of the printed table."""
    found = re.findall(r"^  (\d+) +([\d.]+) +([\d.]+) +\d+$", text, re.MULTILINE)
    return {int(workers): (float(hours), float(share)) for workers, hours, share in found}


def test_ten_thousand_clips_keep_64_workers_busy(run, tmp_path):
    """Times as of real videos: most are short, a few very long. The documented curve is this one."""
    append(tmp_path / "results.jsonl", *timed_records())
    code, out, errors = run(f"--records={tmp_path}", "--sequences=10000")
    assert code == 0 and not errors
    curve = simulated(out)
    assert list(curve) == [1, 2, 4, 8, 16, 32, 64]
    assert all(share >= 0.95 for _, share in curve.values())
    documented = {
        int(workers): (float(hours), float(share))
        for workers, hours, share in re.findall(
            r"^\| (\d+) \| ([\d.]+) \| ([\d.]+) \| \d+ \|$", SCALING.read_text(encoding="utf-8"), re.MULTILINE
        )
    }
    assert documented == curve


def test_the_time_that_was_spent_compiling_is_not_counted_twice(run, tmp_path):
    """Sequences of 100 s: half of them compiled for 60 s, which are added once for each worker."""
    timed = [
        Record("synthetic", str(n), 0, "0", 8, {}, None, 100.0 + c, {}, "cpu", "0", n, compile_seconds=c)
        for n, c in enumerate([60.0, 0.0] * 5)
    ]
    append(tmp_path / "results.jsonl", *timed)
    _, out, _ = run(f"--records={tmp_path}", "--sequences=3600", "--start_seconds=0", "--compile_seconds=60")
    assert "100.00 h of work" in out and "that is counted as work" not in out
    assert simulated(out)[1][0] == pytest.approx(100 + 60 / 3600, abs=0.01)
    older = Record("synthetic", "old", 0, "0", 8, {}, None, 100.0, {}, "cpu", "0", 99)
    append(tmp_path / "results.jsonl", older)
    assert "1 of 11 timed sequences do not say how long they compiled" in run(f"--records={tmp_path}")[1]


def test_more_sequences_than_can_be_simulated_are_refused(run, tmp_path):
    append(tmp_path / "results.jsonl", *timed_records(3))
    code, _, errors = run(f"--records={tmp_path}", "--sequences=1000000000")
    assert code == 1 and "--sequences=1000000000: with --records at most 1000000" in errors


def test_every_kind_of_work_has_its_rate(run):
    """A lower copy rate raises the alignment's time; half the rate of products doubles that of whoever computes them.

    In the second pass, the decoder's products are in half precision and those of the heads in TF32: both count.
    """
    usual = rows(run("--flow")[1])
    flags = ("--copy_gbs=1600", "--half_tflops=200", "--tf32_tflops=100", "--exact_tflops=22.5")
    slow_memory, slow_half, slow_tf32, slow_exact = (rows(run("--flow", flag)[1]) for flag in flags)
    seconds = {name: values[5] for name, values in usual.items()}
    assert slow_memory["alignment"][5] == pytest.approx(1.25 * seconds["alignment"], rel=5e-3)  # three digits
    assert slow_memory["first pass"][5] == seconds["first pass"]
    assert slow_half["first pass"][5] == pytest.approx(2 * seconds["first pass"], rel=2e-3)
    assert slow_half["alignment"][5] == slow_exact["alignment"][5] == seconds["alignment"]
    assert slow_half["optical flow"][5] == slow_exact["optical flow"][5] == seconds["optical flow"]
    assert slow_tf32["optical flow"][5] == pytest.approx(2 * seconds["optical flow"], rel=1e-2)
    slower = [x["second pass, heads"][5] - seconds["second pass, heads"] for x in (slow_half, slow_tf32)]
    assert min(slower) > 0 and sum(slower) == pytest.approx(seconds["second pass, heads"], rel=1e-2)
    parts = [values for name, values in usual.items() if name != "total"]
    assert usual["total"] == pytest.approx([sum(column) for column in zip(*parts, strict=True)], rel=1e-2)


def test_encoding_is_by_frames_and_decoding_by_pairs(run):
    """All pairs of 5 and of 9 frames: 4 and 8 a frame. A figure is printed with two decimals at least."""
    few, many = (rows(run(f"--frames={count}", "--graph=complete")[1]) for count in (5, 9))
    for name, values in few.items():
        ratio = sum(many[name][:3]) / sum(values[:3])
        if name == "encoder" or name.startswith("k-means"):
            assert ratio == pytest.approx(1, rel=1e-3), name
        elif name != "total":
            assert ratio == pytest.approx(2, rel=5e-3), name


def test_the_networks_are_as_large_as_published(run):
    """ViT-L/16 has 303 million parameters, of four bytes each, and does 12 C^2 multiply-adds a token and block."""
    tokens, width, blocks = 32 * 18, 1024, 24
    table = rows(run("--frames=5", "--graph=complete")[1])
    operations, _, _, gigabytes, *_ = table["encoder"]
    assert gigabytes == pytest.approx(4 * 0.303, abs=0.01)
    attention = 2 * 2 * tokens**2 * width * blocks
    assert operations == pytest.approx((2 * 12 * width**2 * tokens * blocks + attention) / 1e9, rel=5e-3)
    # 300 steps, of which each reads or writes 52 bytes for every pixel of either side of a pair.
    assert table["alignment"][3] == pytest.approx(300 * 288 * 512 * (4 * 2 * 52 + 52) / 1e9, rel=5e-3)


def test_memory_is_that_of_the_point_maps(run):
    """Two sides of a pair, of three coordinates and a confidence each."""
    out = run("--frames=6", "--graph=complete", "--height=160", "--width=320", "--devices=2")[1]
    whole, share = (float(x) for x in re.search(r"all pairs: ([\d.]+) GB \(([\d.]+) GB per device", out).groups())
    assert whole == pytest.approx(30 * 160 * 320 * 2 * 4 * 4 / 1e9, abs=0.05)
    assert share == pytest.approx(whole / 2, abs=0.1)


def test_the_documented_table_is_what_the_command_prints(run):
    printed = rows(run("--flow")[1])
    table = {}
    for line in SCALING.read_text(encoding="utf-8").splitlines():
        if match := re.fullmatch(r"\| ([^|]+)" + 5 * r" \| ([\d.]+)" + r" \|", line):
            table[match[1].split(",")[0]] = [float(match[n]) for n in range(2, 7)]
    assert len(table) == len(printed) == 7
    for name, (*amounts, _, seconds) in printed.items():
        documented = pytest.approx([*amounts, seconds], rel=0.02, abs=0.05)
        assert table[name.split(",")[0]] == documented, name


@pytest.mark.parametrize(
    ("arguments", "says"),
    [(("--height=290",), "512x290 does not divide into patches of 16"), (("--graph=star",), "star")],
)
def test_bad_input_is_one_line(run, arguments, says):
    code, _, errors = run(*arguments)
    assert code == 1 and len(errors.splitlines()) == 1 and says in errors
