"""Connections to the ledger's file, rows read over them, and SQLite's errors as ours."""

from __future__ import annotations

import json
import shutil
import sqlite3
import tempfile
import threading
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import fields
from errno import EIO, ENOSPC, EROFS
from pathlib import Path
from typing import Any, Final, get_origin

from state import durable
from state.errors import LockedError, StoreCorruptError
from state.schema import TABLES, Row

BUSY_MS = 10_000
RESTORE: Final = "the disk may have refused a read: try again; if it stays so, restore the ledger from a backup"
_DECODERS: Final[dict[Any, Any]] = {dict: json.loads, bool: bool}


class Tables:
    """Rows that are read over one connection, which the threads of a process share."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self._connection = connection
        self._lock = threading.RLock()

    def _select(self, kind: type[Row], where: str = "1", *parameters: Any, order: str = "") -> list[Row]:
        names = [field.name for field in fields(kind)]
        sql = f"SELECT {', '.join(quoted(names))} FROM {TABLES[kind]} WHERE {where}"
        rows = self._run(sql + (f" ORDER BY {order}" if order else ""), parameters)
        decoders = [_DECODERS.get(get_origin(field.type) or field.type) for field in fields(kind)]
        return [kind(*(decode(v) if decode else v for decode, v in zip(decoders, row, strict=True))) for row in rows]

    def _run(self, sql: str, parameters: Any = ()) -> list[tuple[Any, ...]]:
        with self._lock, translated(self.path):
            return self._connection.execute(sql, parameters).fetchall()


def quoted(names: Iterable[str]) -> list[str]:
    """Names as SQL takes them whatever they are, `order` too."""
    return [f'"{name}"' for name in names]


def connect(path: Path, mode: str) -> sqlite3.Connection:
    """A connection in one of SQLite's modes."""
    with translated(path):
        connection = sqlite3.connect(
            f"{path.as_uri()}?mode={mode}", uri=True, isolation_level=None, check_same_thread=False
        )
        try:
            connection.execute(f"PRAGMA busy_timeout = {BUSY_MS}")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA foreign_keys = ON")
        except BaseException:
            connection.close()
            raise
        return connection


def open_existing(path: Path) -> sqlite3.Connection:
    """A connection that may write; on a read-only file system, such as a snapshot, one that may not."""
    if not durable.is_read_only(path):
        return connect(path, "rw")
    try:
        connection = connect(path, "ro")  # beside a writer on the other side of the mount
        with translated(path):
            connection.execute("PRAGMA user_version")
        return connection
    except OSError:  # nobody has it open, and SQLite cannot make the files that it needs beside it
        return _copied(path)


def _copied(path: Path) -> sqlite3.Connection:
    """The ledger in memory, its log with it; nobody writes it meanwhile."""
    with tempfile.TemporaryDirectory() as aside, translated(path):
        for name in (path.name, f"{path.name}-wal"):
            if path.with_name(name).exists():
                shutil.copyfile(path.with_name(name), Path(aside, name))
        connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        try:
            with closing(sqlite3.connect(Path(aside, path.name))) as copy:
                copy.backup(connection)
            connection.execute("PRAGMA query_only = ON")
        except BaseException:
            connection.close()
            raise
    return connection


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """SQLite's errors as ours, or as the OSError that they are."""
    try:
        yield
    except sqlite3.IntegrityError:
        raise
    except sqlite3.OperationalError as err:
        raise _operational(path, err) from err
    except (sqlite3.DatabaseError, json.JSONDecodeError, UnicodeDecodeError) as err:
        raise StoreCorruptError(f"{path}: {err}", RESTORE) from err


def _operational(path: Path, err: sqlite3.OperationalError) -> Exception:
    code = err.sqlite_errorcode & 0xFF if hasattr(err, "sqlite_errorcode") else 0
    if code == sqlite3.SQLITE_FULL:
        return OSError(ENOSPC, "no space left for the ledger", str(path))
    if code in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN):
        return OSError(EIO, f"ledger: {err}", str(path))
    if code == sqlite3.SQLITE_READONLY:
        return OSError(EROFS, "the ledger cannot be written", str(path))
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return LockedError(f"{path} is busy with another process", "try again in a moment")
    return StoreCorruptError(f"{path}: {err}", RESTORE)
