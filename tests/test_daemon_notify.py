"""The service manager's protocol, against a real socket."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon.notify import Notifier


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(1)
        yield sock


def _notifier(manager: socket.socket, **extra: str) -> Notifier:
    return Notifier({"NOTIFY_SOCKET": manager.getsockname(), **extra})


def _received(manager: socket.socket) -> list[str]:
    manager.setblocking(False)
    found = []
    try:
        while True:
            found.append(manager.recv(4096).decode())
    except BlockingIOError:
        return found


def test_states_arrive_as_the_protocol_writes_them(manager: socket.socket) -> None:
    notifier = _notifier(manager)
    notifier.extend(1.5)
    notifier.ready()
    notifier.reloading(2.0)
    notifier.stopping()
    assert _received(manager) == [
        "EXTEND_TIMEOUT_USEC=1500000",
        "READY=1",
        "RELOADING=1\nMONOTONIC_USEC=2000000",
        "STOPPING=1",
    ]


def test_status_is_one_line_and_sent_only_when_it_changed(manager: socket.socket) -> None:
    notifier = _notifier(manager)
    notifier.status("idle\nREADY=1")
    notifier.status("idle READY=1")
    notifier.status("training")
    assert _received(manager) == ["STATUS=idle READY=1", "STATUS=training"]


def test_abstract_socket_is_reached() -> None:
    name = f"alignd-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind("\0" + name)
        sock.settimeout(1)
        Notifier({"NOTIFY_SOCKET": "@" + name}).ready()
        assert sock.recv(100) == b"READY=1"


@pytest.mark.parametrize("env", [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "/nowhere/at/all"}])
def test_without_a_manager_nothing_happens(env: dict[str, str]) -> None:
    notifier = Notifier(env)
    notifier.ready()
    notifier.watchdog(1e9, healthy=True)


def test_watchdog_is_pinged_at_least_twice_per_limit_and_not_more_than_needed(manager: socket.socket) -> None:
    notifier = _notifier(manager, WATCHDOG_USEC="30000000", WATCHDOG_PID=str(os.getpid()))
    for second in range(100, 161):
        notifier.watchdog(float(second), healthy=True)
    assert _received(manager) == ["WATCHDOG=1"] * 7


def test_watchdog_is_not_pinged_while_unhealthy(manager: socket.socket) -> None:
    _notifier(manager, WATCHDOG_USEC="30000000").watchdog(1e6, healthy=False)
    assert _received(manager) == []


@pytest.mark.parametrize("env", [{"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"}, {}])
def test_watchdog_of_somebody_else_is_left_alone(env: dict[str, str]) -> None:
    assert Notifier(env).watchdog_s is None
