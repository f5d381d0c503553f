"""Which version is in service: publish, roll back, promote, approve, hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from state import durable
from state.core import HELD, PAUSED, free_reserve
from state.errors import RefusedError, StoreCorruptError
from state.quarantine import Quarantine
from state.remedy import remedy
from state.rows import BatchState, ControlRow, PointerRow, VersionRow

RESCUE_BYTES = 512 << 10
IN_SERVICE_STATES = ("base", "published")


class Switch(Quarantine):
    """Each method is one change of the store: the ledger is the intention, the `current` link follows."""

    def publish(self, version_id: int, *, actor: str, now: str, reason: str = "") -> VersionRow:
        """Make a committed version current. A repeat is a no-op.

        Raises:
            RefusedError: held, blocked, rejected, or its parent is no longer current.
        """
        with self._changing(f"publish v{version_id}"):
            row = self.version(version_id)
            if row.state == "published" and self.current().id == version_id:
                self._follow()  # a fault may have kept the link from it
                return row
            if row.state != "awaiting_approval" or row.blocked:
                raise RefusedError(f"{row.name} is {_standing(row)}", self._promote_hint(row))
            self._check_approvable(row)
            with self._transaction("version_published", row.name, actor=actor, now=now, details={"reason": reason}):
                return self._enter(row, "publish", actor=actor, now=now, reason=reason)

    def approve(self, ref: str, *, actor: str, now: str, reason: str = "") -> VersionRow:
        """Publish a version that awaits approval; same refusals as `publish`."""
        return self.publish(self.resolve(ref).id, actor=actor, now=now, reason=reason or "approved")

    def reject(self, ref: str, *, actor: str, now: str, reason: str) -> VersionRow:
        """Say no to a version that awaits approval."""
        with self._changing(f"reject {ref}"):
            row = self.resolve(ref)
            if row.state != "awaiting_approval":
                raise RefusedError(f"{row.name} is {row.state}", "only a version that awaits approval is rejected")
            with self._transaction("version_rejected", row.name, actor=actor, now=now, details={"reason": reason}):
                row = self.ledger.save(replace(row, state="rejected", blocked=True))
                self._note_round(row, "rejected", now=now, reason=reason)
                self._note_batch(row.batch, "rejected", reason)
        return row

    def rollback(
        self,
        ref: str | None = None,
        *,
        reason: str,
        actor: str,
        now: str,
        check: Callable[[VersionRow], None] = lambda target: None,
    ) -> VersionRow:
        """Make an earlier version current, block every version left behind, and hold.

        One whose link a fault of the disk kept from moving is finished by a repeat, which goes back no further.

        Args:
            ref: where to go; default: the version that was current before.
            check: looks at the version before anything is changed; what it raises ends the rollback.
        Raises:
            RefusedError: there is nothing to go back to, or the target is blocked or was never in service.
        """
        with self._changing("rollback"):
            if self._is_rollback_unfinished(ref):
                self._follow()
                return self.current()
            target = self._rollback_target(ref)
            check(target)
            self._materialize(target.id)
            kept = {row.id for row in self.lineage(target.id)}
            behind = [row for row in self.lineage(self.current().id) if row.id not in kept]
            details = {"reason": reason, "blocked": [row.name for row in behind]}
            with (
                self._despite_full_disk(),
                self._transaction("rolled_back", target.name, actor=actor, now=now, details=details),
            ):
                for row in reversed(behind):  # as they came: a revert on the way undid what stands before it
                    self._leave_behind(row, reason)
                before = self.ledger.arrival(target.id).previous
                self._point(target.id, before, "rollback", actor=actor, now=now, reason=reason)
                self.ledger.save(ControlRow(HELD, reason or "rolled back", actor, now))
        return target

    def promote(self, ref: str, *, force: bool = False, reason: str, actor: str, now: str) -> VersionRow:
        """Make any published version current; `force` also one that is blocked or awaits approval, and while held.

        One that is current is given back its model folder, where that is gone.
        """
        with self._changing(f"promote {ref}"):
            row = self.resolve(ref)
            if row.id == self.current().id:
                self._materialize(row.id)
                self._follow()
                return row
            if not force:
                self._check_promotable(row)
            self._materialize(row.id)
            details = {"reason": reason, "force": force}
            with self._transaction("version_promoted", row.name, actor=actor, now=now, details=details):
                row = self._enter(row, "promote", actor=actor, now=now, reason=reason)
            if row.batch is not None:  # published by now, and perhaps quarantined until now
                self._settle_batch(self._batch(row.batch), now)
        return row

    def pause(self, *, reason: str, actor: str, now: str) -> None:
        """Start no round until `resume`."""
        with (
            self._changing("pause"),
            self._transaction("paused", "store", actor=actor, now=now, details={"reason": reason}),
        ):
            self.ledger.save(ControlRow(PAUSED, reason, actor, now))

    def resume(self, *, actor: str, now: str, reason: str = "") -> None:
        """Lift hold and pause."""
        with self._changing("resume"):
            lifted = [row.name for row in (self.held, self.paused) if row is not None]
            details = {"reason": reason, "lifted": lifted}
            with self._transaction("resumed", "store", actor=actor, now=now, details=details):
                for name in lifted:
                    self.ledger.remove(ControlRow, name)

    def _promote_hint(self, row: VersionRow) -> str:
        """The command that switches to a version which does not await approval."""
        force = "--force " if _needs_force(row) or self.held is not None else ""
        command = f"`alignd promote {row.name} {force}--reason WHY`"
        return f"only a version that awaits approval is approved; {command} switches to it"

    def _check_approvable(self, row: VersionRow) -> None:
        if row.is_import:  # stands on v0 whatever is current: it cannot be stale
            return self.check_publishable(self.current().id)
        if self.held is None and row.parent != self.current().id:
            again = f", then `alignd retry {row.batch[:12]}` learns its batch on that" if row.batch else ""
            raise RefusedError(
                f"{row.name} was made for v{row.parent}, but {self.current().name} is current by now",
                f"`alignd reject {row.name}`{again}; `alignd promote {row.name} --force --reason WHY` takes it as it is",
            )
        return self.check_publishable(row.parent)

    def check_publishable(self, parent: int | None) -> None:
        """Raise `RefusedError` when a version on this parent could not be published now."""
        held = self.held
        if held is not None:
            raise RefusedError(f"held since {held.since}: {held.reason}", "`alignd resume` lifts the hold")
        current = self.current().id
        if parent != current:
            raise RefusedError(
                f"made for v{parent}, but v{current} is current by now", "run the batch again: `alignd retry`"
            )

    def _materialize(self, version_id: int) -> Path:
        """Rebuild the model folder if it was collected; the caller holds the lock."""
        target = self.model_path(version_id)
        if not target.is_dir() and version_id == 0:
            raise StoreCorruptError(f"{target} is missing", remedy(self, target))
        if not target.is_dir():
            from state import materialize  # brings numpy: most commands never need it

            staging = self.models / f"{durable.TEMPORARY_PREFIX}v{version_id}"
            durable.remove_tree(staging)
            try:
                materialize.rebuild(self, version_id, staging)
                durable.publish_folder(staging, target)
            finally:
                durable.remove_tree(staging)
        return target

    def _is_rollback_unfinished(self, ref: str | None) -> bool:
        """Whether the ledger has a rollback to this version, and the link does not yet."""
        if not self._is_link_behind() or self.ledger.current_pointer().action != "rollback":
            return False
        return ref is None or self.resolve(ref).id == self.current().id

    def _rollback_target(self, ref: str | None) -> VersionRow:
        current = self.current()
        target = self.previous() if ref is None else self.resolve(ref)
        if ref is not None and target is not None and target.id == current.id > 0:
            is_there = self.is_materialized(current.id)
            hint = "name an earlier version; `alignd history` lists all"
            missing = "" if is_there else ", and its model folder is missing"
            hint = hint if is_there else remedy(self, self.model_path(current.id))
            raise RefusedError(f"{current.name} is in service already{missing}", hint)
        if target is None or target.id == current.id:
            raise RefusedError(f"there is nothing before {current.name} to go back to", "`alignd history` lists all")
        if target.blocked or not self.ledger.was_current(target.id):
            what = "is blocked" if target.blocked else f"is {target.state} and was never in service"
            hint = f"`alignd promote {target.name} --force --reason WHY` switches to it anyway"
            raise RefusedError(f"{target.name} {what}", hint)
        return target

    def _check_promotable(self, row: VersionRow) -> None:
        held = self.held
        if held is not None:
            raise RefusedError(f"held since {held.since}: {held.reason}", "`alignd resume` first, or --force")
        if _needs_force(row):
            what = "blocked" if row.blocked else row.state
            raise RefusedError(f"{row.name} is {what}", "--force switches to it anyway")

    def _enter(self, row: VersionRow, action: str, *, actor: str, now: str, reason: str) -> VersionRow:
        """Make a version current inside the open transaction."""
        if row.state != "base":
            row = self.ledger.save(replace(row, state="published", blocked=False))
            # why somebody promoted it is told with the switch; the round keeps what it said itself
            self._note_round(row, "published", now=now, reason=None if action == "promote" else reason)
            self._note_batch(row.batch, "published", "")
            self._note_batch(self._reverted_batch(row), "reverted", f"taken out by {row.name}")
        self._point(row.id, self.current().id, action, actor=actor, now=now, reason=reason)
        return row

    def _leave_behind(self, row: VersionRow, reason: str) -> None:
        """Block a version inside the open transaction."""
        self.ledger.save(replace(row, state="rolled_back", blocked=True))
        self._note_batch(row.batch, "rolled_back", reason)
        self._note_batch(self._reverted_batch(row), "published", "")

    def _point(self, version: int, previous: int | None, action: str, *, actor: str, now: str, reason: str) -> None:
        seq = self.ledger.next_number(PointerRow)
        self.ledger.save(PointerRow(seq, version, previous, action, actor, reason, now))
        self._end_overtaken_requests(version, now)

    def _end_overtaken_requests(self, version: int, now: str) -> None:
        """What was asked for of a version that is not in service any more: there is nothing to take out, or other batches."""
        asked = self.ledger.rounds("queued")
        line = {row.id for row in self.lineage(version)} if asked else set()
        for row in asked:
            of = row.parent if row.target is None else row.target
            if of not in line:
                reason = f"v{of} is not part of v{version}, which came into service"
                self.ledger.save(replace(row, state="superseded", reason=reason, ended_at=now))

    def _note_round(self, row: VersionRow, state: Any, *, now: str, reason: str | None) -> None:
        """How the round of a version ended; without a reason the one that is there stays."""
        if row.round is not None:
            round_ = self.round(row.round)
            told = round_.reason if reason is None else reason
            self.ledger.save(replace(round_, state=state, reason=told, ended_at=round_.ended_at or now))

    def _note_batch(self, sha256: str | None, state: BatchState, reason: str) -> None:
        batch = self.ledger.batch(sha256) if sha256 else None
        if batch is not None:
            self.ledger.save(replace(batch, state=state, reason=reason))

    def _reverted_batch(self, row: VersionRow) -> str | None:
        """The batch whose version a revert took out; None when the version came from a batch."""
        target = self.round(row.round).target if row.round else None
        return self.version(target).batch if target is not None else None

    @contextmanager
    def _despite_full_disk(self) -> Iterator[None]:
        """Give the reserve back before the block where the disk is full, so that the block can write."""
        if durable.free_bytes(self.root) < RESCUE_BYTES:
            free_reserve(self)
        yield


def _needs_force(row: VersionRow) -> bool:
    """Whether `promote` takes a version only when it is forced to."""
    return row.blocked or row.state not in IN_SERVICE_STATES


def _standing(row: VersionRow) -> str:
    """A version's state, and that it is blocked where the state does not say so."""
    return f"{row.state} and blocked" if row.blocked and row.state in IN_SERVICE_STATES else row.state
