"""A disk that loses power: after every call that changes it, the states that it may come back with.

What is flushed is there. What is not may be there, not at all, or in part. `Disk` carries out the calls for real and keeps a
model beside them in which volatile and durable content are apart; `states` enumerates what may be left.

The ledger is SQLite's own: it writes past this interface, flushes each transaction before it returns (WAL,
synchronous=FULL), and is taken as it lies at the time of the call, and once more with its latest transaction cut in half.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from state.filesystem import Chunk, FileSystem

LEDGER: Final = ("store/ledger.db", "store/ledger.db-wal")
UNMODELLED: Final = (*LEDGER, "store/ledger.db-shm", "store/service.lock", "store/store.lock", ".create.lock")
DATA_LOSSES: Final = ("none", "all", "torn", "zeros")
Image = dict[str, "bytes | str | None"]
"""A home: relative path -> bytes of a file, target of a link, None for a folder."""


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
        """What a file comes back with: whole, as it was flushed, or what is new cut in half or full of zeros."""
        if loss == "none" or self.is_flushed():
            return self.data
        old = self.flushed or b""
        if loss == "all":
            return old
        kept = len(old) if self.data.startswith(old) else 0
        num_new = len(self.data) - kept
        return self.data[: kept + num_new // 2] if loss == "torn" else self.data[:kept] + bytes(num_new)


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


class Disk(FileSystem):
    """Carries every call out on a home, tells it to the model, and asks `on_call` before each.

    Calls outside of the home are only carried out.
    """

    def __init__(self, home: Path, on_call: Callable[[Disk, str], None]) -> None:
        self._home = home
        self._on_call = on_call
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
        self._on_call(self, "fsync")
        if fd in self._open:
            self._open[fd].flushed = self._open[fd].data

    def close(self, fd: int) -> None:
        self._open.pop(fd, None)
        super().close(fd)

    def truncate(self, path: Path, num_bytes: int) -> None:
        self._on_call(self, "truncate")
        super().truncate(path, num_bytes)
        self._node(path).data = self._node(path).data[:num_bytes]

    def rename(self, source: Path, target: Path) -> None:
        self._on_call(self, "rename")
        super().rename(source, target)
        self._change(target, self._node(source), left=source)

    def link(self, source: Path, target: Path) -> None:
        self._on_call(self, "link")
        super().link(source, target)
        self._change(target, self._node(source))

    def symlink(self, target: str, link: Path) -> None:
        self._on_call(self, "symlink")
        super().symlink(target, link)
        self._change(link, Node("link", target.encode()))

    def unlink(self, path: Path) -> None:
        self._on_call(self, "unlink")
        super().unlink(path)
        self._change(path, None)

    def rmdir(self, path: Path) -> None:
        self._on_call(self, "rmdir")
        super().rmdir(path)
        self._change(path, None)

    def mkdir(self, path: Path, mode: int) -> None:
        self._on_call(self, "mkdir")
        super().mkdir(path, mode)
        self._change(path, Node("folder"))

    def fsync_path(self, path: Path) -> None:
        self._on_call(self, "fsync_path")
        node = self._node(path)
        node.flushed = node.data
        if node.kind == "folder":
            self._flush_names(node)

    def _flush_names(self, folder: Node) -> None:
        """All names of a folder are durable; of a rename out of it both sides, of one into it the new name only."""
        left_over = []
        for change in self.pending:
            source = change.left[0] if change.left else None
            if folder not in (change.folder, source):
                left_over.append(change)
            elif change.folder is folder and source is not None and source is not folder:
                Change(folder, change.name, change.node).apply(_kept_names)
                left_over.append(Change(*change.left, None) if change.left else change)
            else:
                change.apply(_kept_names)
        self.pending = left_over

    def _opened(self, call: Callable[[Path, int], int], path: Path, mode: int) -> int:
        self._on_call(self, call.__name__)
        is_new = not path.exists()
        fd = call(path, mode)
        if is_new:
            self._change(path, Node("file"))
        self._open[fd] = self._node(path)
        return fd

    def _written(self, name: str, fd: int, call: Callable[[], int]) -> int:
        self._on_call(self, name)
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
            node = node.names[part]
        return node


def _names(node: Node) -> dict[str, Node]:
    return node.names


def _kept_names(node: Node) -> dict[str, Node]:
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


def states(disk: Disk, ledger: Image) -> Iterator[tuple[str, Image]]:
    """What a loss of power may leave now, each with the kind of loss that leads to it; many are equal.

    Of the names that no flush made durable come none, all, the oldest few, one alone, or all but one; of the data of files
    likewise nothing, all, the half, or zeros.
    """
    for kept, chosen in _subsets(len(disk.pending)):
        folders = _with(disk, chosen)
        for loss in DATA_LOSSES:
            yield f"names {kept}, data lost: {loss}", _image(disk.root, folders, loss) | ledger


def _subsets(num: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    every = tuple(range(num))
    yield "all kept", every
    if num:
        yield "all lost", ()
    for at in every:
        yield "oldest kept", every[:at]
        yield "one kept", (at,)
        yield "one lost", every[:at] + every[at + 1 :]


def _with(disk: Disk, chosen: tuple[int, ...]) -> dict[int, dict[str, Node]]:
    """The names of each folder that some of the pending changes bear on, by the folder's id."""
    found: dict[int, dict[str, Node]] = {}

    def names(folder: Node) -> dict[str, Node]:
        return found.setdefault(id(folder), dict(folder.kept_names))

    for at in chosen:
        disk.pending[at].apply(names)
    return found


def _image(root: Node, folders: dict[int, dict[str, Node]], loss: str) -> Image:
    found: Image = {}

    def walk(node: Node, path: str) -> None:
        for name, child in folders.get(id(node), node.kept_names).items():
            place = f"{path}{name}"
            if place in UNMODELLED:
                continue
            if child.kind == "folder":
                found[place] = None
                walk(child, f"{place}/")
            else:
                found[place] = child.data.decode() if child.kind == "link" else child.after(loss)

    walk(root, "")
    return found


def ledger_of(home: Path) -> Image:
    """The ledger as it lies there now."""
    return {name: (home / name).read_bytes() for name in LEDGER if (home / name).exists()}


def torn_ledger(before: Image, after: Image) -> Image | None:
    """The ledger with half of what its latest transaction wrote; None where the write-ahead log did not grow."""
    old, new = before.get(LEDGER[1]), after.get(LEDGER[1])
    if not isinstance(old, bytes) or not isinstance(new, bytes) or not new.startswith(old) or len(new) == len(old):
        return None
    return after | {LEDGER[1]: new[: (len(old) + len(new)) // 2]}


def write_image(image: Image, home: Path) -> None:
    """A home with this content, in a folder of its own."""
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    for name, content in image.items():
        path = home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            path.mkdir(exist_ok=True)
        elif isinstance(content, str):
            path.symlink_to(content)
        else:
            path.write_bytes(content)


def digest(image: Image) -> bytes:
    """Equal for equal states."""
    found = hashlib.sha256()
    for name, content in sorted(image.items()):
        kind = "d" if content is None else "l" if isinstance(content, str) else "f"
        body = b"" if content is None else content.encode() if isinstance(content, str) else content
        found.update(f"{kind} {name} {len(body)}\n".encode() + body)
    return found.digest()
