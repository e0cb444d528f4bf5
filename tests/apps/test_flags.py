"""All flags of all programs: what no one means is refused in one wording, outputs are tried before the work.

Programs run in this process, up to where their work begins: there, `BeganError` is raised instead.
"""

import importlib
import pathlib

import pytest

from easi3r_jax.apps import cli, flag_values
from easi3r_jax.apps.command import PROGRAMS
from easi3r_jax.core.errors import ConfigError

MODULES = {name: importlib.import_module(f"easi3r_jax.apps.{module}") for name, (module, _) in PROGRAMS.items()}
#: What no one means for most flags, and everything that is not of their type.
VALUES = ("0", "-1", "1000000000000", "1e300", "1e-320", "nan", "inf", "", " ", "x", "2.5", "0x10", "1_0", "true")

#: Where each program's work begins: the functions that are replaced, in its module or in the one named.
WORK = {
    "reconstruct": ("easi3r_jax.apps.reconstruct.find_sequence",),
    "view": ("easi3r_jax.viewer.import_viser", "easi3r_jax.io.results.load_result"),
    "report": ("easi3r_jax.io.results.load_result",),
    "export": ("easi3r_jax.io.results.load_result",),
    "app": ("easi3r_jax.apps.app.main.Store",),
    "convert": ("easi3r_jax.apps.convert.write",),
    "evaluate": ("easi3r_jax.apps.evaluate.inputs.open_data_sets",),
    "train": ("easi3r_jax.apps.train.train_in",),
    "validate": ("easi3r_jax.apps.validate.load_model_and_metadata",),
    "synthesize": ("easi3r_jax.apps.synthesize.write_clips",),
    "study": ("easi3r_jax.apps.study.main.load_model_and_metadata",),
    "alignment_study": ("easi3r_jax.apps.alignment_study.load_model",),
    "calibrate": ("easi3r_jax.apps.calibrate.load_model_and_metadata",),
    "ablate_cue": ("easi3r_jax.apps.ablate_cue.load_model",),
    "benchmark": ("easi3r_jax.apps.benchmark.main.noise_frames", "easi3r_jax.apps.benchmark.main.run_suite"),
    "cost": ("easi3r_jax.apps.cost.counted",),
    "long_clips": ("easi3r_jax.apps.long_clips.main.MemoryCounter",),
    "compile_check": ("easi3r_jax.apps.compile_check.main._lowered", "easi3r_jax.apps.compile_check.main._compiled"),
    "precision": ("easi3r_jax.apps.precision.main.load_model",),
    "parity": ("easi3r_jax.apps.parity.main.check_test_vectors",),
}
#: Flags without which a program has nothing to do.
NEEDED = {
    "view": ("--scene=demo",),
    "report": ("--scene=demo",),
    "export": ("--scene=demo", "--format=ply"),
    "convert": ("--source=x.pth", "--output=converted"),
    "evaluate": ("--dataset=custom", "--data_root=data"),
    "parity": (f"--golden={pathlib.Path(__file__).parents[1] / 'golden'}",),
}


class BeganError(Exception):
    """The program has accepted its flags."""


@pytest.fixture
def begin(monkeypatch, tmp_path, capsys):
    """Runs a program with flags up to its work: (whether it began, exit code, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EASI3R_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cli.Flags, "keeps_compiled", False)

    def began(*_, **__):
        raise BeganError

    def begin(program, *arguments):
        for place in WORK[program]:
            monkeypatch.setattr(place, began)
        module = MODULES[program]
        try:
            code = module.FLAGS.execute(module.main, [program, *NEEDED.get(program, ()), *arguments])
        except BeganError:
            return True, 0, ""
        return False, code, capsys.readouterr().err

    return begin


def flags_of(program):
    """Every flag with its parser."""
    values = MODULES[program].FLAGS._flag_values
    return {name: values[name].parser for name in values if not values[name].boolean and name != "help"}


def test_every_program_is_listed_and_begins(begin):
    assert set(WORK) == set(PROGRAMS)
    for program in PROGRAMS:
        assert begin(program) == (True, 0, ""), program


@pytest.mark.parametrize("program", PROGRAMS)
def test_numbers_have_two_bounds_and_both_are_said(program, capsys):
    """The values at the bounds are accepted; those beyond are refused, with both bounds in the message."""
    flags = MODULES[program].FLAGS
    for name, parser in flags_of(program).items():
        if not isinstance(parser, flag_values.WholeNumber | flag_values.Number):
            assert isinstance(parser, flag_values.Text | flag_values.Choice), name
            continue
        low, high = parser.at_least, parser.at_most
        assert -1 <= low < high < 1e10, name
        for value in (low, high):
            assert flags.execute(lambda: None, [program, f"--{name}={value!r}"]) == 0, name
        for value in (low - 1, 2 * high + 1, "nan", "inf", "", "x", "1_0"):
            assert flags.execute(lambda: pytest.fail("began"), [program, f"--{name}={value}"]) == 2, name
            message = capsys.readouterr().err
            assert message.startswith(f"error: --{name}={value}: it must be "), message
            said = high if isinstance(high, int) else flag_values._short(high)
            assert f"to {said}" in message and message.count("\n") == 1, message


@pytest.mark.parametrize("program", PROGRAMS)
def test_what_no_one_means_is_refused_in_a_line(program, begin):
    """Every flag with every value: the program begins with a value within bounds, or says in a line what is wrong."""
    for name, parser in flags_of(program).items():
        for value in VALUES:
            has_begun, code, message = begin(program, f"--{name}={value}")
            if has_begun:
                assert value.strip() or getattr(parser, "may_be_empty", False), f"--{name}={value!r} is accepted"
                found = MODULES[program].FLAGS._flag_values[name].value
                if isinstance(parser, flag_values.WholeNumber | flag_values.Number):
                    assert parser.at_least <= found <= parser.at_most and (found == 0 or abs(found) >= 1e-9)
                    assert float(value) == found
            else:
                assert code in (1, 2), f"--{name}={value!r} ends with {code}"
                assert message.startswith("error: ") and message.count("\n") == 1, f"--{name}={value!r}: {message}"


OUTPUTS = [
    (program, name)
    for program in PROGRAMS
    for name in flags_of(program)
    if name in ("output", "json", "page", "export_html")
]


@pytest.mark.parametrize(("program", "name"), OUTPUTS)
def test_outputs_are_tried_before_the_work(program, name, begin, tmp_path):
    """A file in the way, and a place where not even root may write."""
    (tmp_path / "file").write_text("x")
    ending = {"long_clips": ".png"}.get(program, ".json" if name == "json" else "")
    for place in (tmp_path / "file" / f"result{ending}", pathlib.Path(f"/proc/result{ending}")):
        has_begun, code, message = begin(program, f"--{name}={place}")
        assert (has_begun, code) == (False, 1), f"{program} --{name}={place} began"
        assert "Cannot write" in message and "choose another folder" in message and message.count("\n") == 1, message


def test_every_output_is_known():
    """A new program's outputs are tried too."""
    for program in PROGRAMS:
        group_files = {h.name for group in MODULES[program].FLAGS._groups for h in group.output_files}
        assert group_files <= {name for of, name in OUTPUTS if of == program}
        assert {"json", "page", "export_html"} & set(flags_of(program)) <= group_files, program


def test_flags_that_are_assigned_are_checked_alike():
    """As the web page does, and workers of a cluster."""
    flags = MODULES["cost"].FLAGS
    with pytest.raises(ConfigError, match=r"^--network_share=2: it must be a number from 1e-06 to 1$"):
        flags.assign({"network_share": 2})
    with pytest.raises(ConfigError, match=r"^--frames=1e3: it must be a whole number from 3 to 100000$"):
        flags.assign({"frames": "1e3"})
    flags.assign({"network_share": 1, "frames": 3})
    assert (MODULES["cost"].NETWORK_SHARE.value, MODULES["cost"].FRAMES.value) == (1.0, 3)
    flags.assign({})


def test_the_cost_of_the_largest_sequence_is_counted(here):
    """At the bounds of its flags, a program that computes nothing ends."""
    done = here("cost", "--frames=100000", "--height=16384", "--width=16384", "--devices=1000000")
    assert done.returncode == 0, done.stderr
    assert "nan" not in done.stdout and "inf" not in done.stdout
    done = here("cost", "--frames=100000", "--graph=complete")
    assert done.returncode == 1 and "choose a graph of fewer" in done.stderr
