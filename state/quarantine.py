"""What cannot be used lies here with its reason, until somebody releases or drops it."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

from state import durable
from state.core import StoreCore
from state.errors import NotFoundError, RefusedError
from state.rows import BatchRow

DROP_PREFIX = "drop-"
MIN_START = 4
"""Characters of an id that may stand for all of it."""
DROPPED = "dropped: "
"""How the reason of a batch begins whose files somebody deleted."""


@dataclass(frozen=True)
class Quarantined:
    """One entry of the quarantine folder."""

    id: str
    """The batch's sha256, or `drop-<spool entry>` for a drop that could not even be read."""
    name: str
    reason: str
    at: str
    path: Path
    batch: str | None
    """sha256, when it is a batch of the ledger."""


class Quarantine(StoreCore):
    """Each method is one change of the store: the ledger is the intention, the files follow."""

    def set_aside(self, source: Path, *, name: str, reason: str, actor: str, now: str) -> Quarantined:
        """Move a drop that cannot be claimed from the spool into quarantine, with its reason."""
        entry_id = DROP_PREFIX + source.name
        folder = self.quarantine / entry_id
        with self._changing(f"set {name} aside"):
            durable.make_folder(folder)
            _write_reason(folder, entry_id, name=name, reason=reason, at=now, batch=None)
            _move_once(source, folder / "data")
            details = {"name": name, "reason": reason}
            with self._transaction("drop_quarantined", entry_id, actor=actor, now=now, details=details):
                pass
        return Quarantined(entry_id, name, reason, now, folder, None)

    def quarantine_batch(self, batch: str, *, reason: str, actor: str, now: str) -> BatchRow:
        """Put a batch that cannot be used aside, with its reason."""
        with self._changing(f"quarantine {batch[:12]}"):
            row = replace(self._batch(batch), state="quarantined", reason=reason)
            details = {"name": row.name, "reason": reason}
            with self._transaction("batch_quarantined", batch, actor=actor, now=now, details=details):
                self.ledger.save(row)
            self._settle_batch(row, now)
        return row

    def quarantined(self) -> list[Quarantined]:
        """What lies in quarantine, oldest first."""
        found = [_read_reason(path.parent) for path in self.quarantine.glob("*/reason.json")]
        return sorted(found, key=lambda entry: (entry.at, entry.id))

    def find_entries(self, ref: str) -> list[Quarantined]:
        """The entries that somebody may mean: by id or name, else by the start of an id."""
        entries = self.quarantined()
        exact = [entry for entry in entries if ref in (entry.id, entry.name)]
        return exact or [entry for entry in entries if len(ref) >= MIN_START and entry.id.startswith(ref)]

    def release(self, entry_id: str, *, actor: str, now: str) -> None:
        """Queue a quarantined batch again; an unreadable drop goes back to the spool."""
        with self._changing(f"release {entry_id}"):
            entry = self._entry(entry_id)
            if entry.batch is not None:
                self._requeue(self._batch(entry.batch), "batch_released", actor=actor, now=now)
                return
            with self._transaction("drop_released", entry.id, actor=actor, now=now):
                pass
            if os.path.lexists(entry.path / "data"):  # else an earlier attempt got that far
                durable.move(entry.path / "data", self.spool / entry.id.removeprefix(DROP_PREFIX))
            durable.remove_tree(entry.path)

    def drop(self, entry_id: str, *, actor: str, now: str) -> None:
        """Delete a quarantined entry for good; a batch stays in the ledger, as rejected, and may be dropped in again.

        Raises:
            RefusedError: a version was made with the batch, and so needs it for as long as it may be built on.
        """
        with self._changing(f"drop {entry_id}"):
            entry = self._entry(entry_id)
            self._check_unused(entry)
            with self._transaction("quarantine_dropped", entry.id, actor=actor, now=now):
                if entry.batch is not None:
                    row = self._batch(entry.batch)
                    self.ledger.save(replace(row, state="rejected", reason=DROPPED + row.reason.removeprefix(DROPPED)))
            durable.remove_tree(entry.path / "data")  # the reason last: an entry that a fault left half is still listed
            durable.remove_tree(entry.path)

    def _check_unused(self, entry: Quarantined) -> None:
        made = [row.name for row in self.ledger.versions() if entry.batch is not None and row.batch == entry.batch]
        if made:
            raise RefusedError(
                f"{', '.join(made)} was made with batch {entry.name}, so its files must stay",
                "`alignd quarantine release` queues it again; where it lies it does no harm",
            )

    def _entry(self, entry_id: str) -> Quarantined:
        found = [entry for entry in self.quarantined() if entry_id in (entry.id, entry.name)]
        if len(found) != 1:
            raise NotFoundError(
                f"{len(found) or 'no'} quarantined entries called {entry_id!r}",
                "`alignd quarantine list` shows them with their ids",
            )
        return found[0]

    def _batch(self, sha256: str) -> BatchRow:
        row = self.ledger.batch(sha256)
        if row is None:
            raise NotFoundError(f"there is no batch {sha256}", "`alignd batches` lists them")
        return row

    def _requeue(self, row: BatchRow, action: str, *, actor: str, now: str) -> BatchRow:
        row = replace(row, state="queued", reason="", attempts=0)
        with self._transaction(action, row.sha256, actor=actor, now=now, details={"name": row.name}):
            self.ledger.save(row)
        self._settle_batch(row, now)
        return row

    def _quarantined_data(self, sha256: str) -> Path:
        return self.quarantine / sha256 / "data"

    def _settle_batch(self, row: BatchRow, now: str) -> bool:
        """Make the place of a batch's files agree with its state; True when something had to move."""
        home, aside = self.batch_path(row.sha256), self._quarantined_data(row.sha256)
        if row.state == "quarantined" and home.exists():
            durable.make_folder(aside.parent)
            _write_reason(aside.parent, row.sha256, name=row.name, reason=row.reason, at=now, batch=row.sha256)
            _move_once(home, aside)
            return True
        if row.state == "quarantined" or not aside.parent.exists():
            return False
        if aside.exists() and row.state != "rejected":  # rejected out of quarantine: it was dropped
            _move_once(aside, home)
        durable.remove_tree(aside.parent)
        return True

    def _settle_quarantine(self, now: str) -> list[str]:
        """Finish moves that a crash cut short."""
        entries = {path.name for path in self.quarantine.iterdir()}
        rows = {row.sha256: row for row in self.ledger.batches("quarantined")}
        for name in entries - rows.keys():
            row = self.ledger.batch(name)
            if row is not None:
                rows[name] = row
        done = [f"moved the files of batch {row.name}" for row in rows.values() if self._settle_batch(row, now)]
        for name in entries:
            folder = self.quarantine / name
            if name.startswith(DROP_PREFIX) and not os.path.lexists(folder / "data"):
                durable.remove_tree(folder)
                done.append(f"removed the empty quarantine entry {name}")
        return done


def _move_once(source: Path, target: Path) -> None:
    """Move, unless a loss of power has left both names of an earlier move of the same thing."""
    if os.path.lexists(target):
        durable.remove_tree(source)
    else:
        durable.move(source, target)


def _write_reason(folder: Path, entry_id: str, *, name: str, reason: str, at: str, batch: str | None) -> None:
    value = {"id": entry_id, "name": name, "reason": reason, "at": at, "batch": batch}
    durable.write_json(folder / "reason.json", value)


def _read_reason(folder: Path) -> Quarantined:
    value = json.loads((folder / "reason.json").read_bytes())
    return Quarantined(value["id"], value["name"], value["reason"], value["at"], folder, value["batch"])
