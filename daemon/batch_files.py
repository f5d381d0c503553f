"""The member files of a batch, opened without following links and read through a byte budget."""

from __future__ import annotations

import fnmatch
import gzip
import io
import os
import stat
import zlib
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from daemon.rows import BatchError
from state.text import printable

_GIB = 1 << 30
_CHUNK_BYTES = 1 << 20
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_MAX_DEPTH = 8
_MAX_SHOWN = 3

# hidden and temporary names, markers of the inbox, and notes for people: never data
_SKIPPED_NAMES = (
    *(".*", "*~", "~*", "*.part", "*.partial", "*.filepart", "*.crdownload", "*.tmp", "*.swp"),
    *("thumbs.db", "desktop.ini", "__macosx", "@eadir"),
    *("manifest.json", "reason.json", "*.done", "*.ready"),
    *("*.md", "*.rst", "readme", "readme.txt", "license", "license.txt", "licence", "licence.txt"),
    *("notice", "notice.txt", "changelog", "changelog.txt", "citation.cff"),
)


@dataclass(frozen=True, slots=True)
class Limits:
    """How much one batch may hold; a batch beyond any of these is refused."""

    max_rows: int = 1_000_000
    """Records in all files together, dropped ones included."""
    max_bytes: int = 4 * _GIB
    """Bytes of all files together, after decompression."""
    max_document_bytes: int = _GIB // 2
    """Bytes of one file that has to be held in memory whole: JSON, and compressed Parquet."""
    max_cell_chars: int = 200_000
    """Characters of one prompt turn or response."""
    max_files: int = 10_000
    """Files in a folder."""


class Budget:
    """The bytes and rows that a batch may still have, counted while they are read."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.bytes_left = limits.max_bytes
        self.rows_left = limits.max_rows

    def spend(self, file: str, *, num_bytes: int = 0, num_rows: int = 0) -> None:
        """Count what was read of a file; raises BatchError when the batch has had its share."""
        self.bytes_left -= num_bytes
        self.rows_left -= num_rows
        if self.bytes_left < 0:
            what = f"the batch holds more than {self._limits.max_bytes} bytes once unpacked"
            raise BatchError(file, None, what, hint="split it")
        if self.rows_left < 0:
            what = f"the batch holds more than {self._limits.max_rows} rows"
            raise BatchError(file, None, what, hint="split it")


@dataclass(frozen=True, slots=True)
class Member:
    """One open data file of a batch. ``name`` is its path within the batch, safe to print."""

    name: str
    raw: IO[bytes]


@dataclass(frozen=True, slots=True)
class Content:
    """The unpacked content of a member; ``compression`` is ``gzip``, ``zstd`` or empty."""

    stream: io.BufferedReader
    compression: str


def is_skipped(name: str) -> bool:
    """Whether a name within a batch folder is never data: hidden, temporary, a marker, or a note."""
    return any(fnmatch.fnmatchcase(name.lower(), pattern) for pattern in _SKIPPED_NAMES)


def open_members(path: Path, limits: Limits) -> Generator[Member, None, None]:
    """Each data file of a batch, in the order of its names, closed when the next is asked for.

    Raises:
        BatchError: a link, a device, an unreadable file, too many files, or no data file at all.
        OSError: the path is missing or the disk fails; the batch itself may be fine.
    """
    name = printable(path.name)
    with _opened(path, name, at=None) as handle:
        if not stat.S_ISDIR(os.fstat(handle).st_mode):
            yield from _member(handle, name)
            return
        num_files = 0
        for member in _walk(handle, prefix="", depth=0):
            num_files += 1
            if num_files > limits.max_files:
                raise BatchError(name, None, f"more than {limits.max_files} files", hint="join or split them")
            yield member
        if not num_files:
            raise _no_data(name, handle)


def unpacked(member: Member, budget: Budget) -> Content:
    """The member's bytes without gzip or zstd, told by its first bytes; reading spends the budget."""
    magic = member.raw.read(4)
    member.raw.seek(0)
    if magic.startswith(_GZIP):
        return Content(_buffered(gzip.GzipFile(fileobj=member.raw), member.name, budget), "gzip")
    if magic.startswith(_ZSTD):
        import pyarrow as pa  # half a second that only zstd and Parquet should cost

        return Content(_buffered(pa.CompressedInputStream(member.raw, "zstd"), member.name, budget), "zstd")
    return Content(_buffered(member.raw, member.name, budget), "")


def is_compressed(head: bytes) -> bool:
    """Whether these first bytes are gzip's or zstd's."""
    return head.startswith((_GZIP, _ZSTD))


class _Counted(io.RawIOBase):
    """A readable that spends the budget and turns faults of the packing into a BatchError."""

    def __init__(self, source: Any, name: str, budget: Budget) -> None:
        self._source, self._name, self._budget = source, name, budget

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._source.read(len(buffer))
        except (OSError, EOFError, zlib.error) as err:
            if isinstance(err, OSError) and err.errno is not None:
                raise  # the disk, not the file: try again later
            what = f"cannot be read to its end ({type(err).__name__})"
            raise BatchError(self._name, None, what, hint="cut short or damaged: write it again") from None
        self._budget.spend(self._name, num_bytes=len(data))
        buffer[: len(data)] = data
        return len(data)


def _buffered(source: Any, name: str, budget: Budget) -> io.BufferedReader:
    return io.BufferedReader(_Counted(source, name, budget), _CHUNK_BYTES)


def _walk(folder: int, *, prefix: str, depth: int) -> Iterator[Member]:
    for entry in sorted(os.listdir(folder)):
        if is_skipped(entry):
            continue
        name = prefix + printable(entry)
        with _opened(entry, name, at=folder) as handle:
            if not stat.S_ISDIR(os.fstat(handle).st_mode):
                yield from _member(handle, name)
            elif depth == _MAX_DEPTH:
                raise BatchError(name, None, f"folders deeper than {_MAX_DEPTH} levels", hint="flatten them")
            else:
                yield from _walk(handle, prefix=f"{name}/", depth=depth + 1)


def _no_data(name: str, folder: int) -> BatchError:
    """The error for a drop of nothing but names that are passed over; one such file may be the whole drop."""
    passed_over = [printable(entry) for entry in sorted(os.listdir(folder)) if is_skipped(entry)]
    if not passed_over:
        return BatchError(name, None, "the folder holds no data file", hint="put the rows into it and drop it again")
    shown = ", ".join(passed_over[:_MAX_SHOWN]) + (", …" if len(passed_over) > _MAX_SHOWN else "")
    what = "no data file: a name like this is a note's, a marker's or a temporary file's, and is passed over"
    return BatchError(shown, None, what, hint="if it holds rows, give it another name, such as rows.jsonl, and drop it")


def _member(handle: int, name: str) -> Iterator[Member]:
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        raise BatchError(name, None, "not a regular file", hint="put plain, readable files there")
    with os.fdopen(handle, "rb", closefd=False) as raw:
        yield Member(name, raw)


@contextmanager
def _opened(path: Path | str, name: str, *, at: int | None) -> Iterator[int]:
    """A descriptor of a file or folder that is not a link; a pipe without a writer does not block."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=at)
    except OSError as err:
        if fault := _unusable(path, at=at, err=err):
            raise BatchError(name, None, fault, hint="put plain, readable files there") from err
        raise
    try:
        yield handle
    finally:
        os.close(handle)


def _unusable(path: Path | str, *, at: int | None, err: OSError) -> str:
    """What is wrong with the file itself, or nothing when the system is at fault and a retry may help."""
    mode = os.stat(path, dir_fd=at, follow_symlinks=False).st_mode
    if stat.S_ISLNK(mode):
        return "a symbolic link, and links are not followed"
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        return "not a regular file"
    return "may not be read by this user" if isinstance(err, PermissionError) else ""
