"""A store's life, act by act: what is done to it, and what it has told somebody afterwards.

Each act may be done again after it was cut short, as the service and a patient user do, and changes the rows of the
ledger at most once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np

from daemon import spool
from daemon.arrival import snapshot
from state import durable, gc, patchfile
from state.quarantine import DROP_PREFIX
from state.rows import RoundRow
from state.store import Store
from tests.state_world import NOW, prepare

WHO: Final[Any] = {"actor": "tester", "now": NOW}
STAMP_LENGTH: Final = 32


@dataclass(frozen=True)
class Act:
    """One thing that is done to a store."""

    name: str
    do: Callable[[Store], object]


@dataclass(frozen=True)
class Facts:
    """What the store says of itself, in its ledger and to a reader of its files."""

    rows: dict[str, Any]
    """Tables of the ledger, the version in service, hold and pause."""
    audit: bytes
    drops: Counter[str]
    """Spool entries of all drops that were taken in: how often each is in the spool, a batch or a duplicate."""
    aside: frozenset[str]
    """Drops in quarantine that could not be read."""

    @classmethod
    def of(cls, store: Store) -> Facts:
        """What is true now."""
        ledger = store.ledger
        rows = {
            "batches": ledger.batches(),
            "rounds": ledger.rounds(),
            "versions": ledger.versions(),
            "duplicates": ledger.duplicates(),
            "tags": ledger.tags(),
            "current": ledger.current_pointer(),
            "held": store.held,
            "paused": store.paused,
        }
        aside = frozenset(entry.id.removeprefix(DROP_PREFIX) for entry in store.quarantined() if entry.batch is None)
        return cls(rows, _audit(store), _drops(store), aside)


def _audit(store: Store) -> bytes:
    return store.audit_path.read_bytes() if store.audit_path.exists() else b""


def _drops(store: Store) -> Counter[str]:
    claimed = [row.source for row in store.ledger.batches()] + [row.source for row in store.ledger.duplicates()]
    return Counter(claimed + [name for name in _spooled(store) if name not in claimed])


def _spooled(store: Store) -> list[str]:
    names = (entry.name for entry in store.spool.iterdir())
    return sorted(name for name in names if not name.startswith(durable.TEMPORARY_PREFIX))


def acts(num_cycles: int) -> Iterator[Act]:
    """Cycles of drop, claim, round, version, rollback, promotion and collection; between them drops that are no use."""
    for cycle in range(1, num_cycles + 1):
        yield from _a_version(cycle)
        if cycle % 2 == 0:
            yield Act("roll back", partial(_roll_back, version=cycle))
            yield Act("resume", lambda store: store.resume(**WHO) if store.held else None)
            yield Act("drop the same again", partial(drop, number=cycle, name=f"again{cycle}"))
            yield Act("claim it as a duplicate", claim_all)
        else:
            yield from _no_use(cycle)
        yield Act("collect", lambda store: gc.run(store, keep_materialized=1, **WHO))
        yield Act("promote v0", lambda store: store.promote("v0", force=True, reason="back", **WHO))
        yield Act(f"promote v{cycle}", partial(_promote, version=cycle))


def _a_version(cycle: int) -> Iterator[Act]:
    """The way of one batch."""
    yield Act("drop", partial(drop, number=cycle, name=f"batch{cycle}.jsonl", is_linked=cycle % 3 == 0))
    yield Act("claim", claim_all)
    yield Act("begin", _begin)
    yield Act("step", lambda store: [store.finish_step(row.id, "parse", {"rows": 1}) for row in _running(store)])
    yield Act("candidate", partial(_make_candidate, seed=cycle))
    by_hand = cycle % 2 == 1
    yield Act("commit", partial(commit, state="awaiting_approval" if by_hand else "published"))
    if by_hand:
        yield Act("approve", lambda store: store.publish(store.ledger.versions()[-1].id, reason="good", **WHO))
    yield Act("tag", lambda store: store.tag("latest", "current", **WHO) if cycle == 1 else None)


def _no_use(cycle: int) -> Iterator[Act]:
    """Of a folder that goes into quarantine and out again twice, and of a drop that cannot be read."""
    number, name = 100 + cycle, f"bad{cycle}"
    yield Act("drop a folder", partial(drop, number=number, name=name, is_folder=True))
    yield Act("claim the folder", claim_all)
    for when in ("", " again"):
        yield Act(f"quarantine{when}", partial(_quarantine, name=name))
        yield Act(f"release{when}", partial(_release, name=name))
    yield Act("quarantine for good", partial(_quarantine, name=name))
    yield Act("delete", partial(_delete, name=name))
    yield Act("drop the unreadable", partial(drop, number=200 + cycle, name=f"odd{cycle}"))
    yield Act("set aside", partial(_set_aside, name=f"odd{cycle}"))
    if cycle % 4 == 1:
        yield Act("release a drop", partial(_release_drop, name=f"odd{cycle}"))
        yield Act("claim the released", claim_all)
        yield Act("quarantine the released", partial(_quarantine, name=f"odd{cycle}"))


def drop(store: Store, *, number: int, name: str, is_folder: bool = False, is_linked: bool = False) -> None:
    """What its owner flushed in the inbox, and the service takes out of it: by a move, or by a copy if it has two names."""
    entry = store.spool / f"{name.encode().hex():0>{STAMP_LENGTH}.{STAMP_LENGTH}}{name}"
    if entry.name in _drops(store):
        return  # it was taken out before all stopped
    source = store.home / "inbox" / name
    for member in (source / "a", source / "b") if is_folder else (source,):
        durable.make_folder(member.parent)
        durable.write_file(member, f"zorp {number} {member.name * is_folder}\n".encode())
    other = source.with_name(f".{name}")
    if is_linked and not other.exists():
        durable.link_file(source, other)
        durable.flush_file(other)
    spool.take_out(source, entry, snapshot(source))


def claim_all(store: Store) -> None:
    """Claim what lies in the spool, as the service does at its start."""
    for name in _spooled(store):
        store.claim_batch(store.spool / name, name=spool.spooled_name(name), **WHO)
    for left in store.spool.iterdir():
        durable.remove_tree(left)


def _begin(store: Store) -> None:
    if not _running(store):
        (queued,) = store.ledger.batches("queued")
        store.begin_round(queued.sha256, config={"seed": queued.seq}, now=NOW)


def _running(store: Store) -> list[RoundRow]:
    return store.ledger.rounds("running")


def _make_candidate(store: Store, *, seed: int) -> None:
    (row,) = _running(store)
    scratch = store.scratch(row.id)
    durable.remove_tree(scratch)
    durable.make_folder(scratch)
    entries = {"layer.0.weight": (np.array([seed]), np.array([0.5], np.float32))}
    patch = patchfile.save(store, entries, {"round": row.id}, folder=scratch)
    record = prepare(store, row.id, seed)["record"] | {"patch": patch}
    made = {"record": record}
    store.finish_step(row.id, "candidate", made)


def commit(store: Store, *, state: Any) -> None:
    """Commit the candidate of the newest round, from what its step recorded alone."""
    row = store.ledger.rounds()[-1]
    scratch, record = store.scratch(row.id), row.artefacts["candidate"]["record"]
    store.commit_version(
        row.id,
        scratch / "model",
        overlay=scratch / "overlay.safetensors",
        patch=scratch / f"{record['patch']}.safetensors",
        record=record,
        state=state,
        now=NOW,
    )


def _roll_back(store: Store, *, version: int) -> None:
    if store.current().id == version:
        store.rollback(reason="bad", **WHO)


def _promote(store: Store, *, version: int) -> None:
    store.promote(f"v{version}", force=True, reason="and forth", **WHO)


def _quarantine(store: Store, *, name: str) -> None:
    store.quarantine_batch(store.find_batch(name).sha256, reason="bad", **WHO)


def _release(store: Store, *, name: str) -> None:
    row = store.find_batch(name)
    if row.state == "quarantined":
        store.release(row.sha256, **WHO)


def _delete(store: Store, *, name: str) -> None:
    row = store.find_batch(name)
    if row.state == "quarantined":
        store.drop(row.sha256, **WHO)


def _set_aside(store: Store, *, name: str) -> None:
    for entry in _spooled(store):
        if spool.spooled_name(entry) == name:
            store.set_aside(store.spool / entry, name=name, reason="unreadable", **WHO)


def _release_drop(store: Store, *, name: str) -> None:
    for entry in store.quarantined():
        if entry.name == name and entry.batch is None:
            store.release(entry.id, **WHO)
