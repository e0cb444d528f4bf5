"""The connection to Ray, and what Ray says of lost workers."""

from __future__ import annotations

import os
import secrets
import signal
from typing import Any

from easi3r_jax.core.errors import ConfigError, UserError

#: What Ray says of an actor whose node is gone.
NODE_LOST = "node has died"


def connected(address: str) -> Any:
    """The module `ray`, connected.

    Raises:
      ConfigError: it is not installed.
      UserError: no cluster at the address.
    """
    if address == "local":
        # Ray listens on all of the machine's addresses: without the token nobody gets in.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    try:
        import ray
        from ray.exceptions import RayError
    except ImportError as error:
        raise ConfigError("--cluster needs Ray: pip install 'easi3r_jax[cluster]'.") from error
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        if address == "local":
            ray.init(address="local", include_dashboard=False, **quiet)
        else:
            ray.init(address=address, **quiet)
    except (ConnectionError, ValueError, RuntimeError, RayError) as error:
        raise UserError(
            f"--cluster={address}: no Ray cluster there ({' '.join(str(error).split())[:200]}). "
            "Start one with `ray start --head`, or use --cluster=local."
        ) from error
    for number, handler in handlers.items():  # Ray has installed its own
        signal.signal(number, handler)
    return ray


def in_words(error: Exception) -> str:
    """What Ray says of a lost worker, as the rest of a sentence."""
    from ray.exceptions import RuntimeEnvSetupError

    text = " ".join(str(error).split())
    if isinstance(error, RuntimeEnvSetupError):
        return f"could not start: {text[:300]}"
    if "error raised in its creation task" in text:
        return f"could not start: {text.rpartition('Error:')[2].strip() or text[-300:]}"
    if NODE_LOST in text:
        return "was lost: its node has died"
    if "low on memory" in text:
        return "was ended: its node ran out of memory"
    return "died (killed, out of memory, or a crash in native code)"
