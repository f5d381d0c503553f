"""The only place that writes files for good: temporary file, write, size check, fsync, rename, fsync of the folder.

Every call that changes the disk goes through `filesystem.current()`, so that a test can put a model of crashes there.
A failed fsync is never retried: the caller starts again from its source.
"""

import errno
import json
import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from state.filesystem import Chunk, current

TEMPORARY_PREFIX = ".tmp-"
COPY_CHUNK_BYTES = 64 << 20
READ_BYTES = 1 << 20
FLUSH_BYTES = 128 << 20
"""After so many the disk begins with them: else it does nothing until the end of a file, however long that takes to make."""
_NO_COPY_RANGE = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}


class Writer:
    """A file that appears complete under its name, or not at all."""

    def __init__(self, path: Path, mode: int = 0o600) -> None:
        self.path = path
        self.num_bytes = 0
        self._mode = mode
        # not made from its name: that may be as long as a name can be
        self._temporary = path.with_name(f"{TEMPORARY_PREFIX}{os.getpid()}.{os.urandom(8).hex()}")
        self._fd = current().open_write(self._temporary, mode)
        self._closed = False
        self._num_begun = 0
        """Bytes that the disk was told to begin with."""

    def write(self, data: Chunk) -> None:
        view = memoryview(data).cast("B")
        while view:
            written = current().write(self._fd, view)
            self._advance(written)
            view = view[written:]

    def copy_from(self, source_fd: int, num_bytes: int) -> None:
        """Append `num_bytes` from the read position of another file, in the kernel where it can."""
        while num_bytes:
            done = self._copy_some(source_fd, min(num_bytes, COPY_CHUNK_BYTES))
            if done == 0:
                raise OSError(f"{self.path}: the file it is copied from ended {num_bytes} bytes early")
            num_bytes -= done

    def _copy_some(self, source_fd: int, num_bytes: int) -> int:
        try:
            done = current().copy_range(source_fd, self._fd, num_bytes)
        except OSError as err:
            if err.errno not in _NO_COPY_RANGE:
                raise
            data = os.read(source_fd, min(num_bytes, READ_BYTES))
            self.write(data)
            return len(data)
        self._advance(done)
        return done

    def _advance(self, num_bytes: int) -> None:
        self.num_bytes += num_bytes
        if (waiting := self.num_bytes - self._num_begun) >= FLUSH_BYTES:
            current().begin_flush(self._fd, self._num_begun, waiting)
            self._num_begun = self.num_bytes

    @contextmanager
    def reading(self) -> Iterator[int]:
        """A descriptor to read back what was written so far."""
        fd = os.open(self._temporary, os.O_RDONLY | os.O_CLOEXEC)
        try:
            yield fd
        finally:
            os.close(fd)

    def commit(self, *, sync_folder: bool = True) -> None:
        """Check the size, flush, and give the file its name."""
        size = os.fstat(self._fd).st_size
        if size != self.num_bytes:
            raise OSError(f"{self._temporary}: {size} bytes on disk after writing {self.num_bytes}")
        current().fchmod(self._fd, self._mode)  # the umask has taken bits away
        current().fsync(self._fd)
        self._close()
        current().rename(self._temporary, self.path)
        if sync_folder:
            current().fsync_path(self.path.parent)

    def abandon(self) -> None:
        """Drop what was written; a no-op after `commit`."""
        if not self._closed:
            self._close()
        if self._temporary.exists():
            current().unlink(self._temporary)

    def _close(self) -> None:
        self._closed = True  # a failed close must not be repeated: the number may be somebody else's by then
        current().close(self._fd)


@contextmanager
def writing(path: Path, mode: int = 0o600) -> Iterator[Writer]:
    """A `Writer` that is committed when the block ends well and abandoned when it does not."""
    writer = Writer(path, mode)
    try:
        yield writer
        writer.commit()
    except BaseException:
        writer.abandon()
        raise


def write_file(path: Path, data: Chunk | Iterable[Chunk], mode: int = 0o600) -> None:
    """Write a whole file under a fresh inode; readers see the old file or the new one."""
    chunks = [data] if isinstance(data, bytes | bytearray | memoryview) else data
    with writing(path, mode) as writer:
        for chunk in chunks:
            writer.write(chunk)


def write_json(path: Path, value: Any, mode: int = 0o600) -> None:
    """Write indented JSON with sorted keys, so that equal values give equal bytes. NaN is refused."""
    write_file(path, json_bytes(value), mode)


def json_bytes(value: Any) -> bytes:
    """The bytes that `write_json` writes."""
    text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return text.encode() + b"\n"


def copy_file(source: Path, target: Path, mode: int = 0o600) -> int:
    """Copy a regular file to a new inode and return its size in bytes. A symbolic link is refused."""
    fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(source))
        with writing(target, mode) as writer:
            writer.copy_from(fd, status.st_size)
        return status.st_size
    finally:
        os.close(fd)


def flush_file(path: Path) -> None:
    """Flush a file that a library wrote, and its name."""
    current().fsync_path(path)
    current().fsync_path(path.parent)


def flush_folder(path: Path) -> None:
    """Flush the names in a folder."""
    current().fsync_path(path)


def append_line(path: Path, line: bytes, mode: int = 0o600) -> None:
    """Append bytes that end in a newline, and flush them; a torn tail is the reader's to repair."""
    is_new = not path.exists()
    fd = current().open_append(path, mode)
    try:
        view = memoryview(line)
        while view:
            view = view[current().write(fd, view) :]
        current().fsync(fd)
    finally:
        current().close(fd)
    if is_new:
        current().fsync_path(path.parent)


def truncate(path: Path, num_bytes: int) -> None:
    """Cut a file to a length, and flush it."""
    current().truncate(path, num_bytes)
    current().fsync_path(path)


def make_folder(path: Path, mode: int = 0o700) -> None:
    """Create a folder and its missing parents; an existing one is left as it is."""
    missing = []
    while not path.is_dir():
        missing.append(path)
        path = path.parent
    for folder in reversed(missing):
        current().mkdir(folder, mode)
        current().chmod(folder, mode)
        current().fsync_path(folder.parent)


def publish_folder(staging: Path, target: Path) -> None:
    """Flush everything under `staging`, then give it its final name, which must be free."""
    for folder, _, names in os.walk(staging, topdown=False):
        for name in names:
            current().fsync_path(Path(folder, name))
        current().fsync_path(Path(folder))
    move(staging, target)


def move(source: Path, target: Path) -> None:
    """Rename within one file system; `target` must be free. Both folders are flushed."""
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, "there is already something with this name", str(target))
    current().rename(source, target)
    current().fsync_path(target.parent)
    if source.parent != target.parent:
        current().fsync_path(source.parent)


def replace_symlink(link: Path, target: str) -> None:
    """Point `link` at `target` by one rename: a reader sees the old target or the new one."""
    temporary = link.with_name(f"{TEMPORARY_PREFIX}{link.name}.{os.getpid()}.{os.urandom(4).hex()}")
    current().symlink(target, temporary)
    current().rename(temporary, link)
    current().fsync_path(link.parent)


def link_file(source: Path, target: Path) -> None:
    """Give an immutable file a second name; the caller flushes the folder."""
    current().link(source, target)


def set_mode(path: Path, mode: int) -> None:
    """Change the permissions of a file or folder."""
    current().chmod(path, mode)


def remove_tree(path: Path) -> None:
    """Remove a file, a link, or a folder with all in it; nothing there is fine. Links are not followed."""
    if path.is_dir() and not path.is_symlink():
        _remove_folder(path)
    elif os.path.lexists(path):
        current().unlink(path)
    else:
        return
    current().fsync_path(path.parent)


def _remove_folder(path: Path) -> None:
    folders = [path]
    for folder in folders:  # grows while it is walked, so that no depth is too deep
        for entry in sorted(folder.iterdir()):
            if entry.is_dir() and not entry.is_symlink():
                folders.append(entry)
            else:
                current().unlink(entry)
    for folder in reversed(folders):
        current().rmdir(folder)


def is_read_only(path: Path) -> bool:
    """Whether the file system of `path` is mounted so."""
    return bool(os.statvfs(path).f_flag & os.ST_RDONLY)


def free_bytes(path: Path) -> int:
    """Space that is left on the file system of `path`."""
    return shutil.disk_usage(path).free
