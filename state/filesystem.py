"""The calls that change the disk, in one place that a test can replace."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

Chunk = bytes | bytearray | memoryview


class FileSystem:
    """The real calls. A subclass may count, refuse or forget them."""

    def open_write(self, path: Path, mode: int) -> int:
        """Create a new file for writing; it must not exist."""
        return os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW, mode)

    def open_append(self, path: Path, mode: int) -> int:
        """Open for appending, created when missing."""
        return os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW, mode)

    def write(self, fd: int, data: Chunk) -> int:
        return os.write(fd, data)

    def copy_range(self, source_fd: int, target_fd: int, num_bytes: int) -> int:
        return os.copy_file_range(source_fd, target_fd, num_bytes)

    def begin_flush(self, fd: int, start: int, num_bytes: int) -> None:
        """Have the disk begin with a part of a file, where it can; whether that came there is told by `fsync`.

        Linux begins to write what is said not to be needed, and takes out of its cache only what is written already.
        """
        with suppress(OSError):
            os.posix_fadvise(fd, start, num_bytes, os.POSIX_FADV_DONTNEED)

    def fchmod(self, fd: int, mode: int) -> None:
        os.fchmod(fd, mode)

    def fsync(self, fd: int) -> None:
        os.fsync(fd)

    def close(self, fd: int) -> None:
        os.close(fd)

    def truncate(self, path: Path, num_bytes: int) -> None:
        os.truncate(path, num_bytes)

    def rename(self, source: Path, target: Path) -> None:
        source.rename(target)

    def link(self, source: Path, target: Path) -> None:
        target.hardlink_to(source)

    def symlink(self, target: str, link: Path) -> None:
        link.symlink_to(target)

    def unlink(self, path: Path) -> None:
        path.unlink()

    def rmdir(self, path: Path) -> None:
        path.rmdir()

    def mkdir(self, path: Path, mode: int) -> None:
        path.mkdir(mode=mode)

    def chmod(self, path: Path, mode: int) -> None:
        path.chmod(mode)

    def fsync_path(self, path: Path) -> None:
        """Flush an existing file or folder."""
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


Fs = TypeVar("Fs", bound=FileSystem)
_current: FileSystem = FileSystem()


def current() -> FileSystem:
    """The file system in use."""
    return _current


@contextmanager
def use(fs: Fs) -> Iterator[Fs]:
    """Put another file system in place, for the whole process, until the block ends."""
    global _current
    before, _current = _current, fs
    try:
        yield fs
    finally:
        _current = before
