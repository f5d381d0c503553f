"""The audit file: one JSON line per change, each chained to the line before by its hash.

A line is first an outbox row of the ledger, in the same transaction as the change itself; `flush` then appends it.
The ledger keeps the number and hash of the last line, so that a cut is seen too.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, BinaryIO

from state import durable
from state.errors import StoreCorruptError
from state.rows import AuditRow

if TYPE_CHECKING:
    from state.core import StoreCore
    from state.ledger import Ledger

FIRST_PREV = "0" * 64
_TOO_BIG = 1 << 63
_BLOCK_BYTES = 1 << 16
_DAMAGED_HINT = (
    "`alignd audit --verify` names every damaged line; starting the service mends a last line that was cut short"
)
_SEQ, _HASH, _OFFSET = "audit_seq", "audit_hash", "audit_offset"


def record(ledger: Ledger, action: str, subject: str, *, actor: str, now: str, details: dict[str, Any]) -> None:
    """Add a line to the outbox, chained; call it inside the transaction of the change."""
    facts: dict[str, Any] = {
        "seq": int(ledger.note(_SEQ, "0")) + 1,
        "at": now,
        "actor": actor,
        "action": action,
        "subject": subject,
        "details": details,
        "prev": ledger.note(_HASH, FIRST_PREV),
    }
    row = AuditRow(**facts, hash=_digest(facts))
    ledger.save(row)
    ledger.set_note(_SEQ, str(row.seq))
    ledger.set_note(_HASH, row.hash)


def flush(store: StoreCore) -> int:
    """Append the outbox to the file, flushed to disk, and return how many rows it held; repairs a torn tail.

    Safe to repeat after a crash at any point: rows leave the outbox only when the file holds them.
    """
    rows = store.ledger.outbox()
    if not rows:
        return 0
    expected = b"".join(_encode(row) for row in rows)
    missing = _cut_torn_tail(store, expected)
    if missing:
        durable.append_line(store.audit_path, missing)
    if missing != expected:  # whoever wrote the rest may have been killed before it flushed that
        durable.flush_file(store.audit_path)
    with store.ledger.transaction():
        store.ledger.clear_outbox(rows[-1].seq)
        store.ledger.set_note(_OFFSET, str(store.audit_path.stat().st_size))
    return len(rows)


def read(store: StoreCore) -> list[AuditRow]:
    """All lines of the file, not checked against the chain.

    Raises:
        StoreCorruptError: a line is no audit line, such as one that a crash cut short; names it.
    """
    return [_required(store, number, line) for number, line in enumerate(_lines(store), 1)]


def newest(store: StoreCore, limit: int, *, before: int | None = None, about: str = "") -> list[AuditRow]:
    """At most `limit` lines of the file, newest first, read from its end; not checked against the chain.

    What follows the last line break is left out: it is being written, or a crash cut it short.

    Args:
        before: only lines with a smaller number.
        about: only lines in which this name or digest stands.
    Raises:
        StoreCorruptError: a line is no audit line.
    """
    if not store.audit_path.exists():
        return []
    found: list[AuditRow] = []
    with store.audit_path.open("rb") as file:
        end = file.seek(0, os.SEEK_END) if before is None else _offset_of(store, file, before)
        for line in _lines_backwards(file, end):
            if len(found) == limit:
                break
            if about.encode() in line:
                found.append(_row_of(store, line))
    return found


def _offset_of(store: StoreCore, file: BinaryIO, seq: int) -> int:
    """Where the first line with this number or a larger one begins, found by halving."""
    low, high = 0, file.seek(0, os.SEEK_END)
    while low < high:
        middle = (low + high) // 2
        file.seek(middle)
        skipped = len(file.readline()) if middle else 0
        line = file.readline()
        if not line.endswith(b"\n") or _row_of(store, line).seq >= seq:
            high = middle
        else:
            low = middle + skipped + 1
    file.seek(low)
    return low + len(file.readline()) if low else 0


def _lines_backwards(file: BinaryIO, end: int) -> Iterator[bytes]:
    """The whole lines before an offset, without their breaks, last to first."""
    left, begun, is_last = end, b"", True
    while left:
        step = min(left, _BLOCK_BYTES)
        left -= step
        file.seek(left)
        begun, *lines = (file.read(step) + begun).split(b"\n")
        if lines and is_last:
            lines.pop()  # what follows the last break
            is_last = False
        yield from reversed(lines)
    if begun and not is_last:
        yield begun


def _row_of(store: StoreCore, line: bytes) -> AuditRow:
    row = _parse(line)
    if row is None:
        raise StoreCorruptError(f"{store.audit_path}: a line is no audit line", _DAMAGED_HINT)
    return row


def verify(store: StoreCore) -> list[str]:
    """What is wrong with the chain, each naming its line; empty when all is well.

    What looks wrong is looked at again under the store's lock: somebody may have added a line between the reading of
    the file and of the ledger.
    """
    if not _chain_faults(store):
        return []
    with store._changing("check the audit file"):
        return _chain_faults(store)


def _chain_faults(store: StoreCore) -> list[str]:
    found = []
    seq, last = 0, FIRST_PREV
    for number, line in enumerate(_lines(store), 1):
        row = _parse(line)
        if row is None:
            found.append(f"line {number}: is no audit line")
            continue
        found += _faults(row, number, line, expected_seq=seq + 1, expected_prev=last)
        seq, last = row.seq, row.hash
    return found + _end_faults(store, seq, last)


def _faults(row: AuditRow, number: int, line: bytes, *, expected_seq: int, expected_prev: str) -> list[str]:
    facts = asdict(row)
    del facts["hash"]
    found = []
    if row.seq != expected_seq:
        found.append(f"line {number}: has number {row.seq}, expected {expected_seq}")
    elif row.prev != expected_prev:
        found.append(f"line {number}: does not follow the line before it")
    if _digest(facts) != row.hash or _encode(row) != line:
        found.append(f"line {number}: was changed after it was written")
    return found


def _end_faults(store: StoreCore, seq: int, last: str) -> list[str]:
    pending = store.ledger.outbox()
    if pending and pending[0].seq > seq:
        expected_seq, expected_hash = pending[0].seq - 1, pending[0].prev
    else:
        expected_seq, expected_hash = int(store.ledger.note(_SEQ, "0")), store.ledger.note(_HASH, FIRST_PREV)
    if seq < expected_seq:
        return [f"line {seq + 1}: lines {seq + 1} to {expected_seq} are missing"]
    if seq > expected_seq:
        return [f"line {expected_seq + 1}: the ledger knows of no line after {expected_seq}"]
    return [] if last == expected_hash else [f"line {seq}: is not the last line that the ledger knows"]


def _cut_torn_tail(store: StoreCore, expected: bytes) -> bytes:
    """Cut what a crash or a fault left behind the last settled line; return what is to be appended.

    Also whole lines are cut and written again: they may never have reached the disk.
    """
    settled = int(store.ledger.note(_OFFSET, "0"))
    if not store.audit_path.exists():
        return expected
    with store.audit_path.open("rb") as file:
        file.seek(settled)
        tail = file.read()
    if tail.startswith(expected) and tail != expected:
        return b""  # somebody else wrote there: `verify` tells of it
    if tail:
        durable.truncate(store.audit_path, settled)
    return expected


def _lines(store: StoreCore) -> Iterator[bytes]:
    if store.audit_path.exists():
        with store.audit_path.open("rb") as file:
            yield from file


def _required(store: StoreCore, number: int, line: bytes) -> AuditRow:
    row = _parse(line)
    if row is None:
        raise StoreCorruptError(f"{store.audit_path}, line {number}: is no audit line", _DAMAGED_HINT)
    return row


def _parse(line: bytes) -> AuditRow | None:
    try:
        row = AuditRow(**json.loads(line))
        _encode(row)  # NaN and lone surrogates can be read, though no line is written with them
    except (ValueError, TypeError, RecursionError):
        return None
    return row if type(row.seq) is int and abs(row.seq) < _TOO_BIG else None


def _encode(row: AuditRow) -> bytes:
    return _canonical(asdict(row)) + b"\n"


def _digest(facts: dict[str, Any]) -> str:
    return hashlib.sha256(_canonical(facts)).hexdigest()


def _canonical(facts: dict[str, Any]) -> bytes:
    return json.dumps(facts, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
