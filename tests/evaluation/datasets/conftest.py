"""Fixtures for the tests of data sets."""

from collections.abc import Callable

import pytest

from easi3r_jax.core.errors import InputError


@pytest.fixture(scope="session")
def message_of() -> Callable[[Callable[[], object]], str]:
    """A function that returns the one-line message of the InputError that an action raises."""

    def get(action: Callable[[], object]) -> str:
        with pytest.raises(InputError) as error:
            action()
        message = str(error.value)
        assert "\n" not in message and len(message) < 500
        return message

    return get
