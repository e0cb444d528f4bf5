"""Settings every test runs under: exact float32 matrix products, strict ranks and dtypes, warnings as errors.

Most of the tests' time is compilation, of programs that then run for milliseconds. What is compiled in a run is
compiled once: processes (workers, programs that tests start) share a cache that lasts as long as the run. And it is
compiled quickly: see `_QUICK`.
"""

import os
import pathlib
import shutil
import tempfile

_CACHE = "JAX_COMPILATION_CACHE_DIR"
_OWN_CACHE = None
if _CACHE not in os.environ:  # before JAX is imported, which reads it
    _OWN_CACHE = os.environ[_CACHE] = tempfile.mkdtemp(prefix="easi3r_jax_tests_")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")

# Options of XLA that make code quickly instead of quick code: without LLVM's dearest passes, and each program as one
# module, since splitting it pays where there are many cores. Processes that tests start inherit them. (A lower
# --xla_backend_optimization_level would spare as much again, but rounds otherwise: RANSAC draws other samples, and the
# reference's flow masks are missed by 0.016 instead of 0.004.)
_QUICK = ("--xla_llvm_disable_expensive_passes=true", "--xla_cpu_parallel_codegen_split_count=1")
_asked = os.environ.get("XLA_FLAGS", "")
if not all(option in _asked for option in _QUICK):
    os.environ["XLA_FLAGS"] = " ".join((*_QUICK, _asked)).strip()  # of two values the later counts: the caller's

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_default_matmul_precision", "highest")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

GOLDEN = pathlib.Path(__file__).parent / "golden"


def pytest_unconfigure() -> None:
    if _OWN_CACHE is not None:  # only in the process that made it: workers are given it
        shutil.rmtree(_OWN_CACHE, ignore_errors=True)


@pytest.fixture(scope="session")
def golden() -> pathlib.Path:
    """Folder of reference arrays made by running the published code on deterministic random weights."""
    return GOLDEN
