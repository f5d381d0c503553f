"""Moving a drop out of the inbox into the spool, across disks where it must be, and naming it there."""

from __future__ import annotations

import errno
import os
import stat
import uuid
from pathlib import Path
from typing import Final

from daemon.arrival import Snapshot, snapshot
from state import durable
from state.batches import identity

_STAMP_LENGTH: Final = 32
_NAME_BYTES: Final = 200


class ChangedError(OSError):
    """A drop that is still being written; it is where it was."""


def spooled_name(entry_name: str) -> str:
    """What the user called the drop that lies in the spool under ``entry_name``."""
    stamp, name = entry_name[:_STAMP_LENGTH], entry_name[_STAMP_LENGTH:]
    is_stamp = len(stamp) == _STAMP_LENGTH and all(char in "0123456789abcdef" for char in stamp)
    return name if is_stamp and name else entry_name


def entry_name(name: str) -> str:
    """Unique per drop, valid UTF-8 whatever the user's file name is, and short enough for a name made from it."""
    valid = os.fsencode(name).decode("utf-8", "replace")
    return uuid.uuid4().hex + valid.encode()[:_NAME_BYTES].decode("utf-8", "ignore")


def take_out(source: Path, entry: Path, expected: Snapshot) -> None:
    """Moves a drop to ``entry``, by a checked copy where a rename would not do.

    Raises:
        FileNotFoundError: its owner took it away.
        ChangedError: it no longer looks as ``expected``.
        PermissionError: it cannot be moved or removed.
    """
    if expected.is_regular and expected.is_hard_linked:
        _copy_out(source, entry, expected)
        return
    try:
        durable.move(source, entry)
    except OSError as err:
        if err.errno != errno.EXDEV:
            raise
        _copy_out(source, entry, expected)


def _copy_out(source: Path, entry: Path, expected: Snapshot) -> None:
    """Copies under a fresh inode, checks the copy, and only then removes the source."""
    staging = entry.with_name(durable.TEMPORARY_PREFIX + uuid.uuid4().hex)
    try:
        _copy_tree(source, staging)
        if identity(staging) != identity(source) or snapshot(source) != expected:
            raise ChangedError(errno.EAGAIN, "it changed while it was copied", str(source))
        if staging.is_dir():
            durable.publish_folder(staging, entry)
        else:
            durable.move(staging, entry)
    finally:
        durable.remove_tree(staging)
    durable.remove_tree(source)


def _copy_tree(source: Path, target: Path) -> None:
    mode = source.lstat().st_mode
    if stat.S_ISDIR(mode):
        durable.make_folder(target)
        for entry in sorted(source.iterdir()):
            _copy_tree(entry, target / entry.name)
    elif stat.S_ISREG(mode):
        durable.copy_file(source, target)
    else:
        raise PermissionError(errno.EPERM, "a link or device cannot be taken from another disk", str(source))
