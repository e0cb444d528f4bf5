"""The persistent compilation cache, shared by successive runs."""

from __future__ import annotations

import os
import pathlib

import jax

from easi3r_jax.weights.convert.cache import cache_folder

# Programs that compile faster are not cached. JAX's default, one second, excludes most programs of small networks.
_MIN_COMPILE_SECONDS = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"


def use_cache() -> pathlib.Path | None:
    """Turns the cache on, beside the converted checkpoints, unless the user has set a folder for JAX.

    To be called before anything is compiled.

    Returns:
      its folder, or None if it cannot be written.
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
    if _MIN_COMPILE_SECONDS not in os.environ:
        jax.config.update(_MIN_COMPILE_SECONDS.lower(), 0.2)
    return folder
