"""What a loss of power may leave of a `Disk`, and of the ledger, which SQLite writes past it.

The ledger's two files are taken as they lie at each call. SQLite flushes each transaction before it returns (WAL,
synchronous=FULL), so all earlier ones are there whatever happens; of the latest one, and of a checkpoint that it set
off, `ledger_losses` makes what may have arrived.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from functools import lru_cache
from itertools import chain, combinations
from pathlib import Path
from typing import Final

from tests.losing_disk import DATA_LOSSES, Disk, Node, kept_names_of, num_common

LEDGER: Final = ("store/ledger.db", "store/ledger.db-wal")
UNKEPT: Final = ("store/ledger.db-shm", "store/service.lock", "store/serving.lock", "store/store.lock", ".create.lock")
"""Nothing in them outlives a process."""
WAL_HEADER_BYTES: Final = 32
PAGE_BYTES: Final = 4096
"""Of SQLite, where nobody chose another size."""
ALL_SUBSETS_UP_TO: Final = 4
"""Of so many changes of names every subset is tried; of more all, none, the oldest, one alone, all but one."""
Image = dict[str, "bytes | str | None"]
"""A home: relative path -> bytes of a file, target of a link, None for a folder."""


def states(disk: Disk, ledger: Image | None) -> Iterator[tuple[str, Image]]:
    """What a loss of power may leave now, each with the kind of loss that leads to it; many are equal.

    Args:
        ledger: its files; None takes them from the disk, where another library's files are.
    """
    for kept, chosen in _subsets(len(disk.pending)):
        folders = _with(disk, chosen)
        dirty = _dirty(disk.root, folders)
        for loss in DATA_LOSSES if dirty else DATA_LOSSES[:1]:
            yield f"names {kept}, data lost: {loss}", image_of(disk.root, folders, dict.fromkeys(dirty, loss), ledger)
        if kept == "all kept" and len(dirty) > 1:
            for file in dirty:
                yield "names all kept, data of one file lost", image_of(disk.root, folders, {file: "all"}, ledger)


def extremes(disk: Disk, ledger: Image | None) -> Iterator[tuple[str, Image]]:
    """All that was written is there, and nothing that was not flushed."""
    everything = _with(disk, tuple(range(len(disk.pending))))
    yield "nothing lost", image_of(disk.root, everything, {}, ledger)
    yield "all lost", image_of(disk.root, {}, dict.fromkeys(_dirty(disk.root, {}), "all"), ledger)


def _subsets(num: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    every = tuple(range(num))
    yield "all kept", every
    if num:
        yield "all lost", ()
    if num <= ALL_SUBSETS_UP_TO:
        for some in chain.from_iterable(combinations(every, size) for size in range(1, num)):
            yield "some kept", some
        return
    for at in every:
        yield "oldest kept", every[:at]
        yield "one kept", (at,)
        yield "one lost", every[:at] + every[at + 1 :]


def _with(disk: Disk, chosen: tuple[int, ...]) -> dict[Node, dict[str, Node]]:
    """The names of each folder that some of the pending changes bear on."""
    found: dict[Node, dict[str, Node]] = {}

    def names(folder: Node) -> dict[str, Node]:
        return found.setdefault(folder, dict(kept_names_of(folder)))

    for at in chosen:
        disk.pending[at].apply(names)
    return found


def _dirty(root: Node, folders: dict[Node, dict[str, Node]]) -> list[Node]:
    """The files that can be reached and hold something that no flush made durable."""
    found: dict[Node, None] = {}
    waiting = [root]
    for folder in waiting:  # grows while it is walked
        for node in folders.get(folder, folder.kept_names).values():
            if node.kind == "folder":
                waiting.append(node)
            elif not node.is_flushed():
                found[node] = None
    return list(found)


def image_of(root: Node, folders: dict[Node, dict[str, Node]], losses: dict[Node, str], ledger: Image | None) -> Image:
    """The content of a home with these names, and these losses of data."""
    found: Image = {}
    passed_over = UNKEPT if ledger is None else (*LEDGER, *UNKEPT)

    def walk(node: Node, path: str) -> None:
        for name, child in folders.get(node, node.kept_names).items():
            place = f"{path}{name}"
            if place in passed_over:
                continue
            if child.kind == "folder":
                found[place] = None
                walk(child, f"{place}/")
            else:
                found[place] = child.data.decode() if child.kind == "link" else child.after(losses.get(child, "none"))

    walk(root, "")
    return found | (ledger or {})


def ledger_of(home: Path, before: Image | None = None) -> Image:
    """The ledger as it lies there now; where it is as `before`, that one."""
    found: Image = {name: (home / name).read_bytes() for name in LEDGER if (home / name).exists()}
    return before if before is not None and found == before else found


def ledger_losses(before: Image, after: Image) -> Iterator[tuple[str, Image]]:
    """What may have arrived of one transaction, and of the checkpoint that followed where the database changed too."""
    database, log = (_pair(before, after, name) for name in LEDGER)
    if log[0] != log[1]:
        for kind, part in _partly(_with_header_of(log[1], log[0]), log[1]):
            yield f"log {kind}", before | {LEDGER[1]: part}
    if database[0] != database[1]:
        yield "checkpoint lost", after | {LEDGER[0]: database[0]}
        for kind, part in _some_pages(*database):
            yield f"checkpoint {kind}", after | {LEDGER[0]: part}


def _with_header_of(new: bytes, old: bytes) -> bytes:
    """A log that begins anew: SQLite flushes its new header before any frame (walWriteFrames, syncHeader)."""
    return new[:WAL_HEADER_BYTES] + old[WAL_HEADER_BYTES:] if old else old


def _pair(before: Image, after: Image, name: str) -> tuple[bytes, bytes]:
    old, new = before.get(name, b""), after.get(name, b"")
    assert isinstance(old, bytes) and isinstance(new, bytes)
    return old, new


def _partly(old: bytes, new: bytes) -> Iterator[tuple[str, bytes]]:
    """Some of the bytes that changed from `old` to `new` (never shorter): first ones, last ones, all but a few."""
    start = num_common(old, new)
    size = len(new) - start
    padded = old + bytes(len(new) - len(old))
    for quarters in (1, 2, 3):
        at = start + size * quarters // 4
        yield "torn", new[:at] + old[at:]
        yield "out of order", padded[:at] + new[at:]
    yield "torn", new[:-1] + old[len(new) - 1 :]
    yield "zeros", new[:start] + bytes(size)


def _some_pages(old: bytes, new: bytes) -> Iterator[tuple[str, bytes]]:
    """Some of the pages that changed from `old` to `new`: first ones, last ones, and each second, one of them torn."""
    starts = range(0, len(new), PAGE_BYTES)
    changed = [at for at in starts if old[at : at + PAGE_BYTES] != new[at : at + PAGE_BYTES]]
    half = len(changed) // 2
    choices = {"first half": changed[:half], "last half": changed[half:], "each second": changed[::2]}
    for kind, kept in choices.items():
        yield kind, _with_pages(old, new, kept, PAGE_BYTES)
        yield f"{kind}, torn", _with_pages(old, new, kept, PAGE_BYTES // 2)


def _with_pages(old: bytes, new: bytes, starts: list[int], num_bytes: int) -> bytes:
    data = bytearray(old)
    for at in starts:
        data[len(data) :] = bytes(max(0, at + PAGE_BYTES - len(data)))
        data[at : at + num_bytes] = new[at : at + num_bytes]
    return bytes(data)


def write_image(image: Image, home: Path) -> None:
    """A home with this content, in a folder of its own."""
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    for name, content in image.items():
        path = home / name
        if content is None:
            path.mkdir(parents=True, exist_ok=True)
        elif isinstance(content, str):
            path.symlink_to(content)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


def read_image(home: Path) -> Image:
    """The content of a home without its ledger."""
    found: Image = {}
    for path in sorted(home.rglob("*")):
        name = path.relative_to(home).as_posix()
        if name not in (*LEDGER, *UNKEPT):
            is_link, is_folder = path.is_symlink(), path.is_dir()
            found[name] = str(path.readlink()) if is_link else None if is_folder else path.read_bytes()
    return found


def digest(image: Image) -> bytes:
    """Equal for equal states."""
    found = hashlib.sha256()
    for name, content in sorted(image.items()):
        kind = "d" if content is None else "l" if isinstance(content, str) else "f"
        body = b"" if content is None else content.encode() if isinstance(content, str) else _sha256(content)
        found.update(f"{kind} {name} {len(body)}\n".encode() + body)
    return found.digest()


@lru_cache(maxsize=4096)
def _sha256(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()
