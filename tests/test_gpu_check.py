"""The script of `make gpu-check`: its steps are commands that exist, it keeps to its time, and says where it ran."""

import json

import pytest

from easi3r_jax.apps.benchmark import main as benchmark_main
from easi3r_jax.apps.parity import main as parity_main
from tests import gpu_check

PROGRAMS = {"experiments.benchmark": benchmark_main, "experiments.parity": parity_main}


@pytest.mark.parametrize("small", [False, True])
def test_the_steps_are_commands_with_flags_that_exist(small):
    for step in gpu_check.steps(small=small):
        flag, module, *arguments = step.command
        assert flag == "-m"
        if module in PROGRAMS:
            flags = PROGRAMS[module].FLAGS
            flags.assign(dict(a.removeprefix("--").split("=") for a in arguments))
            flags.assign({})
    assert sum(step.limit for step in gpu_check.steps(small=False)) < 1.5 * gpu_check.BUDGET


def test_failures_and_the_lack_of_time_are_told(tmp_path):
    """A fifth of the time goes by at each look at the clock: the last step gets none."""
    writes = "import pathlib, sys; pathlib.Path(sys.argv[1]).write_text('{\"rate\": 3}')"
    steps = [
        gpu_check.Step("good", 60, ("-c", writes, "{json}")),
        gpu_check.Step("bad", 60, ("-c", "raise SystemExit(3)")),
        gpu_check.Step("late", 60, ("-c", "")),
    ]
    now = iter(range(0, 1000, 20))
    results = gpu_check.run_steps(steps, tmp_path, 115, clock=lambda: next(now))
    assert results["good"] == {"outcome": "ok", "seconds": 20, "numbers": {"rate": 3}}
    assert results["bad"]["outcome"] == "FAILED: exit status 3"
    assert results["late"]["outcome"] == "left out: no time"
    found = {"device": "1 x cpu", "platform": "cpu", "jax": "0"}
    text = gpu_check.summary(found, results, small=True)
    assert text.startswith("# 1 x cpu, platform cpu") and "**No measurement of a GPU" in text and '"rate": 3' in text
    assert "**No measurement" not in gpu_check.summary(found | {"platform": "gpu"}, results, small=False)


def test_without_a_gpu_it_says_so(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(gpu_check, "device", lambda: {"device": "1 x cpu", "platform": "cpu"})
    assert gpu_check.main([f"--output={tmp_path / 'out'}"]) == 1
    assert capsys.readouterr().err.startswith("error: JAX finds no GPU (1 x cpu).")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_script_runs(tmp_path):
    """On whatever there is, with a small network."""
    assert gpu_check.main(["--small", f"--output={tmp_path}", "--only=fused,training", "--budget=900"]) == 0
    fused, training = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("fused", "training"))
    assert fused["plain, 575 tokens, head width 64"]["output"] < 0.02 and training["pairs_per_second"] > 0
