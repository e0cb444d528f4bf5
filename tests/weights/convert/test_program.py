"""`python -m convert`: exit codes, errors in one line, no partial output."""

import os
import subprocess
import sys

import numpy as np
import pytest

from easi3r_jax.apps import convert as program
from easi3r_jax.core.errors import CheckpointError
from easi3r_jax.weights.checkpoint import load_metadata


def run(*arguments, folder):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.getcwd(), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "convert", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


def one_line(text):
    assert "Traceback" not in text
    lines = text.strip().splitlines()
    assert len(lines) == 1, text
    return lines[0]


@pytest.fixture
def call(tmp_path, monkeypatch, capfd):
    """Runs the program in this process: exit code, standard output, standard error."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        program.FLAGS.assign({})
        code = program.FLAGS.execute(program.main, ["convert", *arguments])
        return (code, *capfd.readouterr())

    return call


def test_help_names_the_options_and_the_licence(call):
    code, out, err = call("--help")
    assert (code, err) == (0, "")
    for words in (
        "--source=",
        "--output=",
        "CC BY-NC-SA 4.0",
        "python -m convert --source=",
        "nothing in a checkpoint is ever executed",
    ):
        assert words in out


def test_success_prints_a_summary_and_the_next_command(files, tmp_path):
    source = files / "tiny_no_dec_blocks2.pth"
    result = run(f"--source={source}", "--output=output", folder=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    config, metadata = load_metadata(tmp_path / "output")
    for words in (
        "note: There is no second decoder",
        metadata["source_sha256"],
        "CC BY-NC-SA",
        "linear head, trained at 64x64",
    ):
        assert words in result.stdout
    assert "--checkpoint=output" in result.stdout
    assert config.enc_depth == 2


def test_a_wrong_path_is_one_line_and_exit_1(call, tmp_path):
    code, _, err = call("--source=absent.pth", "--output=output")
    assert code == 1
    assert one_line(err).startswith("error: There is no checkpoint at absent.pth")
    assert not list(tmp_path.iterdir())


def test_a_malicious_file_is_one_line_and_exit_1(files, tmp_path):
    result = run(f"--source={files / 'evil_os_system.pth'}", "--output=output", folder=tmp_path)
    assert result.returncode == 1
    assert "UNSAFE" in one_line(result.stderr)
    assert "golden-harmless" not in result.stdout + result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--source=x", "--output=y", "--sauce=z"), "Unknown command line flag 'sauce'"),
        (("--source=x", "--output=y", "z"), "Unexpected argument 'z'"),
        (("--source",), "Missing value"),
    ],
)
def test_wrong_flags_are_one_line_and_exit_2(call, tmp_path, arguments, words):
    code, out, err = call(*arguments)
    assert (code, out) == (2, "")
    assert words in one_line(err)
    assert "--help" in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments", [(), ("--source=x.pth",), ("--output=x",), ("--source=", "--output=x")], ids=" ".join
)
def test_a_missing_flag_is_one_line_and_exit_1(call, tmp_path, arguments):
    code, out, err = call(*arguments)
    assert (code, out) == (1, "")
    assert "--source and --output are both needed" in one_line(err)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "source", ["~nosuchuser/x.pth", "x" * 5000, "a\0b", ".", "no/such/folder/x.pth", "model.safetensors"]
)
def test_invalid_sources_are_one_line_and_exit_1(call, tmp_path, source):
    code, out, err = call(f"--source={source}", "--output=output")
    assert (code, out) == (1, "")
    assert one_line(err).startswith("error: ")
    assert not list(tmp_path.iterdir())


def test_the_folder_of_a_pth_file_gives_a_hint(call, tmp_path):
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "dust3r.pth").touch()
    assert "Did you mean weights/dust3r.pth?" in call("--source=weights", "--output=output")[2]


@pytest.mark.parametrize(
    ("failure", "code", "words"),
    [
        (KeyboardInterrupt(), 130, "Interrupted"),
        (MemoryError(), 1, "Out of memory"),
        (CheckpointError("first\nsecond"), 1, "first second"),
    ],
)
def test_interrupts_and_errors_have_their_exit_codes(call, monkeypatch, failure, code, words):
    def fail(*_):
        raise failure

    monkeypatch.setattr(program, "convert", fail)
    found, out, err = call("--source=x", "--output=y")
    assert (found, out) == (code, "")
    assert words in one_line(err)
    assert "Traceback" in call("--source=x", "--output=y", "--debug")[2]


def test_a_bug_keeps_its_traceback(call, monkeypatch):
    def fail(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(program, "convert", fail)
    with pytest.raises(ZeroDivisionError):
        call("--source=x", "--output=y")


def test_one_line_lists_all_problems(call, make_pth, weights, tmp_path):
    """A missing key and two unknown ones, as in two golden files."""
    extra = {"prediction_head.weight": np.ones((2, 2), np.float32), "golden.extra": np.ones(3, np.float32)}
    missing = {name: array for name, array in weights.items() if name != "dec_norm.weight"}
    for tensors, words in (
        (missing, "1 tensor missing: dec_norm.weight."),
        ({**weights, **extra}, "2 tensors unknown: golden.extra, prediction_head.weight."),
        ({**missing, **extra}, "1 tensor missing: dec_norm.weight; 2 tensors unknown: golden.extra, pred"),
    ):
        code, _, err = call(f"--source={make_pth(tensors)}", "--output=output")
        assert code == 1
        assert words in one_line(err)
        assert os.listdir(tmp_path) == ["made.pth"]
    assert call(f"--source={make_pth(weights)}", "--output=output")[0] == 0
