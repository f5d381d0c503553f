"""Reading a batch: every file of a drop, whole or not at all, as rows with what was dropped and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from daemon.batch_files import Budget, Limits, Member, is_skipped, open_members, unpacked
from daemon.lines import Records, Table
from daemon.rows import BatchError, Message, Origin, Row
from daemon.signatures import Signature, identify, shown_columns
from daemon.tables import read_table

__all__ = [
    "BatchError",
    "FileReport",
    "Limits",
    "Message",
    "ParsedBatch",
    "Row",
    "is_skipped",
    "read_batch",
]

MOST_TOLD = 20
"""Rows that are named beside the first where many cannot be used."""


@dataclass(frozen=True, slots=True)
class FileReport:
    """What one member file was; holds no row text."""

    name: str
    format: str
    """json, json lines, csv, tsv or parquet."""
    compression: str
    """gzip, zstd or empty."""
    signature: str
    """The data set whose columns these are."""
    num_records: int
    num_rows: int
    """Rows taken; a record may hold none, one or (PKU-SafeRLHF) two."""
    dropped: Mapping[str, int]
    """Sides of records that were left out, by reason."""
    ignored_columns: str
    """Columns that nothing was read from."""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ParsedBatch:
    """The rows of all files in the order of their names, before screening."""

    rows: list[Row]
    files: tuple[FileReport, ...]
    dropped: Mapping[str, int] = field(default_factory=dict)
    """Sides of records that are marked safe or not marked at all, by reason."""

    @property
    def num_records(self) -> int:
        """Records read, dropped ones included."""
        return sum(file.num_records for file in self.files)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Every file's warnings, each with the file's name."""
        return tuple(f"{file.name}: {warning}" for file in self.files for warning in file.warnings)


def read_batch(path: Path, limits: Limits | None = None) -> ParsedBatch:
    """The rows of a file, or of every data file in a folder.

    Format, compression and data set are told by content. Each row's text has no NUL and no lone surrogate and is
    at most ``limits.max_cell_chars`` long; it may still be blank: screening drops that.

    Raises:
        BatchError: any file is unusable; then nothing of the batch is used.
        OSError: the path is missing or the disk fails; the batch itself may be fine.
    """
    limits = limits or Limits()
    budget, rows, files = Budget(limits), list[Row](), list[FileReport]()
    with closing(open_members(path, limits)) as members:
        for member in members:
            files.append(_read_file(member, limits, budget, rows))
    dropped = sum((Counter(file.dropped) for file in files), Counter[str]())
    return ParsedBatch(rows, tuple(files), dict(dropped))


def _read_file(member: Member, limits: Limits, budget: Budget, rows: list[Row]) -> FileReport:
    """The report of one file, its rows added to ``rows``."""
    content = unpacked(member, budget)
    table = read_table(member, content, limits, budget)
    signature = _signature(table, member.name)
    before, dropped = len(rows), Counter[str]()
    num_records, records = 0, table.records(signature.columns)
    try:
        for num_records, (row, record) in enumerate(records, 1):
            if num_records > budget.rows_left:
                break
            for outcome in signature.read(record, Origin(member.name, row)):
                if isinstance(outcome, str):
                    dropped[outcome] += 1
                else:
                    rows.append(_checked(outcome, limits))
    except BatchError as err:
        others = _unusable(islice(records, max(0, budget.rows_left - num_records)), signature, member.name, limits)
        raise _with_others(err, others) from None
    budget.spend(member.name, num_rows=num_records)
    if not num_records:
        raise _no_rows(member.name)
    return FileReport(
        name=member.name,
        format=table.format,
        compression=content.compression,
        signature=signature.name,
        num_records=num_records,
        num_rows=len(rows) - before,
        dropped=dict(dropped),
        ignored_columns=_ignored(table, signature),
        warnings=(signature.warning,) if signature.warning else (),
    )


def _unusable(records: Records, signature: Signature, name: str, limits: Limits) -> list[BatchError]:
    """What is wrong with the records that follow, so that all can be mended at once; one more than is told.

    What ends the reading is the last of it.
    """
    found: list[BatchError] = []
    try:
        for row, record in records:
            try:
                for outcome in signature.read(record, Origin(name, row)):
                    if isinstance(outcome, Row):
                        _checked(outcome, limits)
            except BatchError as err:
                found.append(err)
            if len(found) > MOST_TOLD:
                break
    except BatchError as err:
        found.append(err)
    except OSError:
        pass  # of the disk: the batch cannot be used whatever stands there
    return found


def _with_others(first: BatchError, others: Sequence[BatchError]) -> BatchError:
    """The first fault, and those of the rows after it."""
    rows_of: dict[str, list[str]] = {first.what: []}
    for other in others[:MOST_TOLD]:
        rows_of.setdefault(other.what, []).extend([] if other.row is None else [str(other.row)])
    alike = rows_of.pop(first.what)
    what = first.what + (f" (in {_rows(alike)} too)" if alike else "")
    told = [what, *(f"{_rows(rows)}: {other}" if rows else other for other, rows in rows_of.items())]
    more = ["and more"] if len(others) > MOST_TOLD else []
    return BatchError(first.file, first.row, "; ".join([*told, *more]), hint=first.hint)


def _rows(numbers: Sequence[str]) -> str:
    return f"row{'s' if len(numbers) > 1 else ''} {', '.join(numbers)}"


def _signature(table: Table, name: str) -> Signature:
    if not table.columns:
        raise _no_rows(name)
    signature = identify(table.columns, name)
    folded = Counter(column.strip().lower() for column in table.columns)
    twice = sorted(column for column in signature.columns if folded[column] > 1)
    if twice:
        raise BatchError(name, None, f"the column `{twice[0]}` is there twice", hint="keep one of them")
    return signature


def _no_rows(name: str) -> BatchError:
    return BatchError(name, None, "the file holds no rows", hint="write the rows and drop it again")


def _ignored(table: Table, signature: Signature) -> str:
    ignored = [column for column in table.columns if column.strip().lower() not in signature.columns]
    return shown_columns(ignored) if ignored else ""


def _checked(row: Row, limits: Limits) -> Row:
    # in line what `_check_text` asks, since this is done for every row
    most = limits.max_cell_chars
    if len(row.response) > most or "\0" in row.response:
        _check_text(row.response, row, limits)
    for message in row.messages:
        if len(message.content) > most or "\0" in message.content:
            _check_text(message.content, row, limits)
    return row


def _check_text(text: str, row: Row, limits: Limits) -> None:
    if len(text) > limits.max_cell_chars:
        what = f"a text of {len(text)} characters, at most {limits.max_cell_chars} are allowed"
        raise BatchError(row.source, row.row, what, hint="shorten it or leave the row out")
    if "\0" in text:
        raise BatchError(row.source, row.row, "text with a NUL character", hint="remove the character")
