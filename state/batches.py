"""What makes two drops the same batch, and how one is copied in."""

import hashlib
import json
import os
import stat
from pathlib import Path

from state import durable
from state.errors import RefusedError
from state.text import printable

READ_BYTES = 1 << 20
MAX_DEPTH = 64
"""Levels of folders in a batch: far below what the walks of Python's library get through."""


def members(path: Path) -> list[tuple[str, Path]]:
    """The files of a batch as (name relative to it, path), sorted by name; a single file's name is empty.

    Raises:
        RefusedError: a member is a symbolic link, no regular file, or too deep; names it.
    """
    mode = path.lstat().st_mode
    if not stat.S_ISDIR(mode):
        return [("", _regular(path, mode))]
    found = []
    for folder, folders, names in os.walk(path, onerror=_raise):
        check_depth(Path(folder).relative_to(path))
        for name in names + [name for name in folders if Path(folder, name).is_symlink()]:
            member = Path(folder, name)
            found.append((member.relative_to(path).as_posix(), _regular(member, member.lstat().st_mode)))
    return sorted(found)


def check_depth(member: Path) -> None:
    """Refuse a member that lies too deep in its batch.

    Args:
        member: relative to the batch.
    Raises:
        RefusedError: names the outermost folder that it lies in.
    """
    if len(member.parts) > MAX_DEPTH:
        what = f"{printable(member.parts[0])}: holds folders deeper than {MAX_DEPTH} levels"
        raise RefusedError(what, "flatten them, and drop the batch again")


def identity(path: Path) -> str:
    """SHA-256 over canonical member names and bytes; a single file counts by its bytes only, whatever its name."""
    found = members(path)
    if len(found) == 1:
        return file_sha256(found[0][1])
    listing = [[name, file_sha256(member)] for name, member in found]
    return hashlib.sha256(b"folder\n" + json.dumps(listing).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, streamed."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def copy_in(source: Path, target: Path) -> int:
    """Copy a drop, file or folder, to a new private place and return its size in bytes."""
    num_bytes = 0
    for name, member in members(source):
        place = target / name if name else target
        durable.make_folder(place.parent)
        num_bytes += durable.copy_file(member, place, 0o600)
    if source.is_dir():
        durable.make_folder(target)  # an empty folder is a batch too, if a useless one
    return num_bytes


def _raise(err: OSError) -> None:
    raise err


def _regular(path: Path, mode: int) -> Path:
    if stat.S_ISLNK(mode):
        raise RefusedError(f"{printable(path.name)}: is a symbolic link", "drop the file itself, not a link to it")
    if not stat.S_ISREG(mode):
        raise RefusedError(f"{printable(path.name)}: is no regular file", "drop regular files, or a folder of them")
    return path
