"""Who may import whom, who may touch files, and where flags may live: read from the sources and enforced.

The rules are tables; `violations` applies them to one module's source. The first half of this file shows on small
made-up modules that a breach is seen, the second half applies the rules to the project.
"""

from __future__ import annotations

import ast
import pathlib
import re
import sys
import tomllib
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGES = ("easi3r_jax", "convert", "experiments")

FOUNDATION = {"types", "config", "errors", "geometry", "interrupt", "sharding", "batches"}
#: What each part of the library may import of the others. A new part must be entered here.
MAY_IMPORT = {
    "__init__": set(),
    "errors": set(),
    "interrupt": set(),
    "types": set(),
    "config": {"errors"},
    "geometry": {"errors"},
    "models": FOUNDATION,
    "motion": FOUNDATION,
    "align": FOUNDATION,
    "metrics": FOUNDATION,
    "synthetic": FOUNDATION,
    "video": FOUNDATION,
    "files": FOUNDATION,
    "datasets": FOUNDATION | {"files", "video"},
    "priors": FOUNDATION | {"video"},
    "testsets": FOUNDATION | {"files", "metrics", "priors", "video"},
    "pairs": FOUNDATION,
    "flow": FOUNDATION | {"models"},
    "feedforward": FOUNDATION | {"models"},
    "hub": FOUNDATION,
    "refine": FOUNDATION | {"hub"},
    "export": FOUNDATION,
    "results": FOUNDATION | {"export"},
    "listening": {"errors"},
    "viewer": FOUNDATION | {"export", "listening", "results"},
    "sharding": {"errors"},
    "batches": {"sharding", "types"},
    "passes": FOUNDATION | {"models", "motion"},
    "checkpoint": FOUNDATION | {"models"},
    "training": FOUNDATION | {"models", "synthetic"},
    "pipeline": FOUNDATION | {"models", "motion", "align", "pairs", "passes"},
    "windows": FOUNDATION | {"models", "align", "pipeline"},
}
TOUCH_FILES = {"checkpoint", "datasets", "export", "files", "hub", "interrupt", "priors", "refine", "results"}
TOUCH_FILES |= {"testsets", "video", "viewer"}
FILE_CALLS = {
    *("open", "memmap", "fromfile", "tofile", "load", "save", "savez", "savez_compressed", "loadtxt", "savetxt"),
    *("genfromtxt", "imread", "imwrite", "imsave", "savefig", "VideoCapture", "VideoWriter", "FileStorage"),
    *("read_text", "read_bytes", "write_text", "write_bytes", "mkdir", "makedirs", "unlink", "rmdir", "touch"),
    *("rename", "symlink_to", "iterdir", "rglob", "listdir", "scandir"),
}
FILE_MODULES = {"shutil", "tempfile", "zipfile", "tarfile", "mmap", "glob", "av", "PIL", "huggingface_hub"}

#: Distribution of an import name where the two differ.
DISTRIBUTIONS = {"PIL": "pillow", "absl": "absl-py", "cv2": "opencv-python-headless", "orbax": "orbax-checkpoint"}
DISTRIBUTIONS |= {"gradio_client": "gradio-client"}


def imported(source: str, module: str, *, is_package: bool = False) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything a module imports, relative imports resolved.

    `from a import b` gives `a.b`: whether b is a module or a name in a, the rules read the leading parts only.
    """
    package = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}"


def called(source: str) -> Iterator[tuple[int, str]]:
    """Line and last name of everything a module calls: `np.load(...)` gives `load`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name):
                yield node.lineno, node.func.id
            elif isinstance(node.func, ast.Attribute):
                yield node.lineno, node.func.attr


def violations(source: str, module: str, *, is_package: bool = False) -> list[str]:
    """Every breach of the rules in one module; `module` is its dotted name."""
    found = []
    package, *parts = module.split(".")
    part = parts[0] if parts else "__init__"
    library = package == "easi3r_jax"
    if library and part not in MAY_IMPORT:
        found.append(f"{module}: a new part of the library, enter it in MAY_IMPORT")
    for line, name in imported(source, module, is_package=is_package):
        where = f"{module}:{line} imports {name}"
        top, *rest = name.split(".")
        if top in ("experiments", "convert") and package not in ("experiments", top):
            found.append(f"{where}: only experiments may import experiments and convert")
        sibling = rest[0] if library and top == "easi3r_jax" and rest and rest[0] in MAY_IMPORT else part
        if sibling != part and sibling not in MAY_IMPORT.get(part, set()):
            found.append(f"{where}: {part} may not import {sibling}")
        if package == "convert" and name.startswith(("easi3r_jax.pipeline", "easi3r_jax.windows")):
            found.append(f"{where}: only experiments may import the pipeline")
        if library and (name.startswith(("absl.flags", "absl.app")) or top == "argparse"):
            found.append(f"{where}: flags belong to experiments and convert")
        if top == "orbax" and (package, part) != ("easi3r_jax", "checkpoint"):
            found.append(f"{where}: only checkpoint knows Orbax")
        if top in ("torch", "transformers") and module != "easi3r_jax.refine.sam2":
            found.append(f"{where}: only the refinement by SAM 2 needs PyTorch")
        if top == "viser" and module != "easi3r_jax.viewer" and not module.startswith("easi3r_jax.viewer."):
            found.append(f"{where}: only the viewer needs viser")
        if top in ("gradio", "gradio_client", "starlette") and module != "experiments.app.page":
            found.append(f"{where}: only the web app's page needs gradio")
        if top in ("pickle", "cloudpickle", "dill", "joblib") and package != "convert":
            found.append(f"{where}: only convert reads pickles")
        if library and top in FILE_MODULES and part not in TOUCH_FILES:
            found.append(f"{where}: {part} may not touch files")
        if library and top == "importlib":
            found.append(f"{where}: an import that these rules cannot see")
    for line, name in called(source) if library else ():
        if name in FILE_CALLS and part not in TOUCH_FILES:
            found.append(f"{module}:{line} calls {name}: {part} may not touch files")
        if name == "print":
            found.append(f"{module}:{line} calls print: the library does not print")
        if name in ("__import__", "eval", "exec"):
            found.append(f"{module}:{line} calls {name}")
    return found


def project_modules() -> Iterator[tuple[str, pathlib.Path]]:
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


# --- the checker sees a breach --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("easi3r_jax.types", "from easi3r_jax.config import DUSt3RConfig"),
        ("easi3r_jax.types", "import easi3r_jax.geometry.se3 as se3"),
        ("easi3r_jax.models.heads", "from easi3r_jax import motion"),
        ("easi3r_jax.models.heads", "from ..motion import score"),
        ("easi3r_jax.motion.score", "def f():\n    from easi3r_jax.models import DUSt3R"),
        ("easi3r_jax.motion.score", "if True:\n    import easi3r_jax.align"),
        ("easi3r_jax.align", "from easi3r_jax.pipeline import reconstruct"),
        ("easi3r_jax.export.npz", "from easi3r_jax.models import DUSt3R"),
        ("easi3r_jax.checkpoint", "from easi3r_jax import pipeline"),
        ("easi3r_jax.pipeline", "from easi3r_jax.video import load_frames"),
        ("easi3r_jax.pipeline", "import convert"),
        ("easi3r_jax.checkpoint", "from convert.tables import TABLE"),
        ("easi3r_jax.video", "from experiments import cli"),
        ("easi3r_jax.brand_new", "x = 1"),
        ("easi3r_jax.config", "from absl import flags"),
        ("easi3r_jax.pipeline", "import absl.flags"),
        ("easi3r_jax.video", "import argparse"),
        ("easi3r_jax.models", "import orbax.checkpoint as ocp"),
        ("experiments.reconstruct", "from orbax import checkpoint"),
        ("easi3r_jax.models", "import torch"),
        ("convert.pth", "import torch.serialization"),
        ("easi3r_jax.refine.alternate", "import torch"),
        ("experiments.reconstruct", "from transformers import Sam2VideoModel"),
        ("experiments.view", "import viser"),
        ("easi3r_jax.export.ply", "import viser.transforms"),
        ("experiments.app.job", "import gradio as gr"),
        ("experiments.app", "from gradio import Blocks"),
        ("easi3r_jax.checkpoint", "import pickle"),
        ("easi3r_jax.metrics.masks", "from PIL import Image"),
        ("easi3r_jax.metrics.masks", "open('x')"),
        ("easi3r_jax.pipeline", "import numpy as np\nnp.load('x.npz')"),
        ("easi3r_jax.align.state", "np.savez('x', a=1)"),
        ("easi3r_jax.pairs", "import pathlib\npathlib.Path('x').write_text('')"),
        ("easi3r_jax.motion", "print('done')"),
        ("easi3r_jax.motion", "import importlib"),
        ("easi3r_jax.motion", "__import__('os')"),
        ("convert.__main__", "from experiments import cli"),
        ("convert.tables", "from easi3r_jax.pipeline import encode"),
        ("convert.tables", "from easi3r_jax import windows"),
        ("easi3r_jax.pipeline", "from easi3r_jax.windows import reconstruct_windows"),
    ],
)
def test_a_breach_is_seen(module: str, source: str):
    assert len(violations(source, module)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("easi3r_jax.config", "from easi3r_jax.errors import ConfigError"),
        ("easi3r_jax.models.heads", "from easi3r_jax.models.layers import Linear\nfrom .layers import Conv"),
        ("easi3r_jax.models.heads", "from easi3r_jax import __version__, types"),
        ("easi3r_jax.checkpoint", "import orbax.checkpoint\nfrom easi3r_jax.models import DUSt3R\nopen('x')"),
        ("easi3r_jax.pipeline", "from easi3r_jax import align, motion"),
        ("easi3r_jax.refine.sam2", "import torch"),
        ("easi3r_jax.viewer.server", "import viser\nfrom easi3r_jax import results"),
        ("experiments.app.page", "import gradio as gr\nfrom starlette.middleware import Middleware"),
        ("easi3r_jax.export.npz", "import numpy as np\nnp.savez('x')"),
        ("convert.pth", "import pickle\nopen('x')\nprint(1)\nfrom absl import flags"),
        ("experiments.reconstruct", "import convert\nfrom easi3r_jax import pipeline\nfrom absl import flags"),
    ],
)
def test_what_is_allowed_passes(module: str, source: str):
    assert violations(source, module) == []


def test_relative_imports_are_resolved():
    source = "from . import a\nfrom .b import c\nfrom .. import d\nfrom ..e import f"
    of_module = [name for _, name in imported(source, "p.q.module")]
    assert of_module == ["p.q.a", "p.q.b.c", "p.d", "p.e.f"]
    of_package = [name for _, name in imported("from . import a\nfrom ..b import c", "p.q", is_package=True)]
    assert of_package == ["p.q.a", "p.b.c"]


# --- the project ----------------------------------------------------------------------------------------------------


def test_the_project_keeps_the_rules():
    found = []
    for module, path in project_modules():
        found += violations(path.read_text(encoding="utf-8"), module, is_package=path.name == "__init__.py")
    assert not found, "\n".join(found)


def test_every_import_is_a_declared_dependency():
    """Of the programs in [project.dependencies], of the tests there or in the extra `dev`.

    The reader of HDF5 files may import what is in the extra `datasets`, which it does where it needs it; likewise the
    refinement by SAM 2, and its tests, what is in `sam2`, the viewer what is in `viewer`, and the web app's page what
    is in `app` and comes with it. Tests in a browser may import what drives it, and what the page is made of.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = {name: {_distribution(r) for r in needs} for name, needs in project["optional-dependencies"].items()}
    run_time = {_distribution(requirement) for requirement in project["dependencies"]}
    development = run_time | extras["dev"]
    ours = {*PACKAGES, "tests", *sys.stdlib_module_names}
    missing = []
    by_module = {"easi3r_jax.files.hdf5": extras["datasets"], "easi3r_jax.refine.sam2": extras["sam2"]}
    by_module["easi3r_jax.viewer"] = extras["viewer"]
    by_module["experiments.app.page"] = extras["app"] | {"starlette"}
    browser = {_distribution(line) for line in (ROOT / "tests/requirements-browser.txt").read_text().splitlines()}
    sources = [
        (path, run_time.union(*(needs for start, needs in by_module.items() if module.startswith(start))))
        for module, path in project_modules()
    ]
    sources += [
        (path, development | (extras["sam2"] if "sam2" in path.name else browser if "browser" in path.name else set()))
        for path in sorted((ROOT / "tests").rglob("*.py"))
    ]
    for path, declared in sources:
        name = str(path.relative_to(ROOT))
        relative = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for line, target in imported(path.read_text(encoding="utf-8"), relative):
            top = target.split(".")[0]
            if top not in ours and DISTRIBUTIONS.get(top, top) not in declared:
                missing.append(f"{name}:{line} imports {target}")
    assert not missing, "\n".join(missing)


def test_no_dependency_is_declared_in_vain():
    """Each is imported by the project, or by its tests (`chex`, and `trimesh` as an independent reader)."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    sources = [path for _, path in project_modules()] + sorted((ROOT / "tests").rglob("*.py"))
    used = set()
    for path in sources:
        for _, name in imported(path.read_text(encoding="utf-8"), path.stem):
            top = name.split(".")[0]
            used.add(DISTRIBUTIONS.get(top, top))
    assert {_distribution(requirement) for requirement in project["dependencies"]} <= used


def _distribution(requirement: str) -> str:
    return re.split(r"[\[<>=!~; ]", requirement, maxsplit=1)[0]
