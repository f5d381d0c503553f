"""What a crash or an ended round leaves behind and nothing refers to."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from state import durable, lock
from state.core import StoreCore
from state.queue import OPEN_STATES

VERSION_NAME = re.compile(r"v([0-9]+)")


@dataclass(frozen=True)
class Leftover:
    """One path that can go, and why."""

    path: Path
    reason: str


def leftovers(store: StoreCore, *, is_service_idle: bool = True) -> list[Leftover]:
    """Everything that can go; the caller holds the store's lock. What a living process has taken (`scratch`) stays.

    Args:
        is_service_idle: no service is at work. One at work copies drops and writes patches outside the lock, so
            what is not yet registered may be its.
    """
    found = [*_scratch(store), *_versions(store)]
    if is_service_idle:
        found += [*_temporaries(store), *_batches(store)]
    return [left for left in found if not lock.is_taken(left.path)]


def remove(found: Iterable[Leftover]) -> list[Leftover]:
    """Remove leftovers and return them; what a command took for itself in the meantime stays."""
    done = []
    for left in found:
        with lock.taken(left.path) as is_ours:
            if is_ours:
                durable.remove_tree(left.path)
                done.append(left)
    return done


def _temporaries(store: StoreCore) -> Iterator[Leftover]:
    folders = (store.home, store.root, store.models, store.versions, store.batches, store.patches)
    for folder in folders:
        for path in folder.glob(f"{durable.TEMPORARY_PREFIX}*"):
            yield Leftover(path, "a write that was never finished")
    for path in store.quarantine.glob(f"*/{durable.TEMPORARY_PREFIX}*"):
        yield Leftover(path, "a write that was never finished")


def _scratch(store: StoreCore) -> Iterator[Leftover]:
    open_rounds = {row.id for row in store.ledger.rounds(*OPEN_STATES)}
    for path in store.scratch_root.iterdir():
        if path.name not in open_rounds:
            yield Leftover(path, "scratch of a round that has ended")


def _versions(store: StoreCore) -> Iterator[Leftover]:
    known = {row.name for row in store.ledger.versions()}
    names = {path.name for folder in (store.models, store.versions) for path in folder.iterdir()}
    for name in sorted(names - known):
        match = VERSION_NAME.fullmatch(name)
        if match and not _is_being_committed(store, int(match[1])):
            for path in (store.models / name, store.versions / name):
                if path.exists():
                    yield Leftover(path, "a version that was never committed")


def _is_being_committed(store: StoreCore, number: int) -> bool:
    """True when the round that placed it is still open: committing again adopts it."""
    path = store.record_path(number)
    if not path.exists() or not store.model_path(number).exists():
        return False
    row = store.ledger.round(json.loads(path.read_bytes())["round"])
    return row is not None and row.state in OPEN_STATES


def _batches(store: StoreCore) -> Iterator[Leftover]:
    known = {row.sha256 for row in store.ledger.batches()}
    for path in store.batches.iterdir():
        if path.name not in known and not path.name.startswith(durable.TEMPORARY_PREFIX):
            yield Leftover(path, "a claim that was never registered; the drop is still in the spool")
