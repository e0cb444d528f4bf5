"""Number types that a processor may be unable to convert."""

import platform

import jax
import pytest

from easi3r_jax.core import conversion
from easi3r_jax.core.errors import ConfigError
from tests.flags import run_with

ASKED = """
import jax.numpy as jnp
from easi3r_jax.core.conversion import check_conversion
from easi3r_jax.core.errors import ConfigError
for dtype in ("float32", "bfloat16", "float16"):
    try:
        check_conversion(dtype)
        assert jnp.zeros(3).astype(dtype).dtype == dtype
        print(dtype, "converts")
    except ConfigError as error:
        print(error)
"""


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="XLA limits instructions on x86 only")
@pytest.mark.parametrize("instructions", ["SSE4_2", "AVX"])
def test_what_a_processor_cannot_convert_is_refused(instructions):
    """F16C can be switched off on every processor."""
    said = run_with(f"--xla_cpu_max_isa={instructions}", "-c", ASKED).splitlines()
    refused = "This processor cannot convert float16 (it lacks F16C): use bfloat16 or float32 instead."
    last = refused if instructions == "SSE4_2" else "float16 converts"
    assert said == ["float32 converts", "bfloat16 converts", last]


def test_a_device_is_asked_once_and_what_it_fails_at_is_refused(monkeypatch):
    calls = []

    def fails(function):
        calls.append(function)
        raise jax.errors.JaxRuntimeError("INTERNAL: Failed to materialize symbols")

    conversion._converts.cache_clear()
    monkeypatch.setattr(jax, "jit", fails)
    try:
        for _ in range(2):
            with pytest.raises(ConfigError, match="cannot convert float16"):
                conversion.check_conversion("float16")
        conversion.check_conversion("bfloat16")
    finally:
        conversion._converts.cache_clear()
    assert len(calls) == 1
