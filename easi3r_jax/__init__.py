"""Easi3R in JAX: 4D reconstruction of moving scenes from a static-scene network, without training.

    import easi3r_jax as e3r

    model = e3r.load_model("embedded")
    frames = e3r.load_frames("clip.mp4", e3r.FrameConfig.for_model(model, fps=8))
    result = e3r.reconstruct(model, frames)
    e3r.save_result("results/clip", result)

The public names are those of `__init__.pyi`. Each is imported when it is first used: the import itself takes no time,
starts no backend and installs no signal handler. Subpackages: `core`, `models`, `motion`, `alignment`, `weights`,
`inference`, `io`, `viewer`, `synthetic`, `training`, `evaluation`, `apps`.
"""

import ast
import importlib
import pathlib
from typing import Any

__version__ = "0.1.0"

#: Public name -> its module and its name there.
_PUBLIC = {
    alias.asname or alias.name: (f"{__name__}.{node.module}", alias.name)
    for node in ast.parse(pathlib.Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8")).body
    if isinstance(node, ast.ImportFrom)
    for alias in node.names
}
__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _PUBLIC[name]
    value = globals()[name] = getattr(importlib.import_module(module), attribute)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
