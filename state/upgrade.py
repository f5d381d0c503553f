"""Brings the ledger of an older alignd up to this one's schema: a copy beside it first, then all steps in one transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from state import audit, durable, lock, migrations
from state.connection import connect, translated
from state.core import LOCK_WAIT_S
from state.errors import SchemaError, StoreCorruptError, StoreError
from state.layout import Layout
from state.ledger import Ledger
from state.migrations import Step
from state.schema import SCHEMA_NUMBER

ACTION: Final = "store_upgraded"
_UNCHANGED: Final = "nothing was changed"
_MEND: Final = "restore the ledger from a backup, then upgrade that"


@dataclass(frozen=True)
class Upgrade:
    """What was done."""

    before: int
    """Schema number that the ledger had."""
    after: int
    copy: Path
    """The ledger as it was."""
    steps: tuple[str, ...]
    """What is different now, a phrase for each step."""


class _OldLedger(Ledger):
    """A ledger whose tables may be those of an older schema."""

    def run(self, sql: str, parameters: Sequence[Any] = (), /) -> list[tuple[Any, ...]]:
        """One statement, and its rows."""
        return self._run(sql, parameters)

    def copy_to(self, target: Path) -> None:
        """Write it whole into an empty file, and refuse what SQLite itself finds damaged in it."""
        with self._lock, translated(target), closing(sqlite3.connect(target, isolation_level=None)) as copy:
            self._connection.backup(copy)
            found = copy.execute("PRAGMA integrity_check").fetchall()
        if found != [("ok",)]:
            raise StoreCorruptError(f"{self.path}: {found[0][0]}; {_UNCHANGED}", _MEND)

    @contextmanager
    def transaction_without_references(self) -> Iterator[None]:
        """A transaction in which a table may be made anew; what refers to what is checked at its end."""
        self.run("PRAGMA foreign_keys = OFF")
        try:
            with self.transaction():
                yield
                broken = self.run("PRAGMA foreign_key_check")
                if broken:
                    raise StoreCorruptError(f"{self.path}: table {broken[0][0]}: broken reference; {_UNCHANGED}", _MEND)
        finally:
            self.run("PRAGMA foreign_keys = ON")


def upgrade(layout: Layout, *, actor: str, now: str) -> Upgrade | None:
    """Bring the ledger of a home up to `SCHEMA_NUMBER`; None when it is there already.

    The caller holds `service_lock`: a service of the old version that went on would find its tables changed. Killed at
    any point it leaves the old ledger or the new one, and may be repeated. Its audit line reaches the file when the store
    is next opened and catches up.

    Raises:
        SchemaError: a newer program wrote it.
        StoreCorruptError: it is damaged; nothing was changed.
        StoreError: the disk has no room for the copy, or is mounted read-only.
    """
    if durable.is_read_only(layout.root):
        return _refuse_read_only(layout)
    with lock.hold(layout.store_lock, "upgrade the store", LOCK_WAIT_S):
        ledger = _OldLedger(layout.ledger_path, connect(layout.ledger_path, "rw"))
        with closing(ledger):
            return _upgrade(layout, ledger, actor=actor, now=now)


def _refuse_read_only(layout: Layout) -> Upgrade | None:
    """An upgrade of what cannot be written is needed by nobody, or refused."""
    try:
        Ledger.open(layout.ledger_path).close()
    except SchemaError as err:
        raise SchemaError(f"{err}; its file system is mounted read-only", "upgrade it where it can be written") from err
    return None


def _upgrade(layout: Layout, ledger: _OldLedger, *, actor: str, now: str) -> Upgrade | None:
    ledger.check_schema(may_be_older=True)
    before = ledger.schema
    if before == SCHEMA_NUMBER:
        return None
    steps = _steps_from(before)
    copy = _copy(layout, ledger, before)
    details = {"from": before, "to": SCHEMA_NUMBER, "copy": copy.name}
    with ledger.transaction_without_references():
        for step in steps:
            step.apply(ledger.run, ledger.path)
        audit.record(ledger, ACTION, "store", actor=actor, now=now, details=details)
        ledger.run(f"PRAGMA user_version = {SCHEMA_NUMBER}")
    return Upgrade(before, SCHEMA_NUMBER, copy, tuple(step.what for step in steps))


def _steps_from(number: int) -> Sequence[Step]:
    steps = [step for step in migrations.STEPS if step.to > number]
    assert [step.to for step in steps] == list(range(number + 1, SCHEMA_NUMBER + 1)), "a schema number has no step"
    return steps


def _copy(layout: Layout, ledger: _OldLedger, number: int) -> Path:
    """The ledger as it is, log and all, in one file beside it; replaces the copy that a killed attempt left.

    Only a ledger that still has the old number is copied, so what is replaced is never newer.
    """
    _check_room(layout)
    target = layout.root / f"ledger-schema-{number}.db"
    temporary = target.with_name(f"{durable.TEMPORARY_PREFIX}{target.name}")
    durable.remove_tree(temporary)
    durable.write_file(temporary, b"")  # for its mode
    try:
        ledger.copy_to(temporary)
        durable.flush_file(temporary)
        durable.remove_tree(target)
        durable.move(temporary, target)
    except Exception:
        durable.remove_tree(temporary)
        raise
    return target


def _check_room(layout: Layout) -> None:
    """The copy, and as much again for what the steps write."""
    files = (layout.ledger_path, layout.ledger_path.with_name(f"{layout.ledger_path.name}-wal"))
    needed = 2 * sum(path.stat().st_size for path in files if path.exists())
    free = durable.free_bytes(layout.root)
    if free < needed:
        raise StoreError(
            f"{layout.root}: an upgrade of the ledger needs {needed:,} free bytes, and {free:,} are; {_UNCHANGED}",
            "make room on that disk and try again",
        )
