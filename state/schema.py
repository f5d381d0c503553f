"""The tables of the ledger; one column per field of the rows in `state.rows`, and a seal over them."""

import hashlib
import json
from typing import Any, TypeVar

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

SCHEMA_NUMBER = 2
"""Rises with every change of the tables, and of what stands in them that an older program would read wrongly; each number
needs a step in `state.migrations`."""

Row = TypeVar("Row", AuditRow, BatchRow, ControlRow, DuplicateRow, PointerRow, RoundRow, TagRow, VersionRow)

TABLES: dict[type[Any], str] = {
    BatchRow: "batches",
    RoundRow: "rounds",
    VersionRow: "versions",
    PointerRow: "pointer",
    TagRow: "tags",
    ControlRow: "control",
    DuplicateRow: "duplicates",
    AuditRow: "outbox",
}

KEYS: dict[type[Any], str] = {
    BatchRow: "sha256",
    RoundRow: "id",
    VersionRow: "id",
    PointerRow: "seq",
    TagRow: "name",
    ControlRow: "name",
    DuplicateRow: "seq",
    AuditRow: "seq",
}

SCHEMA = (
    """CREATE TABLE batches (
        sha256 TEXT PRIMARY KEY, name TEXT NOT NULL, seq INTEGER NOT NULL UNIQUE, state TEXT NOT NULL,
        received_at TEXT NOT NULL, num_bytes INTEGER NOT NULL, num_files INTEGER NOT NULL, source TEXT NOT NULL,
        attempts INTEGER NOT NULL, reason TEXT NOT NULL, stats TEXT NOT NULL, seal TEXT NOT NULL)""",
    "CREATE INDEX batches_state ON batches (state)",
    """CREATE TABLE versions (
        id INTEGER PRIMARY KEY, parent INTEGER REFERENCES versions, state TEXT NOT NULL,
        batch TEXT REFERENCES batches, "round" TEXT REFERENCES rounds DEFERRABLE INITIALLY DEFERRED,
        created_at TEXT NOT NULL, metrics TEXT NOT NULL, touched_fraction REAL NOT NULL,
        blocked INTEGER NOT NULL, pinned INTEGER NOT NULL, overlay TEXT, patch TEXT, record TEXT NOT NULL, seal TEXT NOT NULL)""",
    "CREATE INDEX versions_state ON versions (state)",
    """CREATE TABLE rounds (
        id TEXT PRIMARY KEY, kind TEXT NOT NULL, batch TEXT REFERENCES batches,
        target INTEGER REFERENCES versions, parent INTEGER NOT NULL REFERENCES versions, state TEXT NOT NULL,
        step TEXT, started_at TEXT NOT NULL, ended_at TEXT, reason TEXT NOT NULL,
        version INTEGER REFERENCES versions, attempts INTEGER NOT NULL,
        artefacts TEXT NOT NULL, config TEXT NOT NULL, seal TEXT NOT NULL)""",
    "CREATE INDEX rounds_state ON rounds (state)",
    """CREATE TABLE pointer (
        seq INTEGER PRIMARY KEY, version INTEGER NOT NULL REFERENCES versions,
        previous INTEGER REFERENCES versions, action TEXT NOT NULL, actor TEXT NOT NULL,
        reason TEXT NOT NULL, at TEXT NOT NULL, seal TEXT NOT NULL)""",
    "CREATE INDEX pointer_version ON pointer (version)",
    """CREATE TABLE tags (
        name TEXT PRIMARY KEY, version INTEGER NOT NULL REFERENCES versions, at TEXT NOT NULL,
        seal TEXT NOT NULL)""",
    """CREATE TABLE control (
        name TEXT PRIMARY KEY, reason TEXT NOT NULL, actor TEXT NOT NULL, since TEXT NOT NULL,
        seal TEXT NOT NULL)""",
    """CREATE TABLE duplicates (
        seq INTEGER PRIMARY KEY, sha256 TEXT NOT NULL REFERENCES batches, name TEXT NOT NULL,
        source TEXT NOT NULL, at TEXT NOT NULL, seal TEXT NOT NULL)""",
    """CREATE TABLE outbox (
        seq INTEGER PRIMARY KEY, at TEXT NOT NULL, actor TEXT NOT NULL, action TEXT NOT NULL,
        subject TEXT NOT NULL, details TEXT NOT NULL, prev TEXT NOT NULL, hash TEXT NOT NULL,
        seal TEXT NOT NULL)""",
    "CREATE TABLE notes (key TEXT PRIMARY KEY, value TEXT NOT NULL)",
)


def seal(values: list[Any]) -> str:
    """What stands beside a row's cells: a flipped byte in a text cell is valid to SQLite; this tells it."""
    return hashlib.sha256(json.dumps(values, ensure_ascii=False).encode()).hexdigest()[:16]
