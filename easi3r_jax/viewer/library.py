"""viser, imported when a viewer is made and not before."""

from __future__ import annotations

from typing import Any

from easi3r_jax.core.errors import ConfigError


def library() -> Any:
    """viser, which only the viewer needs.

    Raises:
      ConfigError: it is not installed.
    """
    try:
        import viser
    except ImportError as error:
        raise ConfigError(f"The viewer needs viser: pip install -e '.[viewer]' ({error}).") from error
    return viser
