"""What every part of the store shares: paths, ledger, the way a change is made, selectors."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EDQUOT, ENOSPC
from pathlib import Path
from typing import Any

from state import audit, durable, lock
from state.errors import NotFoundError, StoreCorruptError
from state.layout import Layout
from state.ledger import Ledger
from state.remedy import remedy
from state.rows import ControlRow, RoundRow, VersionRow

LOCK_WAIT_S = 30.0
DISK_FULL = (ENOSPC, EDQUOT)
RESERVE_BYTES = 1 << 20
HELD, PAUSED = "held", "paused"
UNNAMED = {
    "candidate": "no version waits for approval",
    "previous": "there is no earlier version to go back to",
}
"""Selectors that may name nothing, and what that means."""


class StoreCore(Layout):
    """A home with its ledger; read the ledger freely (`store.ledger.batches()`), change it through the store."""

    def __init__(self, home: Path, ledger: Ledger) -> None:
        super().__init__(home)
        self.ledger = ledger

    @property
    def held(self) -> ControlRow | None:
        """Set while nothing may be published."""
        return self.ledger.control(HELD)

    @property
    def paused(self) -> ControlRow | None:
        """Set while no round may start."""
        return self.ledger.control(PAUSED)

    def current(self) -> VersionRow:
        """The version in service."""
        return self.version(self.ledger.current_pointer().version)

    def previous(self) -> VersionRow | None:
        """Where `rollback()` would go: the unblocked version that was current before."""
        pointer = self.ledger.current_pointer()
        seen = {pointer.version}
        while pointer.previous is not None:
            row = self.version(pointer.previous)
            if not row.blocked and row.id not in seen:
                return row
            if row.id in seen:
                return None
            seen.add(row.id)
            pointer = self.ledger.arrival(row.id)
        return None

    def version(self, version_id: int) -> VersionRow:
        """The version with this number.

        Raises:
            NotFoundError: there is none.
        """
        row = self.ledger.version(version_id)
        if row is None:
            raise NotFoundError(f"there is no version v{version_id}", self._known_refs())
        return row

    def round(self, round_id: str) -> RoundRow:
        """The round with this id.

        Raises:
            NotFoundError: there is none.
        """
        row = self.ledger.round(round_id)
        if row is None:
            raise NotFoundError(f"there is no round {round_id}", "`alignd history` lists the rounds")
        return row

    def lineage(self, version_id: int) -> list[VersionRow]:
        """The version's ancestors from the base on, and itself as the last."""
        rows = self.ledger.line(version_id)
        if not rows or rows[0].parent is not None:
            self.version(version_id if not rows else rows[0].parent or 0)  # which is not there
        return rows

    def ground(self, version_id: int) -> VersionRow:
        """What the rounds of a version were made on: the newest import among its ancestors and itself, else the base."""
        lineage = self.lineage(version_id)
        return next((row for row in reversed(lineage) if row.is_import), lineage[0])

    def ground_in_words(self, version_id: int) -> str:
        """What a version is without its rounds."""
        ground = self.ground(version_id)
        return f"{ground.name}, which was imported" if ground.id else "the unaligned v0"

    def version_record(self, version_id: int) -> dict[str, Any]:
        """VERSION.json of a version, checked against its digest in the ledger.

        Raises:
            StoreCorruptError: it is not what was written.
        """
        row = self.version(version_id)
        path = self.record_path(version_id)
        data = path.read_bytes() if path.exists() else b""
        if hashlib.sha256(data).hexdigest() != row.record:
            raise StoreCorruptError(f"{path} is not what was written", remedy(self, path))
        record: dict[str, Any] = json.loads(data)
        return record

    def is_materialized(self, version_id: int) -> bool:
        """True when the version's model folder is there."""
        return self.model_path(version_id).is_dir()

    def resolve(self, ref: str) -> VersionRow:
        """The version a selector names: current, previous, candidate, base, @tag, vN, N, each with ~k.

        Raises:
            NotFoundError: lists the known selectors in its hint.
        """
        name, _, steps = ref.partition("~")
        row = self._named(name)
        for _ in range(int(steps) if re.fullmatch(r"[0-9]{1,9}", steps) else int("~" in ref)):
            row = self.version(row.parent) if row is not None and row.parent is not None else None
            if row is None:
                break
        if name in UNNAMED and self._named(name) is None:
            raise NotFoundError(UNNAMED[name], "`alignd history` lists the versions")
        if row is None or re.fullmatch(r"[^~]*(~[0-9]{0,9})?", ref) is None:
            raise NotFoundError(f"no version is called {ref!r}", self._known_refs())
        return row

    def _named(self, name: str) -> VersionRow | None:
        if name == "current":
            return self.current()
        if name == "previous":
            return self.previous()
        if name == "candidate":
            waiting = self.ledger.versions("awaiting_approval")
            return waiting[-1] if waiting else None
        if name == "base":
            return self.ledger.version(0)
        if name.startswith("@"):
            tag = self.ledger.tag(name[1:])
            return self.ledger.version(tag.version) if tag else None
        return self.ledger.version(int(name.removeprefix("v"))) if re.fullmatch(r"v?[0-9]{1,9}", name) else None

    def _known_refs(self) -> str:
        tags = "".join(f", @{tag.name}" for tag in self.ledger.tags())
        newest = self.ledger.next_number(VersionRow) - 1
        return f"known: current, previous, candidate, base, v0 to v{newest}{tags}; REF~1 is the parent of REF"

    @contextmanager
    def _changing(self, purpose: str) -> Iterator[None]:
        """Hold the store's lock for one change."""
        with lock.hold(self.store_lock, purpose, LOCK_WAIT_S):
            yield

    @contextmanager
    def _transaction(
        self, action: str, subject: str, *, actor: str, now: str, details: dict[str, Any] | None = None
    ) -> Iterator[None]:
        """One ledger transaction with its audit line; then `current` and the audit file follow."""
        with self.ledger.transaction():
            yield
            audit.record(self.ledger, action, subject, actor=actor, now=now, details=details or {})
        self._follow()

    def catch_up(self) -> list[str]:
        """Do to link and audit file what a fault of the disk kept from them after the ledger had it, and say what."""
        if not self._is_link_behind() and not self.ledger.outbox():
            return []
        with self._changing("catch up"):
            return self._catch_up()

    def _catch_up(self) -> list[str]:
        done = []
        if self._follow_link():
            done.append(f"pointed current at {self.current().name}")
        if audit.flush(self):
            done.append("appended audit lines from the ledger")
        return done

    def _follow(self) -> None:
        """Make the link and the audit file agree with the ledger."""
        self._follow_link()
        try:
            audit.flush(self)
        except OSError as err:
            # the lines are safe in the ledger's outbox; the next change or start appends them
            if err.errno not in DISK_FULL:
                raise

    def _follow_link(self) -> bool:
        if not self._is_link_behind():
            return False
        durable.replace_symlink(self.current_link, f"v{self.ledger.current_pointer().version}")
        return True

    def _is_link_behind(self) -> bool:
        target, link = f"v{self.ledger.current_pointer().version}", self.current_link
        return not link.is_symlink() or str(link.readlink()) != target


def free_reserve(layout: Layout) -> bool:
    """Delete the reserve file; False when there is none."""
    if not layout.reserve_path.exists():
        return False
    durable.remove_tree(layout.reserve_path)
    return True


def fill_reserve(layout: Layout) -> bool:
    """Write the reserve file if it is missing; False when it is there already."""
    if layout.reserve_path.exists():
        return False
    durable.write_file(layout.reserve_path, b"\0" * RESERVE_BYTES)
    return True
