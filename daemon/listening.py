"""Where the page is served: `[web] listen` as a listening socket."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

SYSTEMD: Final = "systemd"
_FIRST_PASSED_FD: Final = 3
_BACKLOG: Final = 64


@dataclass(frozen=True)
class Address:
    """Where to listen; without a host the socket is the one that systemd passed."""

    host: str = ""
    port: int = 0


def parse_listen(text: str) -> Address | None:
    """The address that `[web] listen` names; None where no page is served.

    Raises:
        ValueError: it names none.
    """
    if not text:
        return None
    if text == SYSTEMD:
        return Address()
    host, _, port = text.rpartition(":")
    if not port.isascii() or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise ValueError("allowed: HOST:PORT with a port from 1 to 65535, PORT alone, or 'systemd'")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if ":" in bare and bare == host:
        raise ValueError("an IPv6 address stands in brackets: [::1]:8420")
    if any(char.isspace() or char in "/@[]" for char in bare):
        raise ValueError("the host must be a name or an address")
    return Address(bare or "127.0.0.1", int(port))


def open_socket(address: Address, env: Mapping[str, str]) -> socket.socket:
    """A listening TCP socket; no child process inherits it.

    Raises:
        OSError: the address cannot be had, or systemd passed no socket.
    """
    if not address.host:
        return _passed_socket(env)
    family, *_, target = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)[0]
    opened = socket.socket(family, socket.SOCK_STREAM)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # the service may be restarted at once
        opened.bind(target)
        opened.listen(_BACKLOG)
    except OSError:
        opened.close()
        raise
    return opened


def _passed_socket(env: Mapping[str, str]) -> socket.socket:
    """A copy of the socket that systemd passed; the original stays, for the next reload."""
    if env.get("LISTEN_PID") != str(os.getpid()) or env.get("LISTEN_FDS") != "1":
        raise OSError("systemd passed no socket: enable and start alignd.socket, then restart the service")
    os.set_inheritable(_FIRST_PASSED_FD, False)
    return socket.socket(fileno=os.dup(_FIRST_PASSED_FD))


def is_loopback(opened: socket.socket) -> bool:
    """Whether only this machine reaches the socket."""
    return ipaddress.ip_address(opened.getsockname()[0]).is_loopback


def url_of(opened: socket.socket) -> str:
    """What a browser on this machine calls the page."""
    host, port = opened.getsockname()[:2]
    if ipaddress.ip_address(host).is_unspecified:
        host = "127.0.0.1"
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"
