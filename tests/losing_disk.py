"""A disk that loses power: what was flushed is there; what was not may be there, not at all, or in part.

`Disk` carries out the calls for real and keeps a model beside them in which volatile and durable content are apart; what
may be left is enumerated in `disk_states`. It is harsher than a journaling file system: names that no flush of their
folder made durable come and go each by itself, in any order, and a move between two folders may leave both names. Modes
are not modelled.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any, Final, TypeVar

from state.filesystem import Chunk, FileSystem

DiskT = TypeVar("DiskT", bound="Disk")
DATA_LOSSES: Final = ("none", "all", "torn", "zeros", "hole")
"""What may happen to bytes that no flush made durable: see `Node.after`."""


@dataclass(eq=False)
class Node:
    """A file, link or folder; a name is not part of it."""

    kind: str
    data: bytes = b""
    """Of a file, or the target of a link."""
    flushed: bytes | None = None
    """What a flush has made durable; None before the first."""
    names: dict[str, Node] = field(default_factory=dict)
    kept_names: dict[str, Node] = field(default_factory=dict)
    """Of a folder, those that a flush has made durable."""

    def is_flushed(self) -> bool:
        return self.kind != "file" or self.data == self.flushed

    def after(self, loss: str) -> bytes:
        """What a file comes back with.

        Args:
            loss: `none`: all that was written; `all`: what was flushed; `torn`: the first half of what is new; `zeros`:
                the new length, the bytes never arrived; `hole`: so in the middle third only.
        """
        if loss == "none" or self.is_flushed():
            return self.data
        old = self.flushed or b""
        if loss == "all":
            return old
        kept = num_common(old, self.data)
        new = self.data[kept:]
        third = len(new) // 3
        if loss == "torn":
            half = kept + len(new) // 2
            return self.data[:half] + old[half:]
        if loss == "zeros":
            return self.data[:kept] + bytes(len(new))
        return self.data[: kept + third] + bytes(third) + new[2 * third :]


@dataclass(frozen=True, eq=False)
class Change:
    """A name that came or went (`node` None), and the one that went with it in a rename."""

    folder: Node
    name: str
    node: Node | None
    left: tuple[Node, str] | None = None

    def apply(self, names: Callable[[Node], dict[str, Node]]) -> None:
        if self.node is None:
            names(self.folder).pop(self.name, None)
        else:
            names(self.folder)[self.name] = self.node
        if self.left is not None:
            names(self.left[0]).pop(self.left[1], None)


def _one_at_a_time(kind: type[DiskT]) -> type[DiskT]:
    """Lets one thread at a time make a call, so that what may be left of the disk is told while it stands still."""

    def locked(call: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(call)
        def one(self: Disk, *args: Any) -> Any:
            with self.lock:
                return call(self, *args)

        return one

    for name in vars(kind).keys() & vars(FileSystem).keys():
        if not name.startswith("_"):
            setattr(kind, name, locked(vars(kind)[name]))
    return kind


@_one_at_a_time
class Disk(FileSystem):
    """Carries every call out on a home, tells it to the model, and tells `on_call` before each.

    What `on_call` raises keeps the call from being made.
    """

    def __init__(self, home: Path, on_call: Callable[[Disk, str], None]) -> None:
        self._home = home
        self.on_call = on_call
        self.lock = threading.RLock()
        self._open: dict[int, Node] = {}
        self.pending: list[Change] = []
        """Changes of names that no flush has made durable, oldest first."""
        self.root = _read(home)

    def open_write(self, path: Path, mode: int) -> int:
        return self._opened(super().open_write, path, mode)

    def open_append(self, path: Path, mode: int) -> int:
        return self._opened(super().open_append, path, mode)

    def write(self, fd: int, data: Chunk) -> int:
        return self._written("write", fd, lambda: super(Disk, self).write(fd, data))

    def copy_range(self, source_fd: int, target_fd: int, num_bytes: int) -> int:
        call = super().copy_range
        return self._written("copy_range", target_fd, lambda: call(source_fd, target_fd, num_bytes))

    def fsync(self, fd: int) -> None:
        self.on_call(self, "fsync")
        if fd in self._open:
            self._open[fd].flushed = self._open[fd].data

    def close(self, fd: int) -> None:
        self._open.pop(fd, None)
        super().close(fd)

    def truncate(self, path: Path, num_bytes: int) -> None:
        self.on_call(self, "truncate")
        super().truncate(path, num_bytes)
        self._node(path).data = self._node(path).data[:num_bytes]

    def rename(self, source: Path, target: Path) -> None:
        self.on_call(self, "rename")
        super().rename(source, target)
        self._change(target, self._node(source), left=source)

    def link(self, source: Path, target: Path) -> None:
        self.on_call(self, "link")
        super().link(source, target)
        self._change(target, self._node(source))

    def symlink(self, target: str, link: Path) -> None:
        self.on_call(self, "symlink")
        super().symlink(target, link)
        self._change(link, Node("link", target.encode()))

    def unlink(self, path: Path) -> None:
        self.on_call(self, "unlink")
        super().unlink(path)
        self._change(path, None)

    def rmdir(self, path: Path) -> None:
        self.on_call(self, "rmdir")
        super().rmdir(path)
        self._change(path, None)

    def mkdir(self, path: Path, mode: int) -> None:
        self.on_call(self, "mkdir")
        super().mkdir(path, mode)
        self._change(path, Node("folder"))

    def fsync_path(self, path: Path) -> None:
        self.on_call(self, "fsync_path")
        node = self._node(path)
        node.flushed = node.data
        if node.kind == "folder":
            self._flush_names(node)

    def see_written_past(self, name: str) -> None:
        """Another library has written the files of this name, and flushed them, without this interface."""
        for path in self._home.rglob(name):
            node = self._node(path)
            node.data = node.flushed = path.read_bytes()

    def _flush_names(self, folder: Node) -> None:
        """All names of a folder are durable; of a rename out of it both sides, of one into it the new name only."""
        left_over = []
        for change in self.pending:
            source = change.left[0] if change.left else None
            if folder not in (change.folder, source):
                left_over.append(change)
            elif change.folder is folder and source is not None and source is not folder:
                Change(folder, change.name, change.node).apply(kept_names_of)
                left_over.append(Change(*change.left, None) if change.left else change)
            else:
                change.apply(kept_names_of)
        self.pending = left_over

    def _opened(self, call: Callable[[Path, int], int], path: Path, mode: int) -> int:
        self.on_call(self, call.__name__)
        is_new = not path.exists()
        fd = call(path, mode)
        if is_new:
            self._change(path, Node("file"))
        self._open[fd] = self._node(path)
        return fd

    def _written(self, name: str, fd: int, call: Callable[[], int]) -> int:
        self.on_call(self, name)
        done = call()
        if fd in self._open:
            self._open[fd].data = Path(f"/proc/self/fd/{fd}").read_bytes()
        return done

    def _change(self, path: Path, node: Node | None, left: Path | None = None) -> None:
        change = Change(
            self._node(path.parent), path.name, node, (self._node(left.parent), left.name) if left else None
        )
        change.apply(_names)
        self.pending.append(change)

    def _node(self, path: Path) -> Node:
        node = self.root
        for part in path.relative_to(self._home).parts:
            if part not in node.names:  # a library wrote it past this interface
                found = Node("file", path.read_bytes())
                node.names[part] = found
                self.pending.append(Change(node, part, found))
            node = node.names[part]
        return node


def num_common(one: bytes, other: bytes) -> int:
    """How many of their first bytes are the same."""
    if other.startswith(one):
        return len(one)
    low, high = 0, min(len(one), len(other)) + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if one[low:middle] == other[low:middle] else (low, middle)
    return low


def _names(node: Node) -> dict[str, Node]:
    return node.names


def kept_names_of(node: Node) -> dict[str, Node]:
    """Of a folder, the names that a flush has made durable."""
    return node.kept_names


def _read(path: Path) -> Node:
    """A tree as it lies on the disk, all of it durable; one node for all names of a file."""
    known: dict[int, Node] = {}

    def read(path: Path) -> Node:
        if path.is_symlink():
            return Node("link", os.readlink(path).encode())  # noqa: PTH115
        if path.is_dir():
            names = {child.name: read(child) for child in path.iterdir()}
            return Node("folder", names=names, kept_names=dict(names))
        data = path.read_bytes()
        return known.setdefault(path.stat().st_ino, Node("file", data, data))

    return read(path)
