"""`python -m experiments.view`, except the browser (tests/viewer/test_browser.py)."""

import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import urllib.request

import pytest
import viser.infra

from easi3r_jax.apps import clips, reconstruct, view
from tests.viewer.conftest import make_scene, write_scene

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def run(capsys):
    """`run("--scene=…")`: exit code, stdout, stderr."""

    def run(*flags: str) -> tuple[int, str, str]:
        code = view.FLAGS.execute(view.main, ["", *flags])
        return code, *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def result(tmp_path_factory) -> pathlib.Path:
    return write_scene(tmp_path_factory.mktemp("results") / "clip", make_scene()).folder


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_it_says_where_to_look_and_how_from_elsewhere_and_ends_at_a_signal(result, end):
    command = [sys.executable, "-m", "experiments.view", f"--scene={result}", "--port=0"]
    program = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        url = re.search(r"http://127\.0\.0\.1:(\d+)", program.stdout.readline())
        assert f"ssh -L {url[1]}:127.0.0.1:{url[1]} " in program.stdout.readline()
        with urllib.request.urlopen(url[0]) as page:
            assert page.status == 200
    finally:
        program.send_signal(end)
        _, complaint = program.communicate(timeout=60)
    assert (program.returncode, complaint) == (0, "")


def test_a_folder_may_have_a_comma_in_its_name(run, tmp_path):
    folder = write_scene(tmp_path / "a, b", make_scene(2)).folder
    code, _, _ = run(f"--scene={folder}", f"--export-html={tmp_path / 'page.html'}")
    assert code == 0 and (tmp_path / "page.html").is_file()
    pair = f"--scene={tmp_path / 'c'},{folder}"  # not that one
    assert run(pair, "--port=0")[0] == 1


def test_a_port_in_use_does_not_stop_a_program_that_has_no_flag_for_it(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        monkeypatch.setattr(view, "_PORT", taken.getsockname()[1])
        assert view.usual_port() == 0
    assert view.usual_port() == view._PORT


@pytest.mark.parametrize("target", [".", os.devnull])
def test_no_file_takes_the_place_of_a_folder_or_a_device(run, result, tmp_path, monkeypatch, target):
    monkeypatch.chdir(tmp_path)
    code, _, complaint = run(f"--scene={result}", f"--export-html={target}")
    assert code == 1 and "Name a file" in complaint
    assert pathlib.Path(os.devnull).is_char_device() and not any(tmp_path.iterdir())


def test_what_cannot_be_shown_is_refused_in_one_line(run, result, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = f"--port={taken.getsockname()[1]}"
        for flags, expected in [
            ((), "--scene is required: the result"),
            (("--scene=a,b,c",), "3 were given"),
            ((f"--scene={tmp_path / 'none'}", "--port=0"), "there is no such folder"),
            ((f"--scene={tmp_path}", "--port=0"), "expected a result folder"),
            ((f"--scene={result}", port), "is in use"),
            ((f"--scene={result}", "--host=192.0.2.7"), "Check host"),
        ]:
            code, _, complaint = run(*flags)
            assert code == 1 and expected in complaint and len(complaint.splitlines()) == 1


@pytest.mark.parametrize(
    ("flag", "told"),
    [
        ("--port=abc", "it must be a whole number from 0 to 65535 (--help"),
        ("--port=-3", "it must be a whole number from 0 to 65535 (--help"),
        ("--debug=maybe", "it must be true or false (--help"),
        ("--colour=depth", "Unknown command line flag 'colour'"),
    ],
)
def test_a_wrong_flag_is_reported_in_plain_words(run, flag, told):
    code, _, complaint = run(flag)
    assert code == 2 and told in complaint and len(complaint.splitlines()) == 1


@pytest.mark.parametrize("flag", ["--export-html", "--export_html"])
def test_the_exported_file_is_self_contained(run, result, tmp_path, monkeypatch, flag):
    times: list[float] = []
    sleep = viser.infra.StateSerializer.insert_sleep
    monkeypatch.setattr(viser.infra.StateSerializer, "insert_sleep", lambda *a: times.append(a[1]) or sleep(*a))
    page = tmp_path / "new" / "clip.html"
    code, said, _ = run(f"--scene={result}", f"{flag}={page}", "--color=depth")
    assert code == 0 and str(page) in said
    assert times == pytest.approx([1 / 20] * 6)  # the clip's own pace
    text = page.read_text(encoding="utf-8")
    assert "__VISER_EMBED_DATA__" in text
    assert not re.findall(r"""<(?:script|link|img)[^>]+(?:src|href)=["']?(?:https?:)?//""", text)
    assert [path.name for path in page.parent.iterdir()] == ["clip.html"]


def test_reconstruct_refuses_to_view_before_it_works(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "viser", None)
    code = reconstruct.FLAGS.execute(clips.main, ["", "--seq=demo", "--view"])
    assert code == 1 and "pip install -e '.[viewer]'" in capsys.readouterr().err
