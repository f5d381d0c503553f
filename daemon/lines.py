"""A member file as lines of bytes that know their place, and as the table that is read from it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BufferedReader

from daemon.batch_files import Limits
from daemon.cells import Record
from daemon.rows import BatchError

MAX_LINE_BYTES = 32 << 20
Records = Iterator[tuple[int, Record]]


@dataclass(frozen=True, slots=True)
class Table:
    """One file: ``records(columns)`` gives (row number, record); other columns may be left out of a record."""

    format: str
    columns: tuple[str, ...]
    records: Callable[[frozenset[str]], Records]


class Lines:
    """Lines of bytes that know their number and offset, so that a fault can be found again."""

    def __init__(self, stream: BufferedReader, name: str, skipped: int) -> None:
        self.stream, self.name = stream, name
        self.number = 0
        self._end = skipped
        self._length = 0

    @property
    def offset(self) -> int:
        """Where the last line starts, in bytes of the unpacked file."""
        return self._end - self._length

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        line = self.stream.readline(MAX_LINE_BYTES)
        if not line:
            raise StopIteration
        self.number += 1
        self._length = len(line)
        self._end += self._length
        return line

    def first_with_text(self) -> bytes:
        """The first line that is not blank."""
        for line in self:
            if not line.isspace():
                return line
        raise BatchError(self.name, None, "the file is empty", hint="write the rows and drop it again")

    def decoded(self, line: bytes) -> str:
        """The line as text; raises UnicodeDecodeError, or BatchError for a line that was not read to its end."""
        self.refuse_overlong(line)
        return line.decode()

    def refuse_overlong(self, line: bytes) -> None:
        """Raise BatchError for a line that was not read to its end."""
        if len(line) == MAX_LINE_BYTES:
            raise BatchError(self.name, self.number, f"a line of {MAX_LINE_BYTES} bytes or more")


def not_utf8(name: str, row: int | None, offset: int) -> BatchError:
    """The error for bytes that are not UTF-8; ``offset`` counts from 0 in the unpacked file."""
    return BatchError(name, row, f"not UTF-8 at byte {offset} of the file", hint="save it as UTF-8")


def document(stream: BufferedReader, name: str, limits: Limits, *, first: bytes = b"") -> bytes:
    """``first`` and the rest of a file that can only be read whole; raises BatchError when that is too much."""
    data = first + stream.read(max(1, limits.max_document_bytes + 1 - len(first)))
    if len(data) > limits.max_document_bytes:
        hint = "write it as JSON Lines, or as Parquet without gzip or zstd, which are read piece by piece"
        raise BatchError(name, None, f"a document of more than {limits.max_document_bytes} bytes", hint=hint)
    return data
