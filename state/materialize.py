"""Complete model folders out of a parent and edits; streamed, so memory does not grow with the model."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from state import durable, overlay
from state.errors import StoreCorruptError
from state.header import TensorInfo
from state.overlay import Edit
from state.tensors import ModelFolder, raw_dtype, read_chunks

if TYPE_CHECKING:
    from state.core import StoreCore

NUM_BUFFERS = 4
_VERIFY = "`alignd verify --deep` tells whether the base or an overlay is damaged"


@dataclass(frozen=True)
class Digests:
    """SHA-256 of every file and every tensor of a model folder, as VERSION.json keeps them."""

    files: dict[str, str] = field(default_factory=dict)
    tensors: dict[str, str] = field(default_factory=dict)


def build_folder(
    parent: ModelFolder,
    edits: Mapping[str, Edit],
    staging: Path,
    *,
    known: Digests | None = None,
    link: bool = False,
) -> Digests:
    """Write a complete model folder at `staging` (must not exist): the parent's files with the edits assigned.

    Every file gets mode 0444 and, unless linked, an inode of its own; headers and order of the shards stay. All of it is
    flushed when this returns.

    Args:
        known: the parent's digests; what is not touched is taken from there instead of read and hashed.
        link: hard-link untouched files (only for a parent under our own `models/`).
    Raises:
        ValueError: an edit names no tensor of the parent, or does not fit it.
    """
    unknown = sorted(set(edits) - parent.tensors.keys())
    if unknown:
        raise ValueError(f"{parent.path} has no tensor {unknown[0]}")
    durable.make_folder(staging, 0o755)
    touched = {parent.tensors[name].file for name in edits}
    digests = Digests()
    for name in parent.files:
        target = staging / name
        durable.make_folder(target.parent, 0o755)
        if name in touched or known is None:
            part = _write_file(parent, name, edits, target)
        else:
            _carry(parent.files[name], target, link=link)
            part = _known_part(parent, name, known)
        digests.files[name] = part.files[name]
        digests.tensors.update(part.tensors)
    if link:  # each other file has flushed its folder itself
        for folder in sorted({(staging / name).parent for name in parent.files}):
            durable.flush_folder(folder)
    return digests


def rebuild(store: StoreCore, version_id: int, staging: Path) -> None:
    """Write version `version_id` at `staging` (must not exist) from the base and its overlays.

    Raises:
        StoreCorruptError: a file of the result is not what VERSION.json says; names it.
    """
    record = store.version_record(version_id)
    lineage = store.lineage(version_id)
    base = ModelFolder.open(store.model_path(lineage[0].id))
    chain = overlay.Chain([overlay.read(store.overlay_path(row.id)) for row in lineage[1:]])
    try:
        digests = build_folder(base, chain, staging)
    except ValueError as err:
        raise StoreCorruptError(f"v{version_id}: an overlay does not fit the base: {err}", _VERIFY) from err
    for name in sorted(digests.files.keys() | record["files"].keys()):
        if digests.files.get(name) != record["files"].get(name):
            raise StoreCorruptError(
                f"v{version_id} rebuilt: {name} is not what was published",
                _VERIFY,
            )


def _known_part(parent: ModelFolder, name: str, known: Digests) -> Digests:
    tensors = {info.name: known.tensors[info.name] for info in parent.tensors_of(name)}
    return Digests({name: known.files[name]}, tensors)


def _carry(source: Path, target: Path, *, link: bool) -> None:
    if link:
        durable.link_file(source, target)
    else:
        durable.copy_file(source, target, 0o444)


def _write_file(parent: ModelFolder, name: str, edits: Mapping[str, Edit], target: Path) -> Digests:
    with durable.writing(target, 0o444) as out, _Hashes() as hashes:
        return _stream(parent, name, edits, hashes=hashes, out=out)


def _stream(
    folder: ModelFolder,
    name: str,
    edits: Mapping[str, Edit],
    *,
    hashes: _Hashes,
    out: durable.Writer,
) -> Digests:
    """One pass over a file: edit, hash, write."""
    source = folder.files[name]
    infos = folder.tensors_of(name)
    whole, tensors = hashlib.sha256(), {}
    for info in [_lead(source, name, infos), *infos]:
        edit = edits.get(info.name) if info.name and info.num_bytes else None
        own = hashlib.sha256()
        done = 0
        for chunk in read_chunks(source, info, NUM_BUFFERS):
            if edit is not None:
                _assign(chunk, edit, info, done)
            hashes.update(chunk, whole, own)
            out.write(chunk.data)
            done += len(chunk)
        hashes.wait()
        tensors[info.name] = own.hexdigest()
    del tensors[""]
    return Digests({name: whole.hexdigest()}, tensors)


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
    """Two digests of the same chunks, each in a thread beside the reading and writing of the next ones."""

    def __init__(self) -> None:
        # one thread per digest: the chunks of one must come in order
        self._pools = (ThreadPoolExecutor(1), ThreadPoolExecutor(1))
        self._running: deque[Future[None]] = deque()

    def update(self, chunk: NDArray[np.uint8], *digests: Any) -> None:
        """Add a chunk to two digests, and wait until the one `NUM_BUFFERS - 1` before it is done with."""
        for pool, digest in zip(self._pools, digests, strict=True):
            self._running.append(pool.submit(digest.update, chunk.data))
        while len(self._running) > len(self._pools) * (NUM_BUFFERS - 1):
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
