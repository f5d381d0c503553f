"""One writer at a time, by flock: the lock dies with its process, so a stale one cannot exist."""

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from state.errors import LockedError

POLL_S = 0.02


@contextmanager
def hold(path: Path, purpose: str, wait_s: float = 0) -> Iterator[None]:
    """Hold the lock at `path` until the block ends.

    Args:
        purpose: what the holder does with it; shown to whoever finds it locked.
        wait_s: how long to wait for another holder; 0 gives up at once.
    Raises:
        LockedError: somebody else holds it; names the process and its purpose.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        _acquire(fd, path, time.monotonic() + wait_s)
        _sign(fd, purpose)
        yield
    finally:
        os.close(fd)


def holder(path: Path) -> tuple[int, str] | None:
    """Process id and purpose of whoever holds the lock now; None when it is free."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    try:
        return None if _try_lock(fd, fcntl.LOCK_SH) else _signature(fd)
    finally:
        os.close(fd)


@contextmanager
def taken(path: Path) -> Iterator[bool]:
    """Try to hold a file or folder by a lock on itself until the block ends; False when somebody else holds it.

    What cannot be opened, or is gone, can be held by nobody: True. Nothing is written.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        yield True
        return
    try:
        yield _try_lock(fd, fcntl.LOCK_EX)
    finally:
        os.close(fd)


@contextmanager
def kept(path: Path) -> Iterator[bool]:
    """Keep a file or folder from being taken away, beside others who keep it, until the block ends; False: it is gone.

    Whoever removes something holds it through `taken`, which fails meanwhile.
    """
    fd = _open_kept(path)
    try:
        yield fd is not None
    finally:
        if fd is not None:
            os.close(fd)


def _open_kept(path: Path) -> int | None:
    """A descriptor with a shared lock on what has this name now; None when nothing has it."""
    while True:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            return None
        # what is taken is about to go; what was swapped in between the two calls has another inode
        if _try_lock(fd, fcntl.LOCK_SH) and _is_named(fd, path):
            return fd
        os.close(fd)
        time.sleep(POLL_S)


def _is_named(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.lstat())
    except FileNotFoundError:
        return False


def is_taken(path: Path) -> bool:
    """Whether a living process holds a file or folder through `taken`."""
    with taken(path) as is_ours:
        return not is_ours


def _acquire(fd: int, path: Path, deadline: float) -> None:
    while not _try_lock(fd, fcntl.LOCK_EX):
        if time.monotonic() >= deadline:
            pid, purpose = _signature(fd)
            raise LockedError(
                f"{path} is held by process {pid} ({purpose})",
                "wait for it to finish, or stop that process; the lock goes with it",
            )
        time.sleep(POLL_S)


def _try_lock(fd: int, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _sign(fd: int, purpose: str) -> None:
    os.ftruncate(fd, 0)
    os.pwrite(fd, json.dumps({"pid": os.getpid(), "purpose": purpose}).encode(), 0)


def _signature(fd: int) -> tuple[int, str]:
    # the holder may be between taking the lock and signing it
    try:
        content = json.loads(os.pread(fd, 4096, 0))
        return int(content["pid"]), str(content["purpose"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return 0, "not yet signed"
