"""Batches and rounds: what waits, what runs, how it ended."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from state import batches, durable, signed
from state.errors import NotFoundError, RefusedError
from state.quarantine import DROPPED, Quarantine
from state.rows import BatchRow, BatchState, DuplicateRow, RoundRow, RoundState

OPEN_STATES = ("queued", "running")
_AT_WORK = "round_at_work"
RETRY_STATES = ("rejected", "rolled_back", "reverted", "quarantined")


@dataclass(frozen=True)
class Claim:
    """What became of a drop."""

    batch: BatchRow
    is_duplicate: bool


class Queue(Quarantine):
    """Each method is one change of the store (store.lock, one transaction, one audit line) unless it says otherwise."""

    def claim_batch(self, source: Path, *, name: str, actor: str, now: str) -> Claim:
        """Copy a drop from the spool into the store, register it as queued, then remove it from the spool.

        Content that is known already is recorded as a duplicate, unless its files are gone (`is_gone`): then it is
        queued again with these. Safe to repeat with the same `source` after a crash: its file name must be unique
        per drop.

        Args:
            source: file or folder under `spool`.
            name: what the user called it.
        Raises:
            RefusedError: a member is a symbolic link or no regular file; `source` is untouched (see `set_aside`).
        """
        claim = self._claimed_before(source)
        if claim is not None:
            durable.remove_tree(source)  # perhaps the half of it: a claim may have died while it emptied the spool
            return claim
        # a copy: whoever still has the drop open for writing cannot change what was accepted
        staging = self.batches / f"{durable.TEMPORARY_PREFIX}{os.getpid()}-{os.urandom(4).hex()}"
        try:
            content = staging / (Path(name).name or source.name)
            num_bytes = batches.copy_in(source, content)
            claim = self._register(source, content, name=name, num_bytes=num_bytes, actor=actor, now=now)
        finally:
            durable.remove_tree(staging)
        durable.remove_tree(source)
        return claim

    def _register(self, source: Path, content: Path, *, name: str, num_bytes: int, actor: str, now: str) -> Claim:
        sha256 = batches.identity(content)
        with self._changing(f"claim {name}"):
            claim = self._claimed_before(source)
            if claim is not None:
                return claim
            signed.belongs_to(self, source.name, sha256)  # before anybody can ask who signed it
            known = self.ledger.batch(sha256)
            if known is not None and not self.is_gone(known):
                return self._claim_again(known, source, name=name, actor=actor, now=now)
            row = BatchRow(
                sha256=sha256,
                name=name,
                seq=known.seq if known else self.ledger.next_number(BatchRow),
                state="queued",
                received_at=now,
                num_bytes=num_bytes,
                num_files=len(batches.members(content)),
                source=source.name,
            )
            for left in (self.batch_path(sha256), self.quarantine / sha256):
                durable.remove_tree(left)  # by a claim or a `drop` that died half way
            durable.publish_folder(content if content.is_dir() else content.parent, self.batch_path(sha256))
            details = {"name": name, "num_bytes": num_bytes}
            with self._transaction("batch_claimed", sha256, actor=actor, now=now, details=details):
                self.ledger.save(row)
        return Claim(row, is_duplicate=False)

    def is_gone(self, row: BatchRow) -> bool:
        """Whether a batch that may be tried again has lost its files, so that a new drop of them brings it back."""
        # a crash may have left the files of a new drop beside the row that still says that they were deleted
        is_lost = row.reason.startswith(DROPPED) or not self.batch_content(row.sha256).exists()
        return row.state in RETRY_STATES and is_lost

    def _claimed_before(self, source: Path) -> Claim | None:
        """What became of the same drop, by a claim that died before it emptied the spool."""
        for row in self.ledger.batches_from(source.name):
            return Claim(row, is_duplicate=False)
        for duplicate in self.ledger.duplicates():
            if duplicate.source == source.name:
                return Claim(self._batch(duplicate.sha256), is_duplicate=True)
        return None

    def _claim_again(self, known: BatchRow, source: Path, *, name: str, actor: str, now: str) -> Claim:
        with self._transaction("batch_duplicate", known.sha256, actor=actor, now=now, details={"name": name}):
            number = self.ledger.next_number(DuplicateRow)
            self.ledger.save(DuplicateRow(number, known.sha256, name, source.name, now))
        return Claim(known, is_duplicate=True)

    def begin_round(self, batch: str, *, config: dict[str, Any], now: str, actor: str = "service") -> RoundRow:
        """Open a round for a queued batch on the current version; the batch becomes running.

        Raises:
            RefusedError: paused, another round is running, or the batch is not queued.
        """
        with self._changing(f"begin a round for {batch[:12]}"):
            row = self._batch(batch)
            self.check_may_begin()
            if row.state != "queued":
                raise RefusedError(f"batch {row.name} is {row.state}, not queued", "`alignd retry` queues it")
            round_ = RoundRow(
                id=f"r{self.ledger.next_number(RoundRow):06d}",
                kind="batch",
                batch=batch,
                target=None,
                parent=self.current().id,
                state="running",
                step=None,
                started_at=now,
                attempts=1,
                config=config,
            )
            with self._transaction("round_started", round_.id, actor=actor, now=now, details={"batch": batch}):
                self.ledger.save(replace(row, state="running", attempts=row.attempts + 1, reason=""))
                self.ledger.save(round_)
        return round_

    def finish_step(self, round_id: str, step: str, result: dict[str, Any]) -> RoundRow:
        """Persist that a step of a round is done and what it recorded (one transaction; no lock, no audit line)."""
        with self.ledger.transaction():
            row = self.round(round_id)
            return self.ledger.save(replace(row, step=step, artefacts={**row.artefacts, step: result}))

    def forget_steps(self, round_id: str) -> RoundRow:
        """Let a running round begin anew: none of its steps counts as done (one transaction; no lock, no audit line)."""
        with self.ledger.transaction():
            row = self.round(round_id)
            return self.ledger.save(replace(row, step=None, artefacts={})) if row.state == "running" else row

    def count_attempt(self, round_id: str) -> RoundRow:
        """Count one more start of a running round, after a crash or an error (no lock, no audit line)."""
        with self.ledger.transaction():
            row = self.round(round_id)
            return self.ledger.save(replace(row, attempts=row.attempts + 1))

    @property
    def at_work(self) -> str:
        """The round that a worker is at work on, or was when its service died; empty when none."""
        return self.ledger.note(_AT_WORK)

    def note_at_work(self, round_id: str) -> None:
        """Say which round a worker is at work on, empty for none (one transaction; no lock, no audit line)."""
        if round_id != self.at_work:
            with self.ledger.transaction():
                self.ledger.set_note(_AT_WORK, round_id)

    def set_batch_stats(self, batch: str, stats: dict[str, Any]) -> BatchRow:
        """Replace the counts kept with a batch (one transaction; no lock, no audit line)."""
        with self.ledger.transaction():
            return self.ledger.save(replace(self._batch(batch), stats=stats))

    def end_round(
        self,
        round_id: str,
        state: RoundState,
        *,
        reason: str,
        now: str,
        actor: str = "service",
        batch_state: BatchState | None = None,
    ) -> RoundRow:
        """Close a round that made no version; a repeat is a no-op.

        Its batch becomes `batch_state`; by default rejected after a rejected round and queued after any other.
        `quarantined` moves the batch's files to the quarantine folder.
        """
        with self._changing(f"end {round_id}"):
            row = self.round(round_id)
            if row.state not in OPEN_STATES:
                return row
            row = replace(row, state=state, reason=reason, ended_at=now)
            details = {"batch": row.batch, "reason": reason}
            with self._transaction(f"round_{state}", row.id, actor=actor, now=now, details=details):
                self.ledger.save(row)
                if row.batch is not None:
                    after = batch_state or ("rejected" if state == "rejected" else "queued")
                    self.ledger.save(replace(self._batch(row.batch), state=after, reason=reason))
            if batch_state == "quarantined" and row.batch is not None:
                self._settle_batch(self._batch(row.batch), now)
        return row

    def clear_scratch(self, round_id: str) -> None:
        """Remove the private files of a round that has ended, where no service is there to do it."""
        with self._changing(f"clear {round_id}"):
            if self.round(round_id).state not in OPEN_STATES:
                durable.remove_tree(self.scratch(round_id))

    def retry(self, batch: str, *, actor: str, now: str) -> BatchRow:
        """Queue a batch again that was rejected, quarantined, rolled back or reverted."""
        with self._changing(f"retry {batch}"):
            row = self.find_batch(batch)
            if row.state not in RETRY_STATES:
                allowed = ", ".join(RETRY_STATES)
                raise RefusedError(f"batch {row.name} is {row.state}", f"only these can be tried again: {allowed}")
            if not self.batch_content(row.sha256).exists():
                raise RefusedError(f"the files of batch {row.name} are gone", "drop them in the inbox again")
            return self._requeue(row, "batch_retried", actor=actor, now=now)

    def find_batch(self, ref: str) -> BatchRow:
        """The batch with this sha256 or name, or a sha256 that starts so (4 characters or more).

        Raises:
            NotFoundError: none, or more than one; a drop that was a duplicate is named with what it is one of.
        """
        found = [row for row in self.ledger.batches_named(ref) if row.name == ref or len(ref) >= 4]
        duplicate = None if found else self.find_duplicate(ref)
        if duplicate is not None:
            known = self._batch(duplicate.sha256)
            raise NotFoundError(
                f"{ref} was a duplicate of {known.name} ({known.sha256[:12]}), which is {known.state}",
                f"name that one: {known.sha256[:12]}",
            )
        if len(found) != 1:
            what = "no batch" if not found else f"{len(found)} batches"
            raise NotFoundError(f"{what} called {ref!r}", "`alignd batches` lists them with their sha256")
        return found[0]

    def find_duplicate(self, name: str) -> DuplicateRow | None:
        """The newest drop of this name whose content was known already; None when there is none."""
        return next((row for row in reversed(self.ledger.duplicates()) if row.name == name), None)

    def check_may_begin(self) -> None:
        """Raises RefusedError when no round may begin now: paused, or one is running."""
        paused = self.paused
        if paused is not None:
            raise RefusedError(f"paused since {paused.since}: {paused.reason}", "`alignd resume` goes on")
        for row in self.ledger.rounds("running"):
            raise RefusedError(f"round {row.id} is running", "wait for it, or `alignd abort`")
