"""The estimated cost of an evaluation."""

import pathlib
import re

import pytest

from easi3r_jax.apps import cost

SCALING = pathlib.Path(__file__).parents[2] / "docs" / "scaling.md"


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
        if match := re.fullmatch(r"  (\S.*?)((?:\s+[\d.]+){4})", line):
            found[match[1].strip()] = [float(x) for x in match[2].split()]
    return found


def test_sequences_divide_over_devices(run):
    hours = []
    for arguments in (("--sequences=1000",), ("--sequences=2000",), ("--sequences=2000", "--devices=4")):
        code, out, errors = run(*arguments)
        assert code == 0 and not errors
        hours.append(float(re.search(r"own: ([\d.]+) h", out)[1]))
    assert hours[1] == pytest.approx(2 * hours[0], abs=0.02) and hours[2] == pytest.approx(hours[1] / 4, abs=0.01)


def test_the_slower_of_compute_and_memory_decides(run):
    """Half the copy rate doubles the alignment's time, half the product rate that of the networks."""
    usual = rows(run("--flow")[1])
    slow_memory, slow_products = (
        rows(run("--flow", "--copy_gbs=1000")[1]),
        rows(run("--flow", "--matmul_tflops=200")[1]),
    )
    assert slow_memory["alignment"][3] == pytest.approx(2 * usual["alignment"][3], rel=1e-3)
    assert slow_memory["first pass"][3] == usual["first pass"][3]
    assert slow_products["first pass"][3] == pytest.approx(2 * usual["first pass"][3], rel=2e-3)
    assert slow_products["alignment"][3] == usual["alignment"][3]
    parts = [values for name, values in usual.items() if name != "total"]
    assert usual["total"] == pytest.approx([sum(column) for column in zip(*parts, strict=True)], rel=1e-2)


def test_the_documented_table_is_what_the_command_prints(run):
    printed = rows(run("--flow")[1])
    table = {}
    for line in SCALING.read_text(encoding="utf-8").splitlines():
        if match := re.fullmatch(r"\| ([^|]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|", line):
            table[match[1].split(",")[0]] = [float(match[n]) for n in (2, 3, 4)]
    assert len(table) == len(printed) == 7
    for name, (gflop, gigabytes, _, seconds) in printed.items():
        assert table[name.split(",")[0]] == pytest.approx([gflop, gigabytes, seconds], rel=0.02, abs=0.05), name


@pytest.mark.parametrize(
    ("arguments", "says"),
    [(("--height=290",), "512x290 does not divide into patches of 16"), (("--graph=star",), "star")],
)
def test_bad_input_is_one_line(run, arguments, says):
    code, _, errors = run(*arguments)
    assert code == 1 and len(errors.splitlines()) == 1 and says in errors
