"""The systemd notification protocol, from the standard library."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping


class Notifier:
    """Sends states to the service manager; silent when there is none, and never fails.

    Args:
        env: where NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID are looked up.
    """

    def __init__(self, env: Mapping[str, str]) -> None:
        self._address = _address(env.get("NOTIFY_SOCKET", ""))
        self._last_status = ""
        self._last_watchdog = 0.0
        self.watchdog_s = _watchdog_s(env)
        """Time within which the manager wants a sign of life, in seconds; None when it wants none."""

    def ready(self) -> None:
        """Start-up is finished."""
        self._send("READY=1")

    def stopping(self) -> None:
        """The service began to stop."""
        self._send("STOPPING=1")

    def status(self, text: str) -> None:
        """One line for ``systemctl status``; sent only when it changed."""
        line = " ".join(text.split())
        if line != self._last_status:
            self._last_status = line
            self._send(f"STATUS={line}")

    def extend(self, seconds: float) -> None:
        """Asks for this much more time to start or to stop."""
        self._send(f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}")

    def reloading(self, monotonic_s: float) -> None:
        """The configuration is being read again; `ready` ends it."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={int(monotonic_s * 1e6)}")

    def watchdog(self, monotonic_s: float, *, healthy: bool) -> None:
        """A sign of life, at most every third of the manager's limit, and none while not ``healthy``."""
        if self.watchdog_s is None or not healthy:
            return
        if monotonic_s - self._last_watchdog >= self.watchdog_s / 3:
            self._last_watchdog = monotonic_s
            self._send("WATCHDOG=1")

    def _send(self, message: str) -> None:
        if self._address is None:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                sock.setblocking(False)
                sock.sendto(message.encode(), self._address)
        except OSError:
            return  # a missing or full manager must not stop the service


def _address(name: str) -> str | None:
    if not name.startswith(("/", "@")):
        return None
    return "\0" + name[1:] if name.startswith("@") else name


def _watchdog_s(env: Mapping[str, str]) -> float | None:
    usec = env.get("WATCHDOG_USEC", "")
    meant_for = env.get("WATCHDOG_PID", "")
    if not usec.isdecimal() or int(usec) == 0 or (meant_for and meant_for != str(os.getpid())):
        return None
    return int(usec) / 1e6
