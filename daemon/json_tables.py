"""The records of JSON and JSON Lines files."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from itertools import chain
from typing import Any

import msgspec

from daemon.batch_files import Limits
from daemon.cells import Record
from daemon.lines import Lines, Records, Table, document, not_utf8
from daemon.rows import BatchError
from daemon.signatures import fits_a_signature

_decode = msgspec.json.Decoder().decode
_MAX_VALUES = 16_000_000
"""Of one document: a value of two bytes takes up to a hundred once it is decoded."""


def json_objects(first: bytes, lines: Lines, limits: Limits) -> Table:
    """A file that opens with `{`: JSON Lines, or one object over one or many lines."""
    rest = lines.stream.peek(1).strip()
    cut_short = rest.startswith(b"{") and not first.rstrip().endswith((b"{", b"[", b",", b":"))
    if not cut_short and (not rest or not _is_json(first)):
        return json_document(document(lines.stream, lines.name, limits, first=first), lines)
    number, head = lines.number, _json_object(first, lines)
    return _keyed("json lines", head, chain([(number, head)], _json_lines(lines)))


def _is_json(line: bytes) -> bool:
    try:
        _decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True


def _json_lines(lines: Lines) -> Records:
    for line in lines:
        if not line.isspace():
            yield lines.number, _json_object(line, lines)


def _json_object(line: bytes, lines: Lines) -> Record:
    try:
        value = _decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        lines.refuse_overlong(line)
        raise _json_fault(line, lines, is_document=False) from None
    if isinstance(value, dict):
        return value
    raise BatchError(lines.name, lines.number, "not an object", hint='every line is like {"prompt": …, "response": …}')


def json_document(data: bytes, lines: Lines) -> Table:
    """A list of objects, an object that holds one such list, or a single object that is a row itself."""
    num_values = sum(map(data.count, (b",", b"[", b"{")))  # more by what of it stands in texts, never less
    if num_values > _MAX_VALUES:
        what = f"a document of more than {_MAX_VALUES} values, which would not fit into memory"
        raise BatchError(lines.name, None, what, hint="write it as JSON Lines, or split it")
    try:
        value = _decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise _json_fault(data, lines, is_document=True) from None
    elements = _listed(value) if isinstance(value, dict) else value
    for row, element in enumerate(elements, 1):
        if not isinstance(element, dict):
            raise BatchError(lines.name, row, "not an object", hint="a JSON batch is a list of objects")
    head = elements[0] if elements else {}
    return _keyed("json", head, enumerate(elements, 1))


def _listed(value: Record) -> list[Any]:
    lists = [v for v in value.values() if isinstance(v, list) and v and isinstance(v[0], dict)]
    return lists[0] if len(lists) == 1 and not fits_a_signature(value) else [value]


def _keyed(form: str, head: Record, records: Iterable[tuple[int, Record]]) -> Table:
    """A table of objects; keys are folded only where the first object shows that they need it."""
    folded = all(key == key.strip().lower() for key in head)
    renamed = records if folded else ((row, {k.strip().lower(): v for k, v in r.items()}) for row, r in records)
    return Table(form, tuple(head), lambda _: iter(renamed))


def _json_fault(data: bytes, lines: Lines, *, is_document: bool) -> BatchError:
    """What is wrong with JSON that was not accepted, found with the slower parser that knows the line."""
    try:
        text = data.decode()
        json.loads(text)
    except UnicodeDecodeError as err:
        return not_utf8(lines.name, None if is_document else lines.number, lines.offset + err.start)
    except RecursionError:
        return _at_line(lines.name, lines.number, "JSON that is nested too deeply", is_document=is_document)
    except json.JSONDecodeError as err:
        what = "JSON that ends too early" if _ends_early(err) else "not valid JSON"
        # a fault behind the line's own end stands in the next one for the parser
        line = lines.number + (err.lineno - 1 if is_document else 0)
        return _at_line(lines.name, line, what, is_document=is_document)
    except ValueError:  # Python's own limit of digits
        pass
    what, odd = _odd_value(text)
    line = lines.number + (text.count("\n", 0, odd.start()) if odd else 0)
    return _at_line(lines.name, line, what, is_document=is_document)


def _odd_value(text: str) -> tuple[str, re.Match[str] | None]:
    """What the slower parser passes over, and where it stands."""
    if odd := _LONE_SURROGATE.search(text):
        return "text with a lone surrogate", odd
    if odd := _NOT_A_NUMBER.search(text):
        return "NaN or Infinity, which JSON does not have", odd
    return "a number that is out of every range", _LONG_NUMBER.search(text)


def _ends_early(err: json.JSONDecodeError) -> bool:
    left = len(err.doc.rstrip()) - err.pos
    cut_escape = err.msg.startswith("Invalid \\") and left <= len("\\uXXXX")
    return left <= 0 or cut_escape or err.msg.startswith("Unterminated")


_LONE_SURROGATE = re.compile(
    r"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB]..)\\u[dD][c-fC-F][0-9a-fA-F]{2}"
)
_LONG_NUMBER = re.compile(r"\d{300}|\d[eE]\+?\d{3}")
_NOT_A_NUMBER = re.compile(r"[:,\[]\s*(NaN|-?Infinity)")


def _at_line(name: str, line: int, what: str, *, is_document: bool) -> BatchError:
    hint = "write the file again"
    if is_document:  # there a row is an element, so the line has to be told apart
        return BatchError(name, None, f"{what} at line {line}", hint=hint)
    return BatchError(name, line, what, hint=hint)
