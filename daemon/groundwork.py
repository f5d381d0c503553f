"""What a round builds on is what was written, byte for byte: from its start to its end."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from state.digests import is_of_file
from state.errors import StoreCorruptError
from state.remedy import remedy
from state.rows import RoundRow
from state.store import Store

Stamp = tuple[int, int, int]
"""Inode, size and time of change of a file."""


@contextmanager
def sound_models(store: Store, row: RoundRow) -> Iterator[None]:
    """Checks the model folders of the round's parent and of the base before the block, and that none changed, after it.

    Raises:
        StoreCorruptError: names the first file that is gone, or not what was written; the round will begin anew.
    """
    with _beginning_anew(store, row):
        stamps = _check_models(store, {row.parent, 0} | _start_of(store, row))
    yield
    with _beginning_anew(store, row):
        _check_untouched(store, stamps)


def _start_of(store: Store, row: RoundRow) -> set[int]:
    """The import that a consolidation trains from, where its folder is there; else it is made from what is checked."""
    ground = store.ground(row.parent).id
    return {ground} if row.kind == "consolidation" and store.is_materialized(ground) else set()


@contextmanager
def _beginning_anew(store: Store, row: RoundRow) -> Iterator[None]:
    try:
        yield
    except StoreCorruptError:
        store.forget_steps(row.id)  # who knows since when they were done on it
        raise


def _check_models(store: Store, versions: Iterable[int]) -> dict[Path, Stamp]:
    stamps: dict[Path, Stamp] = {}
    for version in sorted(versions):
        for name, digest in store.version_record(version)["files"].items():
            path = store.model_path(version) / name
            stamp = _stamp(store, path)
            if stamp not in stamps.values():  # versions share the files that no round changed
                _check(store, path, digest)
            stamps[path] = stamp
    return stamps


def check_texts(store: Store) -> None:
    """Compares the base's files with their digests, but for the weights: what an intake reads. Raises StoreCorruptError."""
    for name, digest in store.version_record(0)["files"].items():
        if not name.endswith(".safetensors"):
            _check(store, store.model_path(0) / name, digest)


def _check_untouched(store: Store, stamps: dict[Path, Stamp]) -> None:
    for path, stamp in stamps.items():
        if _stamp(store, path) != stamp:
            raise StoreCorruptError(f"{path} was changed while a round built on it", remedy(store, path))


def _check(store: Store, path: Path, digest: str) -> None:
    _stamp(store, path)
    if not is_of_file(path, digest):
        raise StoreCorruptError(f"{path} is not what was written", remedy(store, path))


def _stamp(store: Store, path: Path) -> Stamp:
    try:
        found = path.stat()
    except FileNotFoundError as err:
        raise StoreCorruptError(f"{path} is gone", remedy(store, path)) from err
    return found.st_ino, found.st_size, found.st_mtime_ns  # links change the ctime
