"""An error as whoever typed the command reads it: one line that says what, and what to do, and an exit code."""

from __future__ import annotations

import errno
import json
import sqlite3
import sys
from typing import Final

from daemon import exitcodes
from daemon.command import CommandError
from daemon.terminal import printable
from state import errors

# A subclass stands before its root.
_CODES: Final[tuple[tuple[type[BaseException], int], ...]] = (
    (errors.StoreMissingError, exitcodes.NO_STORE),
    (errors.LockedError, exitcodes.LOCKED),
    (errors.NotFoundError, exitcodes.NOT_FOUND),
    (errors.RefusedError, exitcodes.REFUSED),
    (errors.StoreCorruptError, exitcodes.INTEGRITY),
    (errors.SchemaError, exitcodes.OTHER_SCHEMA),
    (errors.ModelFormatError, exitcodes.CONFIG),
    (errors.StoreError, exitcodes.FAILED),
    (sqlite3.DatabaseError, exitcodes.FAILED),
    (OSError, exitcodes.FAILED),
)
# What can be done about an error that does not say it itself.
_HINTS: Final[tuple[tuple[type[BaseException], str], ...]] = (
    (errors.StoreCorruptError, "`alignd verify --deep` names what is damaged, and how it is mended"),
    (errors.ModelFormatError, "copy the model again"),
    (sqlite3.DatabaseError, "`alignd verify` says whether it is damaged; then it is restored from a backup"),
)
EXPECTED: Final[tuple[type[BaseException], ...]] = (CommandError, *(kind for kind, _ in _CODES))
"""What is no fault of the program."""


def report(err: BaseException, *, as_json: bool) -> int:
    """Prints it to stderr, and gives its exit code."""
    code, message, hint = _code_of(err), printable(_message_of(err)), printable(_hint_of(err))
    if as_json:
        print(json.dumps({"error": {"code": code, "message": message, "hint": hint}}), file=sys.stderr)
    else:
        print(f"alignd: {message}{'; ' if hint else ''}{hint}", file=sys.stderr)
    return code


def _code_of(err: BaseException) -> int:
    if isinstance(err, CommandError):
        return err.code
    if is_config_error(err):
        return exitcodes.CONFIG
    return next((code for kind, code in _CODES if isinstance(err, kind)), exitcodes.FAILED)


def is_config_error(err: BaseException) -> bool:
    """Whether the settings or probes are at fault; that kind is no `StoreError`, and slow to import."""
    # a config error can only come from a module that is loaded by then
    config = sys.modules.get("daemon.config")
    return config is not None and isinstance(err, config.ConfigError)


def _message_of(err: BaseException) -> str:
    if isinstance(err, OSError) and err.strerror:
        return f"{err.filename}: {err.strerror}" if err.filename else err.strerror
    if isinstance(err, sqlite3.DatabaseError):
        return f"the ledger cannot be used: {err}"
    return str(err)


def _hint_of(err: BaseException) -> str:
    if isinstance(err, OSError):
        return {
            errno.ENOSPC: "make room, for instance with `alignd gc`",
            errno.EACCES: "run it as the user that owns the home, for instance with `sudo -u alignd`",
            errno.EROFS: "the file system is read-only: mount it for writing, or name another place",
            errno.ENOENT: "name one that is there",
            errno.EIO: "the disk failed: the kernel's log (`dmesg`) says how",
        }.get(err.errno or 0, "")
    hint: str = getattr(err, "hint", "")
    return hint or next((text for kind, text in _HINTS if isinstance(err, kind)), "")
