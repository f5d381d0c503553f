"""The records of one file, its format told by its content: JSON, JSON Lines, CSV, TSV or Parquet."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from itertools import chain

from daemon.batch_files import Budget, Content, Limits, Member, is_compressed
from daemon.json_tables import json_document, json_objects
from daemon.lines import Lines, Records, Table, document, not_utf8
from daemon.parquet_tables import parquet_table
from daemon.rows import BatchError
from daemon.signatures import fits_a_signature, has_names

_BOM = b"\xef\xbb\xbf"
_PARQUET = b"PAR1"
_DELIMITERS = ((",", "csv"), ("\t", "tsv"), (";", "csv"))
_HEAD_BYTES = 64
_JSON_NAME = re.compile(r"\.(json|jsonl|ndjson)(\.(gz|zst))?$", re.IGNORECASE)
_JSON_MEMBER = re.compile(r'"\s*:\s*["\[{0-9tfn-]')
_CSV_HINT = "quote cells and double the quotes in them"
_TEXT_HINT = "a batch is UTF-8 JSON, JSON Lines, CSV, TSV or Parquet, plain or in gzip or zstd"


def read_table(member: Member, content: Content, limits: Limits, budget: Budget) -> Table:
    """The file's columns and, read as they are asked for, its records.

    Raises:
        BatchError: the file is empty, damaged, not UTF-8, or of no known format.
    """
    stream, name = content.stream, member.name
    head = stream.peek(_HEAD_BYTES)[:_HEAD_BYTES]
    if head.startswith(_PARQUET):
        whole = document(stream, name, limits) if content.compression else None
        return parquet_table(member, whole, limits, budget)
    _refuse_binary(head, name)
    skipped = len(stream.read(len(_BOM))) if head.startswith(_BOM) else 0
    lines = Lines(stream, name, skipped)
    first = lines.first_with_text()
    if first.lstrip().startswith(b"["):
        return json_document(document(stream, name, limits, first=first), lines)
    if first.lstrip().startswith(b"{"):
        return json_objects(first, lines, limits)
    return _delimited(first, lines, limits)


def _refuse_binary(head: bytes, name: str) -> None:
    if not head:
        raise BatchError(name, None, "the file is empty", hint="write the rows and drop it again")
    if is_compressed(head):
        raise BatchError(name, None, "compressed twice", hint="compress it once or not at all")
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise BatchError(name, None, "not UTF-8 but UTF-16", hint="save it as UTF-8")
    if b"\0" in head:
        raise BatchError(name, None, "a binary format that is not known", hint=_TEXT_HINT)


def _delimited(first: bytes, lines: Lines, limits: Limits) -> Table:
    start = lines.number
    try:
        text = lines.decoded(first)
        headers = [(next(csv.reader([text], delimiter=sign), []), sign, form) for sign, form in _DELIMITERS]
    except (csv.Error, UnicodeDecodeError) as err:
        raise _csv_fault(err, lines, start) from None
    header, sign, form = max(headers, key=lambda found: (fits_a_signature(found[0]), len(found[0])))
    if not fits_a_signature(header):
        _refuse_text(text, header, lines)
    names = [column.strip().lower() for column in header]
    return Table(form, tuple(header), lambda _: _csv_records(text, lines, (names, sign, start), limits))


def _refuse_text(first: str, header: list[str], lines: Lines) -> None:
    """Raise BatchError when a first line that names no known columns is rather no line of a table at all."""
    if _JSON_NAME.search(lines.name) or _is_like_json(first, lines):
        what = f"not valid JSON: line {lines.number} begins with neither {{ nor ["
        hint = "cut at its start, or with a comment above it? JSON is a list of objects, JSON Lines one object a line"
        raise BatchError(lines.name, None, what, hint=hint)
    if not has_names(header):
        what = f"neither JSON nor a table: line {lines.number} does not look like a line of column names"
        raise BatchError(lines.name, None, what, hint=f"{_TEXT_HINT}; CSV begins with a header such as prompt,response")


def _is_like_json(first: str, lines: Lines) -> bool:
    """Whether the line is a JSON value or part of an object, or the line after it begins an object."""
    if _JSON_MEMBER.search(first) or lines.stream.peek(1).lstrip().startswith((b'{"', b"[{")):
        return True
    try:
        json.loads(first)
    except ValueError:
        return False
    return True


def _csv_records(first: str, lines: Lines, layout: tuple[list[str], str, int], limits: Limits) -> Records:
    names, sign, start = layout
    before = csv.field_size_limit(limits.max_cell_chars)  # of the whole process, so put back
    try:
        reader = csv.reader(chain([first], map(lines.decoded, lines)), delimiter=sign, strict=True)
        for row, cells in _csv_cells(reader, lines, start):
            if len(cells) != len(names):
                what = f"{len(cells)} cells where the header has {len(names)}"
                raise BatchError(lines.name, row, what, hint="quote cells that hold the delimiter or a line break")
            yield row, dict(zip(names, cells, strict=True))
    finally:
        csv.field_size_limit(before)


def _csv_cells(reader: Iterator[list[str]], lines: Lines, start: int) -> Iterator[tuple[int, list[str]]]:
    """The records that are not blank, without the header, which is number ``start``."""
    row = start - 1
    try:
        for row, cells in enumerate(reader, start):
            if cells and row > start:
                yield row, cells
    except (csv.Error, UnicodeDecodeError) as err:
        raise _csv_fault(err, lines, row + 1) from None


def _csv_fault(err: csv.Error | UnicodeDecodeError, lines: Lines, row: int) -> BatchError:
    if isinstance(err, UnicodeDecodeError):
        return not_utf8(lines.name, row, lines.offset + err.start)
    return BatchError(lines.name, row, f"not valid CSV ({err})", hint=_CSV_HINT)  # its messages hold no cell text
