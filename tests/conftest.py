"""Settings every test runs under: exact float32 matrix products, strict ranks and dtypes, warnings as errors.

Each program is compiled once per test run: processes (workers, programs that tests start) share a cache for the
duration of the run. Compilation is sped up by the options in tests/flags.py.

What the annotations say of arrays is checked at every call of a public function: see tests/shapes.py.
"""

import ctypes
import gc
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterator

from tests.flags import compile_quickly

_CACHE = "JAX_COMPILATION_CACHE_DIR"
_OWN_CACHE = None
if _CACHE not in os.environ:  # before JAX is imported, which reads it
    _OWN_CACHE = os.environ[_CACHE] = tempfile.mkdtemp(prefix="easi3r_jax_tests_")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")

compile_quickly()

import jax  # noqa: E402
import pytest  # noqa: E402

from tests import shapes  # noqa: E402

shapes.install()  # before the package is imported

from easi3r_jax.core.conversion import check_conversion  # noqa: E402
from easi3r_jax.core.errors import ConfigError  # noqa: E402

jax.config.update("jax_default_matmul_precision", "highest")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

GOLDEN = pathlib.Path(__file__).parent / "golden"


#: Files that take longest, first: a worker that begins one of them last would keep the others waiting.
_LONGEST = (
    *("core/test_sharding.py", "test_face.py", "apps/test_reconstruct.py", "inference/test_clips.py"),
    *("apps/test_given.py", "models/test_dust3r.py", "apps/test_calibrate.py", "alignment/test_gradients.py"),
    *("synthetic/test_clips.py", "inference/test_given.py", "apps/test_parity.py", "apps/test_bad_input.py"),
    *("motion/test_readout.py", "training/test_step.py", "apps/test_evaluate_layouts.py", "motion/test_motion.py"),
    *("weights/convert/test_flow.py", "test_docs.py", "alignment/test_windows.py", "alignment/test_reference_run.py"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Workers take files in this order (with `--no-loadscope-reorder`); the others keep theirs."""
    rank = {pathlib.Path(__file__).parent / name: number for number, name in enumerate(_LONGEST)}
    assert all(path.is_file() for path in rank), "a file of _LONGEST was renamed"
    items.sort(key=lambda item: rank.get(item.path, len(rank)))


def pytest_collection_finish() -> None:
    """Python's garbage collector walks over all objects when it runs: fewer times, and not over the modules.

    Tracing makes many objects in little time, and pytest keeps a million: together a twentieth of the tests' time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 10, 20)


def pytest_unconfigure() -> None:
    if _OWN_CACHE is not None:  # only in the process that made it: workers are given it
        shutil.rmtree(_OWN_CACHE, ignore_errors=True)


# Every compiled program takes memory, and a few memory maps, of which Linux grants a process 65530: XLA aborts without
# one. Between two test files they are released if they have grown since the last time: what remains then, a good part
# of it all, would otherwise make every later file compile again what the one before had compiled.
_MAPS, _MEMORY = pathlib.Path("/proc/self/maps"), pathlib.Path("/proc/self/statm")
_MAX_MAPS, _MAX_GROWTH = 20_000, 0.7e9


def _resident() -> int:
    return int(_MEMORY.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture(scope="session")
def _released_at() -> list[float]:
    """Bytes that the process kept when its programs were last released; at first, what it may have without that."""
    return [0.8e9]


@pytest.fixture(autouse=True, scope="module")
def _compiled_programs_are_released(_released_at: list[float]) -> Iterator[None]:
    yield
    if not _MAPS.exists():
        return
    if _resident() > _released_at[0] + _MAX_GROWTH or _MAPS.read_bytes().count(b"\n") > _MAX_MAPS:
        jax.clear_caches()
        gc.collect()
        # What the compiler has freed, two thirds of it all, the C library keeps until it is told not to.
        if hasattr(library := ctypes.CDLL(None), "malloc_trim"):
            library.malloc_trim(0)
        _released_at[0] = _resident()


@pytest.fixture
def convertible() -> Callable[[str], None]:
    """Skips a test whose number type this processor cannot convert to, with the reason."""

    def check(dtype: str) -> None:
        try:
            check_conversion(dtype)
        except ConfigError as error:
            pytest.skip(str(error))

    return check


@pytest.fixture(scope="session")
def golden() -> pathlib.Path:
    """Folder of reference arrays made by running the published code on deterministic random weights."""
    return GOLDEN
