"""Wakes the control loop when something moves in the inbox; carries no data, and may miss anything."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal

import structlog
from watchdog.events import (
    DirCreatedEvent,
    DirMovedEvent,
    FileClosedEvent,
    FileCreatedEvent,
    FileModifiedEvent,
    FileMovedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers import Observer
from watchdog.observers.api import BaseObserver

from daemon.log import WATCHER_LOST, WATCHER_STARTED

Mode = Literal["auto", "inotify", "poll"]

_NETWORK: Final = {
    "nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "lustre", "beegfs", "gpfs",
    "fuse.sshfs", "fuse.s3fs", "fuse.rclone", "fuse.glusterfs", "virtiofs", "vboxsf", "drvfs",
}  # fmt: skip
"""File systems that others write to without this machine's kernel noticing."""

# Not `opened` and `closed_no_write`: the scan itself causes those, and would wake itself for ever.
_EVENTS: Final[list[type[FileSystemEvent]]] = [
    FileCreatedEvent,
    FileModifiedEvent,
    FileMovedEvent,
    FileClosedEvent,
    DirCreatedEvent,
    DirMovedEvent,
]

_library_log: Final = logging.getLogger("watchdog.observers.inotify")
_log = structlog.get_logger()


class Watcher:
    """Watches one folder, and knows when it has gone blind.

    Args:
        wake: called on the watching thread; must only set a flag.
    """

    def __init__(self, root: Path, mode: Mode, wake: Callable[[], None]) -> None:
        self._root = root
        self._mode = mode
        self._wake = wake
        self._observer: BaseObserver | None = None
        self._watched: tuple[int, int] | None = None
        self.is_polling = False
        """True when nothing wakes the loop, which must then look by itself."""

    def start(self) -> None:
        """Starts watching, or falls back to polling when the system cannot watch this folder."""
        self.stop()
        self.is_polling = self._mode == "poll" or (self._mode == "auto" and is_network(self._root))
        self._watched = _identity(self._root)
        if not self.is_polling:
            self._observe()
        _log.info(WATCHER_STARTED, inbox=str(self._root), mode="poll" if self.is_polling else "inotify")

    def is_healthy(self) -> bool:
        """Whether events of the folder that now has this name would still arrive.

        A folder that was made anew may have the inode of the one before; what falls into it is found by the next look at all.
        """
        if _identity(self._root) != self._watched:
            return False
        if self._observer is None:
            return self.is_polling
        return self._observer.is_alive() and _is_reading(self._observer)

    def stop(self) -> None:
        """Ends the watching thread; does nothing when there is none."""
        if self._observer is None:
            return
        _library_log.disabled = True  # it calls its own orderly end an error
        self._observer.stop()
        self._observer.join(timeout=2.0)
        _library_log.disabled = False
        self._observer = None

    def _observe(self) -> None:
        observer = Observer()
        try:
            observer.schedule(_Wake(self._wake), str(self._root), recursive=True, event_filter=_EVENTS)
            observer.start()
        except (OSError, RecursionError) as err:
            # usually fs.inotify.max_user_watches, or a folder deeper than the library recurses; a folder that is
            # looked at every second loses nothing
            _log.warning(WATCHER_LOST, cause=getattr(err, "strerror", None) or type(err).__name__)
            self.is_polling = True
            return
        self._observer = observer
        if not _is_reading(observer):
            self.stop()
            self.is_polling = True


class _Wake(FileSystemEventHandler):
    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake

    def on_any_event(self, event: FileSystemEvent) -> None:
        self._wake()


def _is_reading(observer: BaseObserver) -> bool:
    """Whether events would still come through all threads that pass them on.

    The last one is the process's only reader of inotify: the library does not tell of its end, nor does it replace it.
    A very deep folder that appears while it runs ends it.
    """
    readers = [getattr(emitter, "_inotify_fd", emitter) for emitter in observer.emitters]
    return all(thread.is_alive() for thread in (*observer.emitters, *readers))


def is_network(path: Path) -> bool:
    """Whether other machines can write to the file system of ``path``."""
    return _mounted_type(path) in _NETWORK


def _mounted_type(path: Path) -> str:
    try:
        device = path.stat().st_dev
    except OSError:
        return ""  # watching it will fail as well, and then it is polled
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines():
        fields = line.split()
        if fields[2] == wanted:
            return fields[fields.index("-") + 1]
    return ""


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
