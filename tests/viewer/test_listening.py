"""The address at which servers listen."""

import socket

import pytest

from easi3r_jax.core.errors import ConfigError
from easi3r_jax.viewer.listening import check_address, connection_hint, is_local


def test_a_port_in_use_is_refused_and_a_free_one_is_found():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"Port {port} is in use: choose another, or 0"):
            check_address("127.0.0.1", port)
    assert check_address("127.0.0.1", port) == port
    assert check_address("127.0.0.1", 0) > 0


@pytest.mark.parametrize(
    ("host", "port", "says"),
    [
        ("192.0.2.7", 8080, "Check host"),  # reserved for documentation (RFC 5737), so not this machine's
        ("no such name", 0, "Check host"),
        ("127.0.0.1", 70_000, "0 to 65535"),
        ("127.0.0.1", -1, "0 to 65535"),
    ],
)
def test_an_invalid_address_is_refused(host, port, says):
    with pytest.raises(ConfigError, match=says):
        check_address(host, port)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_loopback_addresses_are_local(host):
    assert is_local(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.4", "localhost.example", ""])
def test_all_other_addresses_are_not_local(host):
    assert not is_local(host)


def test_the_hint_says_who_can_connect_and_how():
    assert "ssh -L 7860:127.0.0.1:7860 " in connection_hint("127.0.0.1", 7860)
    assert "http://[::1]:80 " in connection_hint("::1", 80) and "ssh -L 80:[::1]:80 " in connection_hint("::1", 80)
    for host in ("0.0.0.0", "::", "192.168.1.4"):
        hint = connection_hint(host, 7860)
        assert "anyone who can reach" in hint and "ssh" not in hint
    assert socket.gethostname() in connection_hint("0.0.0.0", 7860) and "192.168.1.4:7860" in connection_hint(
        "192.168.1.4", 7860
    )
