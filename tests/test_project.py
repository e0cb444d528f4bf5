"""Checks of the project itself: version bounds and lock file, content of the wheel, claims in the documentation."""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.machines import MACHINES, NOT_COMPUTING, PROPERTIES, WAITING

ROOT = pathlib.Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")
TORCH, BROWSER, SITE = (
    (ROOT / path).read_text(encoding="utf-8")
    for path in ("tests/requirements-torch.txt", "tests/requirements-browser.txt", "docs/requirements.txt")
)
PYTHONS = ("3.11", "3.12", "3.13")
#: Lines that a module of the package may have.
MODULE_LINES = 350
#: Characters that a row of a table in the documents may have.
TABLE_ROW = 120
#: What git ignores, and git's own.
NOT_OURS = {
    ".git",
    ".venv",
    "__pycache__",
    ".pytest_cache",
    ".ruff_cache",
    "results",
    "checkpoints",
    "runs",
    "build",
    "dist",
    "site",
}


def locked(python: str) -> dict[str, Version]:
    """What the lock file installs on Linux with this Python: version by canonical name."""
    environment = {
        **default_environment(),
        "python_version": python,
        "python_full_version": f"{python}.5",
        "sys_platform": "linux",
        "platform_system": "Linux",
        "platform_machine": "x86_64",
    }
    versions = {}
    for line in re.findall(r"^[A-Za-z].*?(?= \\$)", LOCK, flags=re.MULTILINE):
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate(environment):
            (pin,) = requirement.specifier
            assert pin.operator == "=="
            assert canonicalize_name(requirement.name) not in versions, f"{requirement.name} is locked twice"
            versions[canonicalize_name(requirement.name)] = Version(pin.version)
    return versions


def pinned(text: str) -> dict[str, str]:
    """What a requirements file of some tests pins: specifier by canonical name, none twice."""
    requirements = [Requirement(line) for line in text.splitlines() if line and not line.startswith("#")]
    pins = {canonicalize_name(r.name): str(r.specifier) for r in requirements}
    assert len(pins) == len(requirements)
    return pins


def text_files() -> Iterator[pathlib.Path]:
    """Our text files; binary ones (golden arrays, weights, pictures) do not decode and are left out."""
    for folder, subfolders, names in os.walk(ROOT):
        subfolders[:] = [
            n for n in subfolders if n not in NOT_OURS and not n.endswith(".egg-info") and ".venv-" not in n
        ]
        for name in set(names) - NOT_OURS:  # in a worktree, .git is a file
            path = pathlib.Path(folder, name)
            try:
                path.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                continue
            yield path


def documents() -> list[pathlib.Path]:
    return [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("**/*.md"))]


@pytest.mark.parametrize("requirement", [*PROJECT["dependencies"], *(r for extra in EXTRAS.values() for r in extra)])
def test_every_requirement_has_a_lower_and_an_upper_bound(requirement: str):
    operators = sorted(s.operator for s in Requirement(requirement).specifier)
    assert operators == ["<", ">="]


@pytest.mark.parametrize("python", PYTHONS)
def test_the_lock_file_holds_every_requirement_within_its_bounds(python: str):
    versions = locked(python)
    for line in [*PROJECT["dependencies"], *EXTRAS["dev"]]:
        requirement = Requirement(line)
        assert versions[canonicalize_name(requirement.name)] in requirement.specifier, (python, line)


def test_the_lock_file_covers_both_generations_of_jax():
    assert {str(locked(python)["jax"]).rsplit(".", 1)[0] for python in PYTHONS} == {"0.10", "0.11"}


def test_the_lock_file_is_for_a_cpu():
    assert not [name for name in locked("3.12") if "cuda" in name or name.startswith(("nvidia", "libtpu"))]


@pytest.mark.parametrize(("text", "extra"), [(TORCH, "sam2"), (BROWSER, "app")], ids=["torch", "browser"])
def test_what_some_tests_need_is_pinned_within_the_bounds_of_the_extra(text: str, extra: str):
    pins = pinned(text)
    missing = (r for r in map(Requirement, EXTRAS[extra]) if canonicalize_name(r.name) not in locked("3.12"))
    for requirement in missing:
        assert pins[canonicalize_name(requirement.name)].removeprefix("==") in requirement.specifier


@pytest.mark.parametrize("text", [TORCH, BROWSER, SITE], ids=["torch", "browser", "site"])
def test_what_is_installed_beside_the_lock_file_leaves_it_as_it_is(text: str):
    pins = pinned(text)
    assert all(re.fullmatch(r"==[\d.]+(post\d+)?", pin) for pin in pins.values())
    assert not [name for python in PYTHONS for name in pins if name in locked(python)]


def test_the_site_and_the_browser_share_an_environment():
    browser, site = pinned(BROWSER), pinned(SITE)
    shared = browser.keys() & site.keys()
    assert {name: browser[name] for name in shared} == {name: site[name] for name in shared}


def test_every_locked_file_has_a_hash_and_no_address():
    entries = re.split(r"^(?=[A-Za-z])", LOCK, flags=re.MULTILINE)[1:]
    assert len(entries) > len(PROJECT["dependencies"])
    assert not [entry for entry in entries if "--hash=sha256:" not in entry]
    assert not re.search(r"://|^\s*--?(?!hash)[a-z]", LOCK, flags=re.MULTILINE)  # addresses, options of the index


def test_the_pythons_we_promise_are_those_that_are_tested():
    lowest, highest = re.fullmatch(r">=3\.(\d+),<3\.(\d+)", PROJECT["requires-python"]).groups()
    promised = [f"3.{minor}" for minor in range(int(lowest), int(highest))]
    assert promised == list(PYTHONS)
    assert [c.rsplit(" ", 1)[1] for c in PROJECT["classifiers"] if ":: 3." in c] == promised


def test_every_python_is_tested_with_every_jax_that_it_may_have():
    """From the lowest that pyproject.toml admits to that of the lock file, which is the newest for this Python."""
    (jax,) = (r for r in map(Requirement, PROJECT["dependencies"]) if r.name == "jax")
    bounds = {s.operator: Version(s.version) for s in jax.specifier}
    admitted = [f"0.{minor}" for minor in range(bounds[">="].minor, bounds["<"].minor)]
    pairs = [(python, jax) for python in PYTHONS for jax in admitted if Version(jax) <= locked(python)["jax"]]
    workflow = (ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8")
    assert re.findall(r'python: "([\d.]+)", jax: "([\d.]+)"', workflow) == pairs


def test_the_continuous_integration_lints_and_tests():
    script = ROOT / ".ci/run"
    assert os.access(script, os.X_OK)
    lines = script.read_text(encoding="utf-8").splitlines()
    assert {"make lint", "make test", "make test-torch"} <= set(lines)
    assert f"for version in {' '.join(PYTHONS)}; do" in lines
    workflow = (ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8")
    assert all(f"make {target}" in workflow for target in ("docs", "test-browser", "test-optimised"))


def test_the_quick_part_has_tests_of_every_room():
    listed = (ROOT / "tests/quick.txt").read_text(encoding="utf-8").split()
    for line in listed:
        file, _, name = line.partition("::")
        assert f"def {name}" in (ROOT / file).read_text(encoding="utf-8"), line
    rooms = {path.name for path in (ROOT / "easi3r_jax").iterdir() if (path / "__init__.py").is_file()}
    assert rooms - {"assets"} <= {line.split("/")[1] for line in listed}


def test_every_machine_is_tried_in_the_continuous_integration():
    workflow = (ROOT / ".github/workflows/machines.yml").read_text(encoding="utf-8")
    listed = re.findall(r"^ {10}- (\S+)$", workflow, flags=re.MULTILINE)
    assert listed == list(MACHINES)
    assert {part for name in MACHINES for part in name.split("+")} == set(PROPERTIES)


def test_what_the_machines_try_or_leave_out_exists():
    assert not [path for path in (*NOT_COMPUTING, *WAITING) if not list(ROOT.glob(path))]


def test_no_file_names_a_path_of_the_machine_it_was_written_on():
    # Spelled in two parts, or this file would find itself.
    folders = "|".join(["wo" + "rk", "ro" + "ot", "ho" + "me", "tm" + "p/bash"])
    needle = re.compile(rf"(?<![\w.~/-])/(?:{folders})\b|\.\./sha" + "red")
    assert needle.search("see /ro" + "ot/x")
    found = [str(p.relative_to(ROOT)) for p in text_files() if needle.search(p.read_text(encoding="utf-8"))]
    assert not found


def test_no_module_is_too_long():
    modules = sorted((ROOT / "easi3r_jax").rglob("*.py"))
    assert not [
        str(path.relative_to(ROOT))
        for path in modules
        if len(path.read_text(encoding="utf-8").splitlines()) > MODULE_LINES
    ]


def test_the_golden_arrays_stay_small():
    # 26.6 MB, 2.3 MB for MASt3R and 2.0 MB for VGGT.
    assert sum(p.stat().st_size for p in (ROOT / "tests/golden").rglob("*") if p.is_file()) <= 31.0e6


def test_the_documents_name_commands_that_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    unknown = []
    for path in documents():
        text = path.read_text(encoding="utf-8")
        for target in re.findall(r"(?:^ +|`|\$ )make ([a-z-]+)", text, flags=re.MULTILINE):
            if target not in targets:
                unknown.append(f"{path.name}: make {target}")
        for module in re.findall(r"python -m ((?:experiments|convert)[\w.]*)", text):
            source = ROOT.joinpath(*module.rstrip(".").split("."))
            if not source.with_suffix(".py").exists() and not (source / "__main__.py").exists():
                unknown.append(f"{path.name}: python -m {module}")
    assert not unknown


def test_rows_of_tables_in_the_documents_are_short():
    """Readers of the source see them as lines."""
    found = []
    for path in documents():
        prose = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        rows = re.findall(r"^ *\|.*", prose, flags=re.MULTILINE)
        found += [f"{path.name}: {row}" for row in rows if len(row) > TABLE_ROW]
    assert not found, "\n".join(found)


def test_the_documents_link_to_files_that_exist():
    broken = []
    for path in documents():
        for link in re.findall(r"\]\(([^)#\s]+)", path.read_text(encoding="utf-8")):
            if "://" not in link and not link.startswith("mailto:") and not (path.parent / link).exists():
                broken.append(f"{path.name}: {link}")
    assert not broken


#: Nothing is fetched: the build backend and the requirements are those of the environment.
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check")
OFFLINE = ("--quiet", "--no-deps", "--no-index")


def without_pip_settings() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith("PIP_")}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("easi3r_jax", "convert", "experiments"):  # all that a checkout has
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "LICENSE", "NOTICE", "README.md"):
        shutil.copy(ROOT / name, source)
    command = [*PIP, "wheel", *OFFLINE, "--no-build-isolation", "--wheel-dir", folder, source]
    subprocess.run(command, check=True, capture_output=True, env=without_pip_settings())
    (wheel,) = folder.glob("*.whl")
    return wheel


def test_the_wheel_holds_the_packages_the_demo_and_the_licence(wheel: pathlib.Path):
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
        (entry_points,) = (name for name in held if name.endswith("/entry_points.txt"))
        commands = archive.read(entry_points).decode()
    files = [p for p in (ROOT / "easi3r_jax").rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    assert {str(p.relative_to(ROOT)) for p in files} <= held
    assert {name.split("/")[0] for name in held if ".dist-info/" not in name} == {"easi3r_jax"}
    assert commands.split() == ["[console_scripts]", "easi3r", "=", "easi3r_jax.apps.command:main"]
    assert "easi3r_jax/assets/model/model.safetensors" in held
    assert not [name for name in held if name.startswith(("tests", "docs"))]
    assert {name.rsplit("/", 1)[1] for name in held if "/licenses/" in name} == {"LICENSE", "NOTICE"}


FROM_THE_WHEEL = """
import numpy as np
import easi3r_jax as e3r
model = e3r.load_model("embedded")
frames = e3r.load_frames("demo", e3r.FrameConfig.for_model(model, first=2))
pairs = e3r.predict_pairs(model, frames.rgb, np.array([[0, 1], [1, 0]]))
assert pairs.points_i.shape == (2, *frames.rgb.shape[1:]) and np.isfinite(pairs.points_i).all()
print(e3r.__file__)
"""


def test_what_the_wheel_installs_runs_without_the_checkout(wheel: pathlib.Path, tmp_path: pathlib.Path):
    installed, elsewhere = tmp_path / "installed", tmp_path / "elsewhere"
    elsewhere.mkdir()
    command = [*PIP, "install", *OFFLINE, "--no-compile", "--target", installed, wheel]
    subprocess.run(command, check=True, capture_output=True, env=without_pip_settings())

    def output(*command: str | pathlib.Path) -> str:
        environment = os.environ | {"PYTHONPATH": str(installed)}  # before the environment's link to the checkout
        done = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    assert output(sys.executable, "-c", FROM_THE_WHEEL).strip() == str(installed / "easi3r_jax" / "__init__.py")
    assert "--checkpoint" in output(installed / "bin" / "easi3r", "reconstruct", "--help")
