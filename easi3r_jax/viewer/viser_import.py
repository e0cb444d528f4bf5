"""Imports viser when a viewer is made, and not before: it is an optional dependency."""

from __future__ import annotations

from typing import Any

from easi3r_jax.core.errors import ConfigError


def import_viser() -> Any:
    """The module viser.

    Raises:
      ConfigError: viser is not installed.
    """
    try:
        import viser
    except ImportError as error:
        raise ConfigError(f"The viewer needs viser: pip install -e '.[viewer]' ({error}).") from error
    return viser
