"""What a service let be seen, written down outside of its home, and whether it is still true."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from blake3 import blake3

from daemon.patching import OVER_SAFETY_FILE
from daemon.spool import spooled_name
from state.layout import Layout
from state.ledger import Ledger
from state.queue import OPEN_STATES
from state.store import Store
from state.verify import drill, verify

ENDED: Final = ("published", "rejected", "quarantined", "rolled_back", "reverted")
"""States of a batch that has come to its end."""


@dataclass
class Manifest:
    """What was promised; kept by whoever kills the service."""

    drops: set[str] = field(default_factory=set)
    """Names of drops that were put into the inbox, each with content of its own."""
    batches: dict[str, str] = field(default_factory=dict)
    """Batches that were acknowledged: sha256 -> name."""
    ended: set[str] = field(default_factory=set)
    """Those among them that were seen to have come to their end."""
    versions: dict[int, str] = field(default_factory=dict)
    """Versions that were seen, with the digest of their record."""
    published: list[list[int]] = field(default_factory=list)
    """Number and version of every change of `current` that was seen, in order."""
    held: str = ""
    """Why the service must be on hold; empty when that is not known."""
    over: set[str] = field(default_factory=set)
    """Rounds that had ended before the service was last started."""

    def see(self, store: Store) -> None:
        """Write down what can be seen now."""
        rows = store.ledger.batches()
        self.batches |= {row.sha256: row.name for row in rows}
        self.ended |= {row.sha256 for row in rows if row.state in ENDED}
        self.versions |= {row.id: row.record for row in store.ledger.versions()}
        self.published = pointers(store)

    def save(self, path: Path) -> None:
        """Leave it where somebody can read what was promised."""
        facts = {name: sorted(value) if isinstance(value, set) else value for name, value in asdict(self).items()}
        path.write_text(json.dumps(facts, indent=1))


def pointers(store: Store) -> list[list[int]]:
    """Every change of `current`, oldest first."""
    return [list(row) for row in store.ledger._run("SELECT seq, version FROM pointer ORDER BY seq")]


@contextmanager
def ledger_of_the_dead(home: Path) -> Iterator[Ledger]:
    """A copy of the ledger of a home whose service is dead; that it is repaired is left to the service."""
    with tempfile.TemporaryDirectory() as aside:
        for name in ("ledger.db", "ledger.db-wal"):
            if (home / "store" / name).exists():
                shutil.copy(home / "store" / name, aside)
        ledger = Ledger.open(Path(aside) / "ledger.db")
        try:
            yield ledger
        finally:
            ledger.close()


def broken_for_readers(home: Path) -> Iterator[str]:
    """What an engine would find wrong with `models/current` while nobody is at work, the service dead or alive."""
    link = Layout(home).current_link
    folder = link.resolve()
    record = Layout(home).versions / folder.name / "VERSION.json"
    if not link.is_symlink() or not record.is_file():
        yield f"current leads to {folder.name}, which is no version"
        return
    expected: dict[str, str] = json.loads(record.read_bytes())["files"]
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    for name in sorted(expected.keys() | found):
        if name not in expected or name not in found or _blake3(folder / name) != expected[name]:
            yield f"current: {name} of {folder.name} is not what VERSION.json says"


def broken(store: Store, manifest: Manifest) -> Iterator[str]:
    """What is not true that must be, after a start of the service, which may be at work."""
    yield from (f"verify: {finding.path.name}: {finding.what}" for finding in verify(store, deep=True))
    yield from _lost_versions(store, manifest)
    yield from _lost_batches(store, manifest)
    yield from _left_over(store, manifest)
    if manifest.held and (store.held is None or store.held.reason != manifest.held):
        yield f"the hold is gone: {manifest.held}"


def broken_at_rest(store: Store, manifest: Manifest) -> Iterator[str]:
    """What is not true of a home whose service has come to the end of all its work, and has stopped."""
    yield from broken(store, manifest)
    yield from broken_for_readers(store.home)
    yield from (f"{row.name} is {row.state}" for row in store.ledger.batches() if row.state not in ENDED)
    yield from (f"{path.name} is left in scratch" for path in store.scratch_root.iterdir())
    yield from (
        f"{path.name} is left" for folder in ("inbox", "store/spool") for path in (store.home / folder).iterdir()
    )
    yield from (f"{name} was taken in, and nobody dropped it" for name in _names(store) - manifest.drops)
    hidden = (path.relative_to(store.home).as_posix() for path in store.home.rglob(".*"))
    yield from (f"{path} is left" for path in hidden if path != ".create.lock")
    with tempfile.TemporaryDirectory() as aside:
        versions = [row.id for row in store.ledger.versions()]
        yield from (f"drill: {finding.what}" for finding in drill(store, versions, Path(aside)))


def _names(store: Store) -> set[str]:
    known = {row.name for row in store.ledger.batches()} | {row.name for row in store.ledger.duplicates()}
    return known | {entry.name for entry in store.quarantined()}


def _lost_versions(store: Store, manifest: Manifest) -> Iterator[str]:
    rows = {row.id: row.record for row in store.ledger.versions()}
    for number, record in manifest.versions.items():
        if rows.get(number) != record:
            yield f"v{number} is lost or another"
    if pointers(store)[: len(manifest.published)] != manifest.published:
        yield f"the changes of current are not those that were seen: {manifest.published[-3:]}"
    made = Counter(row.batch for row in store.ledger.versions() if row.batch)
    yield from (f"{batch[:12]} made {num} versions" for batch, num in made.items() if num > 1)


def _lost_batches(store: Store, manifest: Manifest) -> Iterator[str]:
    waiting = {
        name for name in manifest.drops if _is_waiting(name, store)
    }  # looked for in the order in which they move
    rows = {row.sha256: row for row in store.ledger.batches()}
    for sha256, name in manifest.batches.items():
        if sha256 not in rows or rows[sha256].name != name:
            yield f"{name} was acknowledged and is lost"
        elif sha256 in manifest.ended and rows[sha256].state not in ENDED:
            yield f"{name} had come to its end and is {rows[sha256].state}"
    claimed = Counter(row.name for row in rows.values())
    for name in sorted(manifest.drops):
        if claimed[name] != 1 and (claimed[name] or name not in waiting):
            yield f"{name} is there {claimed[name]} times"
    yield from (
        f"{row.name} was taken for a duplicate" for row in store.ledger.duplicates() if row.name in manifest.drops
    )


def _is_waiting(name: str, store: Store) -> bool:
    """Whether a drop is in the inbox or in the spool still."""
    return (store.home / "inbox" / name).exists() or any(
        spooled_name(path.name) == name for path in store.spool.iterdir()
    )


def _left_over(store: Store, manifest: Manifest) -> Iterator[str]:
    """What rounds have left that had ended before the service was started; patches that loosen anywhere but in scratch."""
    for path in store.scratch_root.iterdir():
        if path.name in manifest.over:
            yield f"{path.name} had ended, and its scratch folder is there"
    for folder, _, names in os.walk(store.home):  # passes over what is removed meanwhile
        if OVER_SAFETY_FILE in names and Path(folder).parent != store.scratch_root:
            yield f"{folder}: an over-safety patch outside of scratch"


def rounds_over(ledger: Ledger) -> set[str]:
    """Rounds that have ended."""
    return {row.id for row in ledger.rounds() if row.state not in OPEN_STATES}


def _blake3(path: Path) -> str:
    return f"blake3:{blake3(path.read_bytes()).hexdigest()}"


def facts(path: Path) -> dict[str, Any]:
    """A JSON file that may be missing, or half there."""
    try:
        return dict(json.loads(path.read_bytes()))
    except (FileNotFoundError, ValueError):
        return {}
