"""What a batch is made of: rows of chat turns with their harmful response, and the error that names a place."""

from __future__ import annotations

import msgspec

from state.text import shown


class Message(msgspec.Struct, frozen=True, gc=False):
    """One turn of a chat; ``role`` is ``system``, ``user`` or ``assistant``."""

    role: str
    content: str


class Row(msgspec.Struct, frozen=True, gc=False):
    """One (prompt, harmful response) pair.

    ``messages`` are the turns that stand before the response, mostly a single user turn. ``source`` is the
    member file's name in its batch; ``row`` is its place there: the line of a JSON Lines file, the record of a
    CSV or TSV file (the header is 1, as a spreadsheet counts), the element of a JSON list or Parquet file (from 1).
    """

    messages: tuple[Message, ...]
    response: str
    category: str | None
    source: str
    row: int


class BatchError(Exception):
    """A batch cannot be used: quarantine it whole and go on with the next.

    Args:
        file: name of the member file.
        row: row or line in that file, or None when it is about the whole file.
        what: what is wrong, without any text from the rows.
        hint: what to do about it.
    """

    def __init__(self, file: str, row: int | None, what: str, *, hint: str = "") -> None:
        self.file, self.row, self.what, self.hint = file, row, shown(what), hint
        place = file if row is None else f"{file}, row {row}"
        super().__init__(f"{place}: {self.what}" + (f"; {hint}" if hint else ""))


class Origin(msgspec.Struct, frozen=True, gc=False):
    """Where a record stands: member file and row."""

    source: str
    row: int

    def error(self, what: str, *, hint: str = "") -> BatchError:
        """The error to raise about this record."""
        return BatchError(self.source, self.row, what, hint=hint)
