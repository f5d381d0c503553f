"""Removes what can be rebuilt, and what is reachable from nothing.

Overlays and records always stay, and so does every batch of the ledger: it may be tried again, and versions that were
made with it are built on. Only `Quarantine.drop` deletes a batch.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from state import durable, lock, sweep
from state.queue import OPEN_STATES
from state.rows import VersionRow
from state.store import Store


@dataclass(frozen=True)
class Item:
    """One thing that is (or would be) removed, and why."""

    path: Path
    num_bytes: int
    """Space that is freed: a file frees it with the last of its names (hard links)."""
    reason: str
    shared_bytes: int = 0
    """Size of its files that stay, since what is kept has them too."""


def plan(versions: list[VersionRow], *, kept: set[int], tagged: set[int], keep_materialized: int) -> dict[int, str]:
    """The versions whose model folder can go, with the reason; a pure function.

    Args:
        versions: all versions, oldest first.
        kept: never to go: current, previous, and what replicas may still read.
        tagged: versions with a tag.
        keep_materialized: how many of the newest published versions stay, >= 0.
    """
    published = [row.id for row in versions if row.state == "published"]
    newest = set(published[len(published) - min(keep_materialized, len(published)) :])
    kept_as = ["current", "previous", "pinned", "tagged"]
    last = f"of the newest {keep_materialized} published" if keep_materialized else kept_as.pop()
    gone = {}
    for row in versions:
        is_kept = row.id in kept | tagged | newest or row.pinned
        if not is_kept and row.state not in ("base", "awaiting_approval"):
            gone[row.id] = f"{row.state}; neither {', '.join(kept_as)} nor {last}"
    return gone


def run(store: Store, *, keep_materialized: int, now: str, actor: str, dry_run: bool = False) -> list[Item]:
    """Remove (or with `dry_run` only list) what `plan` lets go, stale staging and scratch, claims that were never
    registered, and patches that nothing refers to.

    Raises:
        ValueError: `keep_materialized` is negative.
    """
    if keep_materialized < 0:
        raise ValueError(f"keep_materialized is {keep_materialized}; it must be 0 or more")
    with store._changing("gc"):
        items = _items(store, keep_materialized)
        if items and not dry_run:
            _remove(store, items, actor=actor, now=now)
    return items


def _remove(store: Store, items: list[Item], *, actor: str, now: str) -> None:
    details = {"removed": [str(item.path.relative_to(store.home)) for item in items]}
    with store._transaction("collected", "store", actor=actor, now=now, details=details):
        pass
    for item in items:
        with lock.taken(item.path) as is_ours:
            if is_ours:
                _detach(item.path)


def _detach(path: Path) -> None:
    """Take a folder out of sight by one rename before it is emptied: nobody sees half of it."""
    if path.name.startswith(durable.TEMPORARY_PREFIX):
        return durable.remove_tree(path)
    doomed = path.with_name(f"{durable.TEMPORARY_PREFIX}gone-{path.name}")
    durable.remove_tree(doomed)
    durable.move(path, doomed)
    return durable.remove_tree(doomed)


def _items(store: Store, keep_materialized: int) -> list[Item]:
    is_idle = lock.holder(store.service_lock) is None and not store.ledger.rounds("running")
    found = sweep.leftovers(store, is_service_idle=is_idle)
    found += [left for left in _models(store, keep_materialized) if not lock.is_taken(left.path)]
    found += _patches(store)
    return _weighed(found)


def _models(store: Store, keep_materialized: int) -> Iterator[sweep.Leftover]:
    previous = store.previous()
    kept = {store.current().id, *store.versions_in_replicas} | ({previous.id} if previous else set())
    tagged = {tag.version for tag in store.ledger.tags()}
    gone = plan(store.ledger.versions(), kept=kept, tagged=tagged, keep_materialized=keep_materialized)
    for number, reason in gone.items():
        if store.is_materialized(number):
            yield sweep.Leftover(store.model_path(number), reason)


def _patches(store: Store) -> Iterator[sweep.Leftover]:
    used = {row.patch for row in store.ledger.versions()}
    open_rounds = store.ledger.rounds(*OPEN_STATES)
    for path in store.patches.glob("*.safetensors"):
        if path.name.startswith(durable.TEMPORARY_PREFIX):
            continue  # the sweep's
        if path.stem not in used and not any(path.stem in str(row.artefacts) for row in open_rounds):
            yield sweep.Leftover(path, "a patch that no version refers to")


def _weighed(found: list[sweep.Leftover]) -> list[Item]:
    """How much each frees; what several of them share is freed with the last of these."""
    num_gone: Counter[tuple[int, int]] = Counter()
    items = []
    for left in found:
        freed = shared = 0
        for status in map(Path.lstat, _files(left.path)):
            num_gone[status.st_dev, status.st_ino] += 1
            if num_gone[status.st_dev, status.st_ino] == status.st_nlink:
                freed += status.st_size
            else:
                shared += status.st_size
        items.append(Item(left.path, freed, left.reason, shared))
    return items


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    return [Path(folder, name) for folder, _, names in os.walk(path) for name in names]
