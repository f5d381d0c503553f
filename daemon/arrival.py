"""What a drop looks like from outside: names to leave alone, its state at one moment, and who still writes it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

import msgspec

from state import signed
from state.batches import check_depth, file_sha256
from state.text import printable

IGNORED: Final = (
    ".*", "*~", "Thumbs.db", "desktop.ini", "@eaDir", "__MACOSX", "~syncthing~*", "lost+found",
    "*.part", "*.partial", "*.filepart", "*.crdownload", "*.download", "*.tmp", "*.temp", "*.swp", "*.swx",
)  # fmt: skip
"""Names in the inbox that are no drops: temporary files of copiers, browsers and editors, and litter."""

PARTIAL: Final = (
    "*.part", "*.partial", "*.filepart", "*.crdownload", "*.download", "*.tmp", "*.temp",
    ".syncthing.*", "~syncthing~*", ".nfs*",
)  # fmt: skip
"""Names inside a folder that say that somebody is still copying into it."""

MARKERS: Final = (".done", ".ready")
MANIFEST: Final = "manifest.json"
_SET_BREAK_SIGNAL: Final = 10  # F_SETSIG of fcntl(2)
_CHUNK_BYTES: Final = 1 << 20
_MAX_MANIFEST_BYTES: Final = 4 << 20


@dataclass(frozen=True, slots=True)
class Member:
    """One file, folder or other thing as lstat(2) shows it."""

    name: str
    """Relative to the drop; empty for the drop itself."""
    kind: int
    num_bytes: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    num_links: int

    @property
    def content(self) -> tuple[str, int, int, int, int]:
        """What a rename of the drop leaves alone."""
        return self.name, self.kind, self.num_bytes, self.mtime_ns, self.inode


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A drop at one moment; two equal ones mean that nothing about it changed in between."""

    top: Member
    members: tuple[Member, ...]
    """Everything below a folder, sorted by name."""
    unreadable: str = ""
    """Name of something in it that may not be read, safe to print."""

    @property
    def is_folder(self) -> bool:
        return self.top.kind == stat.S_IFDIR

    @property
    def is_regular(self) -> bool:
        """A file, or a folder of files and folders; neither links nor devices."""
        if self.is_folder:
            return all(member.kind in (stat.S_IFREG, stat.S_IFDIR) for member in self.members)
        return self.top.kind == stat.S_IFREG

    @property
    def is_hard_linked(self) -> bool:
        """A file of it has a second name somewhere, through which it could change at any time."""
        return any(m.kind == stat.S_IFREG and m.num_links > 1 for m in (self.top, *self.members))

    @property
    def partial(self) -> str:
        """Name of a file in it that is still being copied, safe to print; or empty."""
        names = (member.name for member in self.members)
        return printable(next((name for name in names if _matches(name.rpartition("/")[2], PARTIAL)), ""))

    @property
    def num_bytes(self) -> int:
        return sum(m.num_bytes for m in (self.top, *self.members) if m.kind == stat.S_IFREG)

    def same_content_as(self, other: Snapshot) -> bool:
        """Equal but for what a rename of the drop changes: its own ctime, and those of its folders."""
        mine = [member.content for member in (self.top, *self.members)]
        return mine == [member.content for member in (other.top, *other.members)]

    def paths(self, root: Path) -> Iterator[Path]:
        """Its regular files, when the drop lies at ``root``."""
        for member in (self.top, *self.members):
            if member.kind == stat.S_IFREG:
                yield root / member.name if member.name else root


UNSEEN: Final = Snapshot(Member("", 0, 0, 0, 0, 0, 0), ())
"""A drop that cannot be looked at."""


def is_ignored(name: str) -> bool:
    """Whether a name in the inbox is no drop."""
    return _matches(name, IGNORED) or name.endswith(signed.ENDING)  # a drop's signature


def marker_of(name: str, names: set[str]) -> str:
    """The name of the drop that ``name`` is the completion marker of, or empty."""
    for end in MARKERS:
        if name.endswith(end) and name.removesuffix(end) in names:
            return name.removesuffix(end)
    return ""


def snapshot(path: Path) -> Snapshot:
    """The state of a drop now; links are not followed.

    Raises:
        FileNotFoundError: it is gone.
        RefusedError: it is too deep.
        OSError: it cannot be looked at.
    """
    top = _member(path, "")
    if top.kind == stat.S_IFLNK or not _may_read(path, top.kind):
        return Snapshot(top, (), "" if top.kind == stat.S_IFLNK else printable(path.name))
    if top.kind != stat.S_IFDIR:
        return Snapshot(top, ())
    members, refused = _walk(path)
    refused += [m.name for m in members if not _may_read(path / m.name, m.kind)]
    in_order = tuple(sorted(members, key=lambda member: member.name))
    return Snapshot(top, in_order, printable(min(refused, default="")))


def is_open_for_writing(path: Path) -> bool:
    """Whether some process certainly has the file open for writing; False also when nobody can tell.

    A read lease (fcntl(2)) is granted only while nobody does. It needs the file's owner or CAP_LEASE, and a local
    file system.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.fcntl(fd, _SET_BREAK_SIGNAL, signal.SIGURG)  # the default signal, SIGIO, would end the process
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError as err:
        return err.errno == errno.EAGAIN
    finally:
        os.close(fd)
    return False


def manifest_matches(folder: Path) -> bool:
    """Whether a folder's manifest.json names every other file in it, each with its size and SHA-256.

    The manifest is a list, or ``{"files": list}``, of ``{"name", "size", "sha256"}``.
    """
    entries = _manifest(folder / MANIFEST)
    if not entries:
        return False
    with contextlib.suppress(OSError):
        wanted = {entry.name: entry for entry in entries}
        present = {m.name for m in snapshot(folder).members if m.kind == stat.S_IFREG}
        litter = {name for name in present if is_ignored(name.rpartition("/")[2])}
        if set(wanted) != present - litter - {MANIFEST}:
            return False
        return all(_entry_matches(folder / name, entry) for name, entry in wanted.items())
    return False


class _Entry(msgspec.Struct):
    """One file of a manifest; other keys are passed over."""

    name: str
    size: int
    sha256: str


class _Manifest(msgspec.Struct):
    files: list[_Entry]


def _manifest(path: Path) -> list[_Entry]:
    """The entries of a manifest; none when it is no such thing, or too big for the supervisor to hold."""
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_MANIFEST_BYTES + 1)
        if len(data) > _MAX_MANIFEST_BYTES:
            return []
        content = msgspec.json.decode(data, type=list[_Entry] | _Manifest)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return []
    return content.files if isinstance(content, _Manifest) else content


def _entry_matches(path: Path, entry: _Entry) -> bool:
    return path.lstat().st_size == entry.size and file_sha256(path) == entry.sha256.lower()


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _member(path: Path, name: str) -> Member:
    found = path.lstat()
    kind = stat.S_IFMT(found.st_mode)
    size = 0 if kind == stat.S_IFDIR else found.st_size
    return Member(name, kind, size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_nlink)


def _walk(drop: Path) -> tuple[list[Member], list[str]]:
    """What can be seen below a folder, and the names of what cannot, in no order."""
    members, refused, folders = list[Member](), list[str](), [""]
    for prefix in folders:  # grows while it is walked
        check_depth(Path(prefix))
        for name in _names(drop, prefix):
            try:
                member = _member(drop / prefix / name, prefix + name)
            except FileNotFoundError:
                continue
            except PermissionError:
                refused.append(prefix + name)
                continue
            members.append(member)
            if member.kind == stat.S_IFDIR:
                folders.append(f"{prefix}{name}/")
    return members, refused


def _names(drop: Path, prefix: str) -> list[str]:
    try:
        return [entry.name for entry in os.scandir(drop / prefix)]
    except PermissionError:
        return []  # `snapshot` names the folder as unreadable
    except FileNotFoundError:
        if prefix:
            return []
        raise


def _may_read(path: Path, kind: int) -> bool:
    if kind == stat.S_IFDIR:
        # moving a folder elsewhere rewrites its `..`, which needs write permission
        return os.access(path, os.R_OK | os.W_OK | os.X_OK)
    return kind != stat.S_IFREG or os.access(path, os.R_OK)
