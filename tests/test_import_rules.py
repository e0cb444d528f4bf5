"""Enforces which packages may import which, which may touch files, and where flags may be defined.

The rules are tables; `violations` applies them to one module's source. The first half of this file checks on small
made-up modules that violations are detected; the second half applies the rules to the project.
"""

from __future__ import annotations

import ast
import graphlib
import itertools
import pathlib
import re
import sys
import tomllib
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGES = ("easi3r_jax", "convert", "experiments")

#: The rooms of the library, each with those that it may import. Data flows downwards. A new room is entered here.
MAY_IMPORT = {
    "__init__": set(),
    "core": set(),
    "models": {"core"},
    "motion": {"core"},
    "alignment": {"core"},
    "synthetic": {"core"},
    "weights": {"core", "io", "models"},
    "inference": {"core", "models", "motion", "alignment", "weights"},
    "io": {"core"},
    "viewer": {"core", "io"},
    "evaluation": {"core", "io"},
    "training": {"core", "models", "synthetic", "io"},
}
#: Modules that import Ray, in functions.
RAY = ("easi3r_jax.apps.cluster.ray_cluster", "easi3r_jax.apps.cluster.connection")
#: `apps`, the programs, may import every room, and no room imports it.
MAY_IMPORT["apps"] = set(MAY_IMPORT) - {"__init__"}
#: Within a room, each part (module or subpackage) with its neighbours that it may import; a part that is not listed may
#: import none of them. `apps` has no table.
WITHIN = {
    "core": {
        "atomic": {"errors", "interrupt"},
        "batches": {"arrays", "sharding", "target"},
        "config": {"errors", "lens"},
        "conversion": {"errors"},
        "geometry": {"arrays", "errors"},
        "lens": {"errors"},
        "metres": {"arrays", "errors", "types"},
        "pairs": {"arrays", "errors"},
        "reciprocal": {"arrays", "errors"},
        "sharding": {"arrays", "errors"},
        "statistics": {"arrays"},
        "types": {"arrays", "errors", "lens"},
    },
    "models": {
        "attention": {"layers", "rope", "statistics"},
        "decoder": {"attention", "config", "layers", "rope", "statistics"},
        "dust3r": {"config", "decoder", "encoder", "heads", "precision"},
        "encoder": {"attention", "config", "layers", "rope"},
        "flow_layers": {"layers"},
        "heads": {"config", "layers"},
        "parameters": {"config", "dust3r", "precision", "raft", "sea_raft", "vggt"},
        "raft": {"config", "correlation", "dust3r", "flow_layers", "layers", "precision"},
        "rope": {"layers"},
        "sea_raft": {"config", "correlation", "dust3r", "flow_layers", "layers", "precision"},
        "statistics": {"layers"},
        "vggt": {"attention", "encoder", "heads", "layers", "precision", "rope", "statistics"},
    },
    "motion": {
        "aggregate": {"normalise"},
        "cluster": {"normalise"},
        "cues": {"aggregate", "gram", "match", "rigid"},
        "gram": {"aggregate", "normalise"},
        "match": {"partners"},
        "readout": {"aggregate", "cues"},
        "rigid": {"partners"},
        "score": {"normalise"},
    },
    "alignment": {
        "assembly": {"confidence", "graph", "known", "narrow"},
        "descent": {"problem", "state", "terms"},
        "flow": {"derivatives", "pixel_sums", "problem", "state"},
        "flow_masks": {"flow", "pair"},
        "implicit": {"derivatives", "problem", "residuals", "state", "terms"},
        "initialise": {"assembly", "known", "known_scale", "state"},
        "known": {"problem", "state"},
        "known_scale": {"known", "narrow", "state"},
        "matching": {"flow", "problem", "state"},
        "metric": {"narrow", "problem"},
        "narrow": {"derivatives"},
        "pair": {"confidence", "initialise", "known"},
        "problem": {"narrow", "state"},
        "residuals": {"derivatives", "narrow", "pixel_sums", "problem", "state"},
        "terms": {"flow", "matching", "problem", "residuals", "state"},
        "windows": {"known", "overlaps"},
    },
    "synthetic": {
        "cameras": {"cast", "draws", "scenes"},
        "cast": {"scenes"},
        "clips": {"cameras", "draws", "flow", "pairs", "render", "scenes"},
        "flow": {"cameras", "cast", "render", "scenes"},
        "moving": {"clips", "draws", "render"},
        "pairs": {"cameras", "draws", "render", "scenes"},
        "render": {"cameras", "cast", "draws", "scenes", "texture"},
        "scenes": {"draws", "texture"},
        "texture": {"draws"},
    },
    "weights": {
        "convert": {"checkpoint", "hub", "readout"},
        "load": {"checkpoint", "convert", "hub", "readout"},
    },
    "inference": {
        "feedforward": {"clip"},
        "multiview": {"clip"},
        "pipeline": {"clip", "matching", "passes"},
        "pure": {"clip"},
        "tracks": {"dense_flow"},
        "windows": {"clip", "pipeline"},
    },
    "io": {
        "export": {"pictures"},
        "priors": {"files", "video"},
        "remote": {"files"},
        "results": {"export", "pictures", "priors", "remote"},
        "sequences": {"remote", "video"},
        "video": {"files"},
        "window_store": {"export"},
    },
    "viewer": {
        "capture": {"paths", "pictures", "playback"},
        "colors": {"clouds"},
        "nodes": {"clouds", "colors", "paths", "pictures", "playback"},
        "panel": {"capture", "clouds", "colors", "playback", "viser_import"},
        "pictures": {"colors"},
        "server": {
            *("clouds", "colors", "listening", "nodes", "panel", "paths", "playback", "ruler", "surroundings"),
            "viser_import",
        },
        "static": {"clouds", "nodes", "playback", "server", "surroundings", "viser_import"},
        "surroundings": {"clouds", "nodes", "paths", "viser_import"},
    },
    "evaluation": {
        "datasets": {"metrics"},
        "ground_truth": {"metrics"},
    },
    "training": {
        "objective": {"batch", "config"},
        "optimiser": {"config"},
        "rendered": {"batch"},
        "step": {"batch", "config", "objective", "optimiser"},
        "validation": {"batch", "objective"},
    },
}
#: Parts that touch files; of the others none does.
TOUCH_FILES = {"apps", "core.atomic", "core.interrupt", "io", "weights", "inference.refine", "evaluation.datasets"}
TOUCH_FILES |= {"training.datasets", "viewer"}
FILE_CALLS = {
    *("open", "memmap", "fromfile", "tofile", "load", "save", "savez", "savez_compressed", "loadtxt", "savetxt"),
    *("genfromtxt", "imread", "imwrite", "imsave", "savefig", "VideoCapture", "VideoWriter", "FileStorage"),
    *("read_text", "read_bytes", "write_text", "write_bytes", "mkdir", "makedirs", "unlink", "rmdir", "touch"),
    *("rename", "symlink_to", "iterdir", "rglob", "listdir", "scandir"),
}
#: What a module may import beside its room's: a result draws itself in notebooks.
EXCEPTIONS = {("easi3r_jax.core.types", "easi3r_jax.io.pictures.summary")}
#: Modules that import by name: the public face, and the command that starts a program.
LAZY = ("easi3r_jax", "easi3r_jax.apps.command")
#: The public face reads its stub.
READS_STUB = ("easi3r_jax",)
FILE_MODULES = {"shutil", "tempfile", "zipfile", "tarfile", "mmap", "glob", "av", "PIL", "huggingface_hub"}

#: Together they take as long to import as everything else: the functions that need them import them, so that a program
#: starts, helps and refuses sooner.
SLOW = {"scipy", "matplotlib", "orbax"}

#: Distribution of an import name where the two differ.
DISTRIBUTIONS = {"PIL": "pillow", "absl": "absl-py", "cv2": "opencv-python-headless", "orbax": "orbax-checkpoint"}
DISTRIBUTIONS |= {"rerun": "rerun-sdk", "gradio_client": "gradio-client", "yaml": "pyyaml"}
DISTRIBUTIONS |= {"axe_playwright_python": "axe-playwright-python"}


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


def imported_at_start(source: str) -> Iterator[tuple[int, str]]:
    """As `imported`, of what a module imports when it is imported itself: outside of functions, and not for types."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from ((node.lineno, name) for _, name in imported(ast.unparse(node), "module"))


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
    room = parts[0] if parts else "__init__"
    library = package == "easi3r_jax"
    program = room == "apps" and library
    touches_files = any(
        module == f"easi3r_jax.{part}" or module.startswith(f"easi3r_jax.{part}.") for part in TOUCH_FILES
    )
    if library and room not in MAY_IMPORT:
        found.append(f"{module}: a new room of the library, enter it in MAY_IMPORT")
    for line, name in imported(source, module, is_package=is_package):
        where = f"{module}:{line} imports {name}"
        top, *rest = name.split(".")
        if top in ("experiments", "convert"):
            found.append(f"{where}: experiments and convert only start programs")
        if not library and top == "easi3r_jax" and not name.startswith("easi3r_jax.apps.command"):
            found.append(f"{where}: the code of programs is in easi3r_jax.apps")
        excepted = (module, name.rpartition(".")[0]) in EXCEPTIONS
        if library and top == "easi3r_jax" and rest and rest[0] in MAY_IMPORT and not excepted:
            if rest[0] != room and rest[0] not in MAY_IMPORT.get(room, set()):
                found.append(f"{where}: {room} may not import {rest[0]}")
            inside = rest[0] == room and room in WITHIN and len(parts) > 1 and len(rest) > 1
            if inside and rest[1] not in {parts[1], *WITHIN[room].get(parts[1], set())}:
                found.append(f"{where}: {room}.{parts[1]} may not import {rest[1]}")
        if library and not program and (name.startswith(("absl.flags", "absl.app")) or top == "argparse"):
            found.append(f"{where}: flags belong to apps")
        if top == "orbax" and not module.startswith("easi3r_jax.weights.checkpoint"):
            found.append(f"{where}: only weights.checkpoint knows Orbax")
        if top in ("torch", "transformers") and module != "easi3r_jax.inference.refine.sam2":
            found.append(f"{where}: only the refinement by SAM 2 needs PyTorch")
        if top == "viser" and module != "easi3r_jax.viewer" and not module.startswith("easi3r_jax.viewer."):
            found.append(f"{where}: only the viewer needs viser")
        if top == "rerun" and module != "easi3r_jax.io.export.rrd":
            found.append(f"{where}: only io.export.rrd needs Rerun")
        if top in ("gradio", "gradio_client", "starlette") and module != "easi3r_jax.apps.app.page":
            found.append(f"{where}: only the web app's page needs gradio")
        if name.startswith("jax._src") and module != "easi3r_jax.apps.compile_check.stablehlo":
            found.append(f"{where}: JAX's private modules may change")
        if top == "ray" and module not in RAY:
            found.append(f"{where}: only apps.cluster.ray_cluster and its connection need Ray")
        if top in ("plyfile", "pycolmap", "trimesh"):
            found.append(f"{where}: only tests read exports back (and plyfile is GPL)")
        if top in ("pickle", "cloudpickle", "dill", "joblib") and not module.startswith("easi3r_jax.weights.convert"):
            found.append(f"{where}: only weights.convert reads pickles")
        if library and top in FILE_MODULES and not touches_files:
            found.append(f"{where}: {room} may not touch files")
        if library and top == "importlib" and module not in LAZY:
            found.append(f"{where}: an import that these rules cannot see")
    for line, name in imported_at_start(source) if library else ():
        if name.split(".")[0] in SLOW:
            found.append(
                f"{module}:{line} imports {name}: inside the function that needs it, since it is slow to import"
            )
    for line, name in called(source) if library else ():
        if name in FILE_CALLS and not touches_files and module not in READS_STUB:
            found.append(f"{module}:{line} calls {name}: {room} may not touch files")
        if name == "print" and not program:
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
        ("easi3r_jax.core.types", "from easi3r_jax.core.config import DUSt3RConfig"),
        ("easi3r_jax.core.types", "import easi3r_jax.core.geometry.se3 as se3"),
        ("easi3r_jax.core.types", "from easi3r_jax.models import DUSt3R"),
        ("easi3r_jax.core.arrays", "from easi3r_jax.core.types import Frames"),
        ("easi3r_jax.core.atomic", "from easi3r_jax.core import types"),
        ("easi3r_jax.core.geometry.se3", "from ..pairs import pair_indices"),
        ("easi3r_jax.io.video.load", "from easi3r_jax.io.results import load_result"),
        ("easi3r_jax.alignment.state", "from easi3r_jax.alignment.problem import AlignProblem"),
        ("easi3r_jax.motion.normalise", "from .score import motion_scores"),
        ("easi3r_jax.models.layers", "from easi3r_jax.models.attention import Attention"),
        ("easi3r_jax.weights.checkpoint.state", "from easi3r_jax.weights import load"),
        ("easi3r_jax.models.heads", "from easi3r_jax import motion"),
        ("easi3r_jax.models.heads", "from ..motion import score"),
        ("easi3r_jax.motion.score", "def f():\n    from easi3r_jax.models import DUSt3R"),
        ("easi3r_jax.motion.score", "if True:\n    import easi3r_jax.alignment"),
        ("easi3r_jax.alignment", "from easi3r_jax.inference.pipeline import reconstruct"),
        ("easi3r_jax.io.export.npz", "from easi3r_jax.models import DUSt3R"),
        ("easi3r_jax.io.priors.masks", "from easi3r_jax.io.results import load_scene"),
        ("easi3r_jax.weights.checkpoint", "from easi3r_jax.inference import pipeline"),
        ("easi3r_jax.inference.pipeline", "from easi3r_jax.io.video import load_frames"),
        ("easi3r_jax.inference.pipeline", "from easi3r_jax.inference.windows import reconstruct_windows"),
        ("easi3r_jax.inference.pipeline", "from easi3r_jax.apps import cli"),
        ("easi3r_jax.inference.pipeline", "import convert"),
        ("easi3r_jax.io.video", "from experiments import reconstruct"),
        ("experiments.reconstruct", "from easi3r_jax.io import export"),
        ("convert.__main__", "from easi3r_jax.weights.convert import convert"),
        ("easi3r_jax.brand_new", "x = 1"),
        ("easi3r_jax.core.config", "from absl import flags"),
        ("easi3r_jax.inference.pipeline", "import absl.flags"),
        ("easi3r_jax.io.video", "import argparse"),
        ("easi3r_jax.models", "def f():\n    import orbax.checkpoint as ocp"),
        ("easi3r_jax.apps.reconstruct", "def f():\n    from orbax import checkpoint"),
        ("easi3r_jax.models", "import torch"),
        ("easi3r_jax.apps.evaluate.main", "import ray"),
        ("easi3r_jax.apps.evaluate.main", "from jax._src.distributed import global_state"),
        ("easi3r_jax.weights.convert.torch_file", "import torch.serialization"),
        ("easi3r_jax.inference.refine.alternate", "import torch"),
        ("easi3r_jax.apps.reconstruct", "from transformers import Sam2VideoModel"),
        ("easi3r_jax.apps.view", "import viser"),
        ("easi3r_jax.io.export.ply", "import viser.transforms"),
        ("easi3r_jax.io.export.ply", "import plyfile"),
        ("easi3r_jax.io.export.ply", "import rerun as rr"),
        ("easi3r_jax.apps.app.job", "import gradio as gr"),
        ("easi3r_jax.apps.app", "from gradio import Blocks"),
        ("easi3r_jax.weights.checkpoint", "import pickle"),
        ("easi3r_jax.evaluation.metrics.masks", "from PIL import Image"),
        ("easi3r_jax.evaluation.metrics.masks", "open('x')"),
        ("easi3r_jax.inference.pipeline", "import numpy as np\nnp.load('x.npz')"),
        ("easi3r_jax.alignment.state", "np.savez('x', a=1)"),
        ("easi3r_jax.core.pairs", "import pathlib\npathlib.Path('x').write_text('')"),
        ("easi3r_jax.motion", "print('done')"),
        ("easi3r_jax.motion", "import importlib"),
        ("easi3r_jax.motion", "__import__('os')"),
        ("easi3r_jax.alignment.graph", "from scipy import sparse"),
    ],
)
def test_a_breach_is_detected(module: str, source: str):
    assert len(violations(source, module)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("easi3r_jax.core.config", "from easi3r_jax.core.errors import ConfigError"),
        ("easi3r_jax.core.geometry.se3", "from easi3r_jax.core.geometry import camera\nfrom ..errors import UserError"),
        ("easi3r_jax.apps.train", "from easi3r_jax.apps import run_folder"),
        ("easi3r_jax.models.heads", "from easi3r_jax.models.layers import Linear\nfrom .layers import Conv"),
        ("easi3r_jax.models.heads", "from easi3r_jax import __version__\nfrom easi3r_jax.core import types"),
        ("easi3r_jax.weights.checkpoint", "def f():\n    import orbax.checkpoint\n    open('x')"),
        ("easi3r_jax.inference.pipeline", "from easi3r_jax import align, motion"),
        ("easi3r_jax.inference.refine.sam2", "import torch"),
        ("easi3r_jax.viewer.server", "import viser\nfrom easi3r_jax.io import results"),
        ("easi3r_jax.apps.app.page", "import gradio as gr\nfrom starlette.middleware import Middleware"),
        ("easi3r_jax.io.export.npz", "import numpy as np\nnp.savez('x')"),
        ("easi3r_jax.weights.convert.pickles", "import pickle\nopen('x')"),
        ("easi3r_jax.apps.reconstruct", "from easi3r_jax.inference import pipeline\nfrom absl import flags\nprint(1)"),
        ("experiments.reconstruct", "from easi3r_jax.apps.command import run"),
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


def test_the_tables_have_no_cycles():
    for table in (MAY_IMPORT, *WITHIN.values()):
        parts = {*table, *itertools.chain.from_iterable(table.values())}
        graphlib.TopologicalSorter({part: table.get(part, set()) for part in parts}).prepare()


# --- the project ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("room", WITHIN)
def test_the_tables_name_parts_that_exist(room: str):
    folder = ROOT / "easi3r_jax" / room
    exist = {path.stem for path in folder.glob("*.py")} | {path.parent.name for path in folder.glob("*/__init__.py")}
    assert {*WITHIN[room], *itertools.chain.from_iterable(WITHIN[room].values())} <= exist


def test_the_project_keeps_the_rules():
    found = []
    for module, path in project_modules():
        found += violations(path.read_text(encoding="utf-8"), module, is_package=path.name == "__init__.py")
    assert not found, "\n".join(found)


def test_every_import_is_a_declared_dependency():
    """Of the programs in [project.dependencies], of the tests there or in the extra `dev`.

    The readers of HDF5 and OpenEXR files may import what is in the extra `datasets`, which they do where they need it;
    likewise the writer of OpenEXR files what is in `export`, that of recordings what is in `rerun`, the refinement by
    SAM 2, and its tests, what is in `sam2`, addresses what is in `https`, the viewer what is in `viewer`, the driver of
    a cluster what is in `cluster`, and the web app's page what is in `app` and comes with it. Tests in a browser may
    import what drives it, and what the page is made of.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = {name: {_distribution(r) for r in needs} for name, needs in project["optional-dependencies"].items()}
    run_time = {_distribution(requirement) for requirement in project["dependencies"]}
    development = run_time | extras["dev"]
    ours = {*PACKAGES, "tests", *sys.stdlib_module_names}
    missing = []
    by_module = {"easi3r_jax.io.files.hdf5": extras["datasets"], "easi3r_jax.inference.refine.sam2": extras["sam2"]}
    by_module["easi3r_jax.training.datasets.exr"] = extras["datasets"]
    by_module["easi3r_jax.io.export.exr"] = extras["export"]
    by_module["easi3r_jax.io.export.rrd"] = extras["rerun"]
    by_module["easi3r_jax.io.remote"] = extras["https"]
    by_module["easi3r_jax.viewer"] = extras["viewer"]
    by_module |= dict.fromkeys(RAY, extras["cluster"])
    by_module["easi3r_jax.apps.app.page"] = extras["app"] | {"starlette"}
    by_module["easi3r_jax.apps.app.players"] = {"websockets"}  # viser's own
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


def test_every_declared_dependency_is_imported():
    """Each is imported by the project, or by its tests (`chex`)."""
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
