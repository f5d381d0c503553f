"""Complete model folders out of a parent and edits; streamed, so memory does not grow with the model.

Several files at a time: while one waits for the disk, others are read and hashed.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from state import durable, overlay
from state.digests import Digests, Hash, Kinds, new_hash, recorded
from state.errors import StoreCorruptError
from state.header import TensorInfo
from state.overlay import Edit
from state.tensors import ModelFolder, raw_dtype, read_chunks

if TYPE_CHECKING:
    from state.core import StoreCore

NUM_BUFFERS = 4
MAX_FILES_AT_ONCE = 4
_VERIFY = "`alignd verify --deep` tells whether the base or an overlay is damaged"


def build_folder(
    parent: ModelFolder,
    edits: Mapping[str, Edit],
    staging: Path,
    *,
    known: Digests | None = None,
    link: bool = False,
    kinds: Kinds | None = None,
) -> Digests:
    """Write a complete model folder at `staging` (must not exist): the parent's files with the edits assigned.

    Every file gets mode 0444 and, unless linked, an inode of its own; headers and order of the shards stay. All of it is
    flushed when this returns.

    Args:
        edits: looked up from several threads, each name once.
        known: the parent's digests; what is not touched is taken from there instead of read and hashed. With `kinds` they
            must be of these.
        link: hard-link untouched files (only for a parent under our own `models/`).
        kinds: of the digests; without it those that `known` has, or the default.
    Raises:
        ValueError: an edit names no tensor of the parent, or does not fit it.
    """
    _check_names(parent, edits)
    durable.make_folder(staging, 0o755)
    touched = {parent.tensors[name].file for name in edits}
    kinds = kinds or Kinds.of(known or Digests())
    for name in parent.files:
        durable.make_folder((staging / name).parent, 0o755)

    def write(name: str) -> Digests:
        if name in touched or known is None:
            with durable.writing(staging / name, 0o444) as out:
                return _stream(parent, name, edits, out=out, kinds=kinds)
        _carry(parent.files[name], staging / name, link=link)
        return _known_part(parent, name, known, kinds)

    digests = _of_each_file(parent, write)
    if link:  # each other file has flushed its folder itself
        for folder in sorted({(staging / name).parent for name in parent.files}):
            durable.flush_folder(folder)
    return digests


def digests_of(parent: ModelFolder, edits: Mapping[str, Edit], kinds: Kinds) -> Digests:
    """The digests of the folder that `build_folder` would write; nothing is written.

    Raises:
        ValueError: an edit names no tensor of the parent, or does not fit it.
    """
    _check_names(parent, edits)

    def read(name: str) -> Digests:
        return _stream(parent, name, edits, out=None, kinds=kinds)

    return _of_each_file(parent, read)


def _of_each_file(parent: ModelFolder, work: Callable[[str], Digests]) -> Digests:
    """What some work finds of every file, in the order of their names; the first fault ends it."""
    pool = ThreadPoolExecutor(min(MAX_FILES_AT_ONCE, 1 + (os.cpu_count() or 1)))  # one waits for the disk
    try:
        found = Digests()
        for part in pool.map(work, parent.files):
            found.files.update(part.files)
            found.tensors.update(part.tensors)
            found.sha256.update(part.sha256)
        return found
    finally:
        pool.shutdown(cancel_futures=True)


def rebuild(store: StoreCore, version_id: int, staging: Path) -> None:
    """Write version `version_id` at `staging` (must not exist) from the base and its overlays.

    Raises:
        StoreCorruptError: a file of the result is not what VERSION.json says; names it.
    """
    base, published = ModelFolder.open(store.model_path(0)), store.version_record(version_id)["files"]
    with _fitting(version_id):
        digests = build_folder(base, chain(store, version_id), staging, kinds=Kinds.of_files(published))
    _check_same(version_id, digests.files, published)


def edits_on_base(store: StoreCore, version_id: int) -> tuple[Mapping[str, Edit], dict[str, str]]:
    """What of the base a version changes, each tensor looked up anew, checked without writing it.

    Applied to v0, it gives the version bit for bit; an entry that is the base's again is left out.

    Returns:
        The edits, which raise `StoreCorruptError` where they do not fit any more; and SHA-256 of the version's files, of the
        very bytes that were compared with the record.
    Raises:
        StoreCorruptError: it would not; names the first file that is not what was published.
    """
    base, published = ModelFolder.open(store.model_path(0)), store.version_record(version_id)["files"]
    with _fitting(version_id):
        edits = _OnBase(version_id, base, chain(store, version_id))
        digests = digests_of(base, edits, Kinds.of_files(published, with_sha256=True))
    _check_same(version_id, digests.files, published)
    return edits, digests.sha256


class _OnBase(Mapping[str, Edit]):
    """The entries of a chain of overlays that differ from the base's."""

    def __init__(self, version_id: int, base: ModelFolder, edits: Mapping[str, Edit]) -> None:
        self._version_id, self._base, self._edits = version_id, base, edits

    def __getitem__(self, name: str) -> Edit:
        with _fitting(self._version_id):
            edit, info = self._edits[name], self._base.tensors[name]
            _check_fit(edit, info, raw_dtype(info.dtype))
        differs = edit.values != self._base.read_raw(name)[edit.indices]
        return Edit(edit.indices[differs], edit.values[differs])

    def __iter__(self) -> Iterator[str]:
        return iter(self._edits)

    def __len__(self) -> int:
        return len(self._edits)


def chain(store: StoreCore, version_id: int) -> overlay.Chain:
    """The overlays from the base to a version, as one."""
    return overlay.Chain([overlay.read(store.overlay_path(row.id)) for row in store.lineage(version_id)[1:]])


@contextmanager
def _fitting(version_id: int) -> Iterator[None]:
    try:
        yield
    except ValueError as err:
        raise StoreCorruptError(f"v{version_id}: an overlay does not fit the base: {err}", _VERIFY) from err


def _check_same(version_id: int, rebuilt: Mapping[str, str], published: Mapping[str, str]) -> None:
    for name in sorted(rebuilt.keys() | published.keys()):
        if rebuilt.get(name) != published.get(name):
            raise StoreCorruptError(f"v{version_id} rebuilt: {name} is not what was published", _VERIFY)


def _check_names(parent: ModelFolder, edits: Mapping[str, Edit]) -> None:
    unknown = sorted(set(edits) - parent.tensors.keys())
    if unknown:
        raise ValueError(f"{parent.path} has no tensor {unknown[0]}")


def _known_part(parent: ModelFolder, name: str, known: Digests, kinds: Kinds) -> Digests:
    tensors = {info.name: known.tensors[info.name] for info in parent.tensors_of(name)}
    return Digests({name: known.files[name]}, tensors, {name: known.sha256[name]} if kinds.with_sha256 else {})


def _carry(source: Path, target: Path, *, link: bool) -> None:
    if link:
        durable.link_file(source, target)
    else:
        durable.copy_file(source, target, 0o444)


def _stream(
    folder: ModelFolder,
    name: str,
    edits: Mapping[str, Edit],
    *,
    out: durable.Writer | None,
    kinds: Kinds,
) -> Digests:
    """One pass over a file: edit, hash, and write where there is something to write to."""
    source = folder.files[name]
    infos = folder.tensors_of(name)
    whole = new_hash(kinds.files)
    sha256 = new_hash("sha256") if kinds.with_sha256 and kinds.files != "sha256" else None
    tensors: dict[str, str] = {}
    with _Hashes() as hashes:
        for info, edit in _looked_up(_lead(source, name, infos), infos, edits):
            own = new_hash(kinds.tensors) if kinds.tensors and info.name else None
            done = 0
            for chunk in read_chunks(source, info, NUM_BUFFERS):
                if edit is not None:
                    _assign(chunk, edit, info, done)
                hashes.update(chunk, whole, own, sha256)
                if out is not None:
                    out.write(chunk.data)
                done += len(chunk)
            hashes.wait()
            if kinds.tensors and own is not None:
                tensors[info.name] = recorded(kinds.tensors, own)
    others = {name: (sha256 or whole).hexdigest()} if kinds.with_sha256 else {}
    return Digests({name: recorded(kinds.files, whole)}, tensors, others)


def _looked_up(
    lead: TensorInfo, infos: list[TensorInfo], edits: Mapping[str, Edit]
) -> Iterator[tuple[TensorInfo, Edit | None]]:
    """What stands before the tensors, and each tensor with its edit, worked out while what is before it is read and written."""

    def look_up(number: int) -> Edit | None:
        is_there = number < len(infos) and infos[number].num_bytes
        return edits.get(infos[number].name) if is_there else None

    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(look_up, 0)
        yield lead, None
        for number, info in enumerate(infos, 1):
            edit = coming.result()
            coming = pool.submit(look_up, number)
            yield info, edit


def _lead(source: Path, name: str, infos: list[TensorInfo]) -> TensorInfo:
    """What stands before the first tensor, as if it were one: the header of a shard, or all of any other file."""
    end = infos[0].start if infos else source.stat().st_size
    return TensorInfo("", "U8", (end,), name, 0, end)


def _assign(chunk: NDArray[np.uint8], edit: Edit, info: TensorInfo, done: int) -> None:
    """Put the edit's values that fall into a chunk (which starts `done` bytes into the tensor) in their places."""
    dtype = raw_dtype(info.dtype)
    if done == 0:
        _check_fit(edit, info, dtype)
    start = done // dtype.itemsize
    low, high = np.searchsorted(edit.indices, [start, start + len(chunk) // dtype.itemsize])
    chunk.view(dtype)[edit.indices[low:high] - start] = edit.values[low:high]


def _check_fit(edit: Edit, info: TensorInfo, dtype: np.dtype[Any]) -> None:
    if edit.values.dtype != dtype:
        raise ValueError(f"{info.name}: values are {edit.values.dtype}, {info.dtype} needs {dtype}")
    if len(edit.indices) != len(edit.values):
        raise ValueError(f"{info.name}: {len(edit.indices)} positions, {len(edit.values)} values")
    if len(edit.indices) and not 0 <= int(edit.indices[0]) <= int(edit.indices[-1]) < info.num_entries:
        raise ValueError(f"{info.name}: a position outside its {info.num_entries} entries")


class _Hashes:
    """Up to three digests of the same chunks, each in a thread beside the reading and writing of the next ones."""

    def __init__(self) -> None:
        # one thread per digest: the chunks of one must come in order
        self._pools = (ThreadPoolExecutor(1), ThreadPoolExecutor(1), ThreadPoolExecutor(1))
        self._running: deque[Future[object]] = deque()

    def update(self, chunk: NDArray[np.uint8], *digests: Hash | None) -> None:
        """Add a chunk to the digests, and wait until the one `NUM_BUFFERS - 1` before it is done with."""
        wanted = [(pool, digest) for pool, digest in zip(self._pools, digests, strict=True) if digest is not None]
        for pool, digest in wanted:
            self._running.append(pool.submit(digest.update, chunk.data))
        while len(self._running) > len(wanted) * (NUM_BUFFERS - 1):
            self._running.popleft().result()

    def wait(self) -> None:
        """Until all is added."""
        while self._running:
            self._running.popleft().result()

    def __enter__(self) -> _Hashes:
        return self

    def __exit__(self, *_: object) -> None:
        for pool in self._pools:
            pool.shutdown()
