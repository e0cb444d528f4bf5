"""The persistent compilation cache: what one run has compiled, the next one finds."""

from __future__ import annotations

import os
import pathlib

import jax

from easi3r_jax.weights.convert.cache import cache_folder

# What compiles faster is not kept. JAX's own limit, a second, leaves out most of what small networks need.
_LEAST_SECONDS = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"


def use_cache() -> pathlib.Path | None:
    """Turns the cache on, beside the converted checkpoints; a folder that the user has chosen for JAX stays.

    Returns:
      its folder, or None where there is no place to write. To be called before anything is compiled.
    """
    chosen = jax.config.values.get("jax_compilation_cache_dir")
    if chosen:
        return pathlib.Path(chosen)
    folder = cache_folder() / "compiled"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    if not os.access(folder, os.W_OK):
        return None
    jax.config.update("jax_compilation_cache_dir", os.fspath(folder))
    if _LEAST_SECONDS not in os.environ:
        jax.config.update(_LEAST_SECONDS.lower(), 0.2)
    return folder
