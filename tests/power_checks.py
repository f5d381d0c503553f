"""What must be true of every state that a loss of power leaves, once a store is started on it."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from daemon.spool import spooled_name
from state import sweep
from state.store import Store
from state.verify import drill, verify
from tests.disk_states import Image, digest, read_image, write_image
from tests.power_story import Facts, claim_all, commit
from tests.state_world import NOW


@dataclass
class Tally:
    """What was tried, and what was not true of it."""

    calls: Counter[str] = field(default_factory=Counter)
    """Calls that change the disk, and transactions, at which power was lost."""
    kinds: Counter[str] = field(default_factory=Counter)
    """States by the kind of loss that leads to them, equal ones counted each time."""
    num_checked: int = 0
    broken: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"  {num:8}  {name}" for name, num in sorted(self.calls.items())]
        lines = [f"{self.calls.total():10}  calls at which power was lost, of these", *lines]
        lines += [f"{self.kinds.total():10}  states that it may leave, of these"]
        lines += [f"  {num:8}  {kind}" for kind, num in sorted(self.kinds.items())]
        lines += [f"{self.num_checked:10}  distinct states checked", f"{len(self.broken):10}  broken promises"]
        return "\n".join(lines + [f"    {line}" for line in self.broken[:40]])


class Checker:
    """Lays states out in a folder, starts on them, and notes every promise that was not kept."""

    def __init__(self, work: Path, tally: Tally, *, keep: Path | None = None) -> None:
        self._work = work
        self.tally = tally
        self._keep = keep
        self._rebuilt: set[bytes] = set()
        """Versions, overlays and base of which every version was rebuilt bit for bit before."""

    def check(self, where: str, image: Image, broken: Callable[[Path], Iterator[str]]) -> None:
        """Hold one state to what had been promised; `where` tells how to come by it."""
        write_image(image, self._work)
        self.tally.num_checked += 1
        try:
            found = list(broken(self._work))
        except Exception as err:  # noqa: BLE001  whatever it is, the store did not come back
            found = [f"{type(err).__name__}: {err}"]
        self.tally.broken += [f"{where}: {what}" for what in found]
        if found and self._keep is not None:
            write_image(image, self._keep)
            self._keep = None

    def broken(self, home: Path, made: Facts, coming: Facts) -> Iterator[str]:
        """What is not as promised once a home is recovered as the service does at its start.

        Args:
            made: what had been promised before the loss of power.
            coming: what the act that it interrupted would have promised.
        """
        with Store.open(home) as store:
            store.recover(NOW)
            yield from _lost(Facts.of(store), made, coming)
            yield from (f"verify: {finding}" for finding in verify(store, deep=True))
            yield from _disagreements(store)
            yield from self._unlike_when_rebuilt(store)
        before = read_image(home)
        with Store.open(home) as store:
            if done := store.recover(NOW):
                yield f"a second start still found work: {done}"
            if read_image(home) != before:
                yield "a second start changed files"
            yield from _what_stops(store, made, coming)

    def _unlike_when_rebuilt(self, store: Store) -> Iterator[str]:
        image = read_image(store.home)
        inputs = {name: image[name] for name in image if name.startswith(("models/v0/", "store/versions/"))}
        key = digest(inputs)
        if key in self._rebuilt:
            return
        with tempfile.TemporaryDirectory(dir=store.home.parent) as aside:
            found = drill(store, [row.id for row in store.ledger.versions()], Path(aside))
        yield from (f"drill: {finding}" for finding in found)
        if not found:
            self._rebuilt.add(key)


def _lost(found: Facts, made: Facts, coming: Facts) -> Iterator[str]:
    """What was acknowledged and is not there; of the act that was interrupted all is there or nothing."""
    if found.rows not in (made.rows, coming.rows):
        torn = [name for name in made.rows if found.rows[name] not in (made.rows[name], coming.rows[name])]
        yield f"the ledger is neither old nor new: {', '.join(torn) or 'its tables are of different times'}"
    if not found.audit.startswith(made.audit):
        yield "audit lines are gone"
    if not coming.audit.startswith(found.audit):
        yield "the audit file has lines that nobody wrote"


def _disagreements(store: Store) -> Iterator[str]:
    """Where folders and the ledger tell different stories, beside what `verify` finds."""
    entries = store.quarantined()
    lie_there = {entry.batch for entry in entries if entry.batch is not None}
    if lie_there != {row.sha256 for row in store.ledger.batches("quarantined")}:
        yield "the quarantine holds other batches than the ledger says"
    yield from (f"{entry.name} lies in quarantine without its files" for entry in entries if not _has_data(entry.path))
    yield from (f"left over: {left}" for left in sweep.leftovers(store))
    waiting = (row for row in store.ledger.versions("awaiting_approval") if not store.is_materialized(row.id))
    yield from (f"{row.name} awaits approval without its model" for row in waiting)


def _has_data(entry: Path) -> bool:
    return (entry / "data").exists()


def _what_stops(store: Store, made: Facts, coming: Facts) -> Iterator[str]:
    """Whether it goes on: drops are claimed, and a round whose candidate is done ends in its version."""
    claim_all(store)
    found = Facts.of(store)
    for name in made.drops & coming.drops:
        is_back = (store.home / "inbox" / spooled_name(name)).exists()
        if found.drops[name] + (name in found.aside) + is_back == 0:
            yield f"drop {name} is gone"
    for name, num in found.drops.items():
        if num > 1:
            yield f"drop {name} is there {num} times"
    if any(True for _ in store.spool.iterdir()):
        yield "drops stay in the spool"
    row = store.ledger.rounds()[-1] if store.ledger.rounds() else None
    if row is not None and row.state == "running" and row.step == "candidate":
        commit(store, state="published")
    yield from (f"verify after it went on: {finding}" for finding in verify(store))
