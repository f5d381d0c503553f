"""Connections to the ledger's file, and SQLite's errors as ours."""

from __future__ import annotations

import json
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from errno import EIO, ENOSPC, EROFS
from pathlib import Path

from state import durable
from state.errors import LockedError, StoreCorruptError

BUSY_MS = 10_000


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
        raise StoreCorruptError(f"{path}: {err}", "restore the ledger from a backup") from err


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
    return StoreCorruptError(f"{path}: {err}", "restore the ledger from a backup")
