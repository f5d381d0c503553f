"""What a disk may do to the product: be small and full, fail, or hold folders deeper than Python recurses."""

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from state.filesystem import Chunk, FileSystem

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
