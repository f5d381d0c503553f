"""The ledger: SQLite rows of batches, rounds, versions, tags, `current`, holds and the audit outbox.

Readers may be called at any time; writers only inside `transaction()`, which the store's operations open.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, fields
from pathlib import Path
from typing import Any

from state import durable
from state.connection import RESTORE, connect, open_existing, quoted, translated
from state.errors import NotFoundError, SchemaError, StoreCorruptError
from state.rows import (
    AuditRow,
    BatchRow,
    ControlRow,
    DuplicateRow,
    PointerRow,
    RoundRow,
    TagRow,
    VersionRow,
)
from state.schema import KEYS, SCHEMA, SCHEMA_NUMBER, TABLES, Row, seal
from state.windows import Windows, in_states

_OLDER = "`alignd upgrade` brings it up to date, and so does a start of the service; a copy of the ledger is kept"
_NEWER = "a newer alignd has written it: install that version again; nothing was changed"


class Ledger(Windows):
    """One connection, shared by the threads of a process."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        super().__init__(path, connection)
        self._own_commits = 0

    @classmethod
    def create(cls, path: Path) -> Ledger:
        """Make an empty ledger at a path that is free."""
        durable.write_file(path, b"")  # of its mode are those that SQLite puts beside it
        ledger = cls(path, connect(path, "rw"))
        with ledger._lock, translated(path):
            ledger._connection.execute("PRAGMA journal_mode = WAL")
            with ledger.transaction():
                for statement in SCHEMA:
                    ledger._run(statement)
                ledger._run(f"PRAGMA user_version = {SCHEMA_NUMBER}")
        return ledger

    @classmethod
    def open(cls, path: Path) -> Ledger:
        """Open a ledger and check that its schema is the one this program knows.

        On a read-only file system, a snapshot that an auditor has mounted, what is read is a copy.

        Raises:
            StoreCorruptError: it is no ledger.
            SchemaError: another version of the program wrote it, and it must be upgraded, or that be installed again.
        """
        ledger = cls(path, open_existing(path))
        try:
            ledger.check_schema()
        except BaseException:
            ledger.close()
            raise
        return ledger

    @property
    def schema(self) -> int:
        """The number of the schema that the tables have."""
        return int(self._run("PRAGMA user_version")[0][0])

    def check_schema(self, *, may_be_older: bool = False) -> None:
        """Refuse a schema that this program does not know how to work with, or, with `may_be_older`, to upgrade."""
        number = self.schema
        if number < 1:
            raise StoreCorruptError(f"{self.path} is no ledger of alignd: it has schema {number}", RESTORE)
        if number > SCHEMA_NUMBER or (number < SCHEMA_NUMBER and not may_be_older):
            what = f"{self.path} has schema {number}, and this alignd works with schema {SCHEMA_NUMBER}"
            raise SchemaError(what, _OLDER if number < SCHEMA_NUMBER else _NEWER)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All writes of the block, durable together when it ends, or none of them."""
        with self._lock:
            self._run("BEGIN IMMEDIATE")
            try:
                yield
                self._run("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.rollback()
                raise
            self._own_commits += 1

    def data_version(self) -> tuple[int, int]:
        """Changes whenever anybody commits a change; cheap enough to poll."""
        return self._run("PRAGMA data_version")[0][0], self._own_commits

    def save(self, row: Row) -> Row:
        """Write a row under its key, replacing the one that was there."""
        names: list[str] = [field.name for field in fields(row)]
        values: list[Any] = [_encode(value) for value in astuple(row)]
        sql = (
            f"INSERT INTO {TABLES[type(row)]} ({', '.join(quoted(names))}, seal) "
            f"VALUES ({', '.join('?' * len(names))}, ?) "
            f"ON CONFLICT ({KEYS[type(row)]}) DO UPDATE SET "
            + ", ".join(f"{name} = excluded.{name}" for name in [*quoted(names), "seal"])
        )
        self._run(sql, [*values, seal(values)])
        return row

    def remove(self, kind: type[Row], key: str | int) -> None:
        """Delete the row with this key; none is fine."""
        self._run(f"DELETE FROM {TABLES[kind]} WHERE {KEYS[kind]} = ?", [key])

    def batches(self, *states: str) -> list[BatchRow]:
        """Batches in these states (all when none is named), in order of arrival."""
        return self._select(BatchRow, *in_states(states), order="seq")

    def batch(self, sha256: str) -> BatchRow | None:
        return self._one(BatchRow, "sha256 = ?", sha256)

    def batches_named(self, name: str) -> list[BatchRow]:
        """Batches a user called so, or whose sha256 starts so."""
        where = "name = ? OR substr(sha256, 1, ?) = ?"
        return self._select(BatchRow, where, name, len(name), name, order="seq")

    def batches_from(self, source: str) -> list[BatchRow]:
        """The batch that was claimed from this spool entry, if any."""
        return self._select(BatchRow, "source = ?", source, order="seq")

    def rounds(self, *states: str) -> list[RoundRow]:
        """Rounds in these states (all when none is named), oldest first."""
        return self._select(RoundRow, *in_states(states), order="id")

    def counts(self, kind: type[BatchRow] | type[RoundRow] | type[VersionRow]) -> dict[str, int]:
        """How many rows of a table are in each state that there is one in."""
        rows = self._run(f"SELECT state, count(*) FROM {TABLES[kind]} GROUP BY state")
        return {str(state): int(count) for state, count in rows}

    def round(self, round_id: str) -> RoundRow | None:
        return self._one(RoundRow, "id = ?", round_id)

    def versions(self, *states: str) -> list[VersionRow]:
        """Versions in these states (all when none is named), oldest first."""
        return self._select(VersionRow, *in_states(states), order="id")

    def version(self, version_id: int) -> VersionRow | None:
        return self._one(VersionRow, "id = ?", version_id)

    def tags(self) -> list[TagRow]:
        """All tags, by name."""
        return self._select(TagRow, order="name")

    def tag(self, name: str) -> TagRow | None:
        return self._one(TagRow, "name = ?", name)

    def current_pointer(self) -> PointerRow:
        """The last change of `current`."""
        return self._last_pointer("1")

    def arrival(self, version_id: int) -> PointerRow:
        """The last time this version became current."""
        return self._last_pointer("version = ?", version_id)

    def was_current(self, version_id: int) -> bool:
        """True when the version was in service at some time."""
        return self._one(PointerRow, "version = ? ORDER BY seq DESC LIMIT 1", version_id) is not None

    def control(self, name: str) -> ControlRow | None:
        return self._one(ControlRow, "name = ?", name)

    def duplicates(self) -> list[DuplicateRow]:
        """Drops whose content was already known, oldest first."""
        return self._select(DuplicateRow, order="seq")

    def outbox(self) -> list[AuditRow]:
        """Audit lines that may not have reached the file yet, oldest first."""
        return self._select(AuditRow, order="seq")

    def clear_outbox(self, up_to: int) -> None:
        """Forget the outbox rows up to and with this number."""
        self._run("DELETE FROM outbox WHERE seq <= ?", [up_to])

    def note(self, key: str, default: str = "") -> str:
        """A single value kept by name."""
        rows = self._run("SELECT value FROM notes WHERE key = ?", [key])
        return str(rows[0][0]) if rows else default

    def set_note(self, key: str, value: str) -> None:
        self._run("INSERT OR REPLACE INTO notes (key, value) VALUES (?, ?)", [key, value])

    def next_number(self, kind: type[Row]) -> int:
        """One more than the largest number of a table with a number column (`seq` or `id`); the first is 1."""
        column = "seq" if "seq" in {field.name for field in fields(kind)} else "id"
        sql = f"SELECT coalesce(max(CAST(ltrim({column}, 'r') AS INTEGER)), 0) + 1 FROM {TABLES[kind]}"
        return int(self._run(sql)[0][0])

    def damage(self) -> list[str]:
        """What SQLite's own check and the seals of the rows find wrong; empty when all is well."""
        found = [str(row[0]) for row in self._run("PRAGMA integrity_check") if row[0] != "ok"]
        found += [f"table {row[0]}: broken reference" for row in self._run("PRAGMA foreign_key_check")]
        for kind in TABLES:
            found += self._broken_seals(kind)
        return found

    def _broken_seals(self, kind: type) -> Iterator[str]:
        names = quoted(field.name for field in fields(kind))
        for *values, written in self._run(f"SELECT {', '.join(names)}, seal FROM {TABLES[kind]}"):
            if seal(values) != written:
                yield f"table {TABLES[kind]}: row {values[0]} is not what was written"

    def _last_pointer(self, where: str, *parameters: Any) -> PointerRow:
        row = self._one(PointerRow, f"{where} ORDER BY seq DESC LIMIT 1", *parameters)
        if row is None:
            raise NotFoundError(f"{self.path}: no such change of `current`")
        return row

    def _one(self, kind: type[Row], where: str, *parameters: Any) -> Row | None:
        rows = self._select(kind, where, *parameters)
        return rows[0] if rows else None


def _encode(value: Any) -> Any:
    if isinstance(value, dict):
        return json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return int(value) if isinstance(value, bool) else value
