"""Where the viewer and the web app listen: refused before the work where it cannot be, and told to whoever is to come.

Both programs call the flags `--host` and `--port`.
"""

from __future__ import annotations

import errno
import ipaddress
import socket

from easi3r_jax.core.errors import ConfigError


def check_address(host: str, port: int) -> int:
    """The port, or for 0 one that is free.

    Raises:
      ConfigError: the port is in use or not allowed, or the address is not this machine's.
    """
    if not 0 <= port <= 65535:
        raise ConfigError(f"--port={port}: a port is a number up to 65535.")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do
            probe.bind(address)
            probe.listen()
            return probe.getsockname()[1]
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise in_use(port) from error
        if error.errno == errno.EACCES:
            raise ConfigError(f"Port {port} needs more rights: choose a --port from 1024 to 65535.") from error
        raise ConfigError(f"Cannot listen at {host}, port {port}: {error.strerror}. Mend --host or --port.") from error


def in_use(port: int) -> ConfigError:
    """What is said of a port that another program has."""
    return ConfigError(f"Port {port} is in use: choose another --port, or 0 for one that is free.")


def is_local(host: str) -> bool:
    """Whether only this machine reaches the address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def invitation(host: str, port: int) -> str:
    """Where to look, who else can, and how to come from another machine."""
    name = f"[{host}]" if ":" in host else host
    if is_local(host):
        tunnel = f"ssh -L {port}:{name}:{port} {socket.gethostname()}"
        told = f"  http://{name}:{port} (Ctrl-C ends)"
        return f"{told}\n  from another machine: {tunnel}, then http://127.0.0.1:{port} there"
    if host in ("0.0.0.0", "::"):
        name = socket.gethostname()
    return f"  http://{name}:{port} (whoever reaches this machine can use it; Ctrl-C ends)"
