"""The address at which the viewer and the web app listen: checked before any work, and how to connect to it."""

from __future__ import annotations

import errno
import ipaddress
import socket

from easi3r_jax.core.errors import ConfigError


def check_address(host: str, port: int) -> int:
    """The port itself, or a free one for port 0.

    Raises:
      ConfigError: the port is in use or not permitted, or the address does not belong to this machine.
    """
    if not 0 <= port <= 65535:
        raise ConfigError(f"Port {port}: a port is a number from 0 to 65535.")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do
            probe.bind(address)
            probe.listen()
            return probe.getsockname()[1]
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise port_in_use(port) from error
        if error.errno == errno.EACCES:
            raise ConfigError(f"No permission to use port {port}: choose one from 1024 to 65535.") from error
        raise ConfigError(f"Cannot listen on {host}, port {port}: {error.strerror}. Check host and port.") from error


def port_in_use(port: int) -> ConfigError:
    """The error for a port that another program uses."""
    return ConfigError(f"Port {port} is in use: choose another, or 0 for any free port.")


def is_local(host: str) -> bool:
    """Whether the address can be reached from this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def connection_hint(host: str, port: int) -> str:
    """Text for the user: the URL, who can reach it, and how to connect from another machine."""
    name = f"[{host}]" if ":" in host else host
    if is_local(host):
        tunnel = f"ssh -L {port}:{name}:{port} {socket.gethostname()}"
        url = f"  http://{name}:{port} (Ctrl-C stops)"
        return f"{url}\n  from another machine: {tunnel}, then http://127.0.0.1:{port} there"
    if host in ("0.0.0.0", "::"):
        name = socket.gethostname()
    return f"  http://{name}:{port} (anyone who can reach this machine can use it; Ctrl-C stops)"
