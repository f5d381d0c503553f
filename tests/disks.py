"""What a disk may do to the product: be small and full, fail, or hold folders deeper than Python recurses."""

import errno
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from state.filesystem import Chunk, FileSystem

CHANGES = {
    "open_write", "open_append", "write", "copy_range", "fsync", "fsync_path", "fchmod", "truncate", "rename",
    "link", "symlink", "unlink", "rmdir", "mkdir", "chmod",
}  # fmt: skip
"""Every call that changes the disk."""

ABYSS = 1100
"""Levels of folders that no recursion of Python's gets through."""


class FullDisk(FileSystem):
    """No byte more fits, while ``is_full``."""

    def __init__(self, *, is_full: bool = True) -> None:
        self.is_full = is_full

    def write(self, fd: int, data: Chunk) -> int:
        self._check()
        return super().write(fd, data)

    def copy_range(self, source_fd: int, target_fd: int, num_bytes: int) -> int:
        self._check()
        return super().copy_range(source_fd, target_fd, num_bytes)

    def _check(self) -> None:
        if self.is_full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class DyingFileSystem(FileSystem):
    """Works for `num_calls` changes and then no more, whatever is tried to clean up; with `once`, but for that one change.

    Flushes nothing.
    """

    def __init__(self, num_calls: int, error: Callable[[], BaseException], *, once: bool = False) -> None:
        self.left = num_calls
        self._error = error
        self._once = once

    def __getattribute__(self, name: str) -> Any:
        call = super().__getattribute__(name)
        return self._counted(name, call) if name in CHANGES else call

    def _counted(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            self.left -= 1
            if self.left == -1 or (self.left < 0 and not self._once):
                if name == "write":  # torn: half of it got there
                    call(arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2])
                raise self._error()
            return None if name in ("fsync", "fsync_path") else call(*arguments)

        return run


@contextmanager
def in_memory(fallback: Path) -> Iterator[Path]:
    """An empty folder in memory where there is one, so that flushing costs nothing."""
    if not Path("/dev/shm").is_dir():
        yield fallback
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


@contextmanager
def mounted(disk: Path, num_mib: int) -> Iterator[Path]:
    """A tmpfs of this size at `disk`, a new folder; skips the test for who may not mount one."""
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={num_mib}m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a tmpfs needs root")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def fill(disk: Path) -> Path:
    """Write until not one byte more fits; gives the file that took the room."""
    path = disk / "filler"
    with path.open("ab", buffering=0) as file:
        for size in (1 << 16, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError as err:
                assert err.errno == errno.ENOSPC
    return path


def make_deep(folder: Path, levels: int = ABYSS) -> Path:
    """A folder with so many levels of folders below it; `mkdir -p` of the library would recurse itself."""
    for _ in range(levels + 1):
        folder.mkdir()
        folder = folder / "d"
    return folder.parent
