"""Rounds that somebody asks for: one that takes a batch out again, one that learns all batches anew."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from state.errors import RefusedError
from state.queue import Queue
from state.rows import RoundKind, RoundRow, VersionRow

_TRIED_AT: Final = "consolidated_at"
"""The version that a consolidation was last tried on."""


class Requests(Queue):
    """Each method that asks is one change of the store (store.lock, one transaction, one audit line)."""

    def begin_queued(self, round_id: str, *, config: dict[str, Any], now: str, actor: str = "service") -> RoundRow:
        """Start a queued round on the current version; refusals as in `begin_round`.

        A revert becomes a consolidation where its batch was learnt together with others since it was asked for.
        """
        with self._changing(f"begin {round_id}"):
            row = self.round(round_id)
            self.check_may_begin()
            if row.state != "queued":
                raise RefusedError(f"round {row.id} is {row.state}, not queued")
            kind = row.kind
            if kind == "revert" and row.target is not None:
                kind = self._kind_of_revert(self.version(row.target))
            row = replace(
                row,
                kind=kind,
                state="running",
                parent=self.current().id,
                started_at=now,
                attempts=1,
                config=config,
            )
            with self._transaction("round_started", row.id, actor=actor, now=now, details={"target": row.target}):
                self.ledger.save(row)
                if row.kind == "consolidation" and row.target is None:
                    self.ledger.set_note(_TRIED_AT, str(row.parent))
        return row

    def request_revert(self, ref: str, *, is_anew: bool = False, actor: str, reason: str, now: str) -> RoundRow:
        """Queue a round that takes one version's patch out and merges the rest again.

        Where its batch was learnt together with others there is no such patch: then the others are learnt anew, together.

        Args:
            is_anew: learn the others anew in any case, also where the revert is queued already to merge again.
        Raises:
            RefusedError: the version is not part of the current one, or is asked for already.
        """
        with self._changing(f"revert {ref}"):
            target = self.resolve(ref)
            known = self._queued_revert(target.id) if is_anew else None
            if known is None:
                self._check_revertible(target.id)
            row = replace(
                known or self._new_round("revert", target.id, now),
                kind="consolidation" if is_anew else self._kind_of_revert(target),
                reason=reason,
            )
            return self._ask(row, "revert_requested", target.name, actor=actor, now=now)

    def request_consolidation(self, *, actor: str, reason: str, now: str) -> RoundRow:
        """Queue a round that learns all batches of the current version anew, together.

        Raises:
            RefusedError: there are fewer than two, or it is asked for already.
        """
        with self._changing("consolidate"):
            batches, current = self._recipe().get("batches", ()), self.current()
            if len(batches) < 2:
                raise RefusedError(
                    f"{current.name} was made from {len(batches) or 'no'} batch{'es' * (not batches)}: there is nothing to "
                    "learn together",
                    "two batches at least",
                )
            for row in self.ledger.rounds("queued", "running", "awaiting_approval"):
                if row.kind == "consolidation":
                    without = f" but that of v{row.target}" if row.target is not None else ""
                    raise RefusedError(f"{row.id} learns all batches{without} together already, and is {row.state}")
            asked = replace(self._new_round("consolidation", None, now), reason=reason)
            return self._ask(asked, "consolidation_requested", current.name, actor=actor, now=now)

    def learnt_alone(self, most: int) -> int:
        """Batches of the current version learnt one after another since all were learnt together, or since that was last tried.

        0 where it has fewer than two batches in all: there is nothing to learn together. What was taken out does not count.

        Args:
            most: where to stop counting; the line of versions may be long.
        """
        batches = set(self._recipe().get("batches", ()))
        tried = int(self.ledger.note(_TRIED_AT) or 0)
        found, row = set[str | None](), self.current()
        while len(batches) > 1 and row.parent is not None and row.id > tried and len(found) < most:
            round_ = self.ledger.round(row.round or "")
            if round_ is None or round_.kind == "consolidation":
                break  # an import's batches are not here
            found |= {row.batch} & batches
            row = self.version(row.parent)
        return len(found)

    def forget_tried(self) -> None:
        """Let a consolidation that was overtaken be due again (one transaction; no lock, no audit line)."""
        with self.ledger.transaction():
            self.ledger.set_note(_TRIED_AT, "")

    def _queued_revert(self, target: int) -> RoundRow | None:
        queued = self.ledger.rounds("queued")
        return next((row for row in queued if row.target == target and row.kind == "revert"), None)

    def _recipe(self) -> dict[str, Any]:
        """The lineage that the current version's record tells."""
        return self.version_record(self.current().id).get("lineage") or {}

    def _kind_of_revert(self, target: VersionRow) -> RoundKind:
        """How a version is taken out: its patch, or, where its batch was learnt together with others, by learning these anew."""
        recipe = self._recipe()
        together = recipe.get("batches", [])[: recipe.get("num_together", 0)]
        return "consolidation" if target.batch in together else "revert"

    def _new_round(self, kind: RoundKind, target: int | None, now: str) -> RoundRow:
        return RoundRow(
            id=f"r{self.ledger.next_number(RoundRow):06d}",
            kind=kind,
            batch=None,
            target=target,
            parent=self.current().id,
            state="queued",
            step=None,
            started_at=now,
        )

    def _ask(self, row: RoundRow, action: str, subject: str, *, actor: str, now: str) -> RoundRow:
        details = {"round": row.id, "kind": row.kind, "reason": row.reason}
        with self._transaction(action, subject, actor=actor, now=now, details=details):
            return self.ledger.save(row)

    def _check_revertible(self, target: int) -> None:
        if target == 0:
            raise RefusedError(
                "v0 is the base: it has no round to take out",
                "name a version that came of a batch; see `alignd history`",
            )
        reverted = {row.target for row in self.ledger.rounds("queued", "running", "awaiting_approval")}
        for version in self.lineage(self.current().id)[1:]:
            round_ = self.ledger.round(version.round or "")
            reverted.add(round_.target if round_ else None)
        if target in reverted:
            raise RefusedError(
                f"v{target} is reverted already, or about to be", "`alignd history` says which version took it out"
            )
        current, version = self.current(), self.version(target)
        made_by = self.ledger.round(version.round or "")
        if made_by is not None and made_by.kind == "consolidation":
            raise RefusedError(
                f"v{target} learnt its batches together: it has no batch of its own to take out",
                f"name the version of one of them; `alignd rollback v{version.parent}` goes back to before",
            )
        recipe = self._recipe()
        if recipe.get("patches") == [version.patch] or recipe.get("batches") == [version.batch]:
            raise RefusedError(
                f"v{target} is the only round in {current.name}: without it the model is "
                f"{self.ground_in_words(current.id)}",
                f"`alignd rollback {self.ground(current.id).name}` serves that, and holds until you resume",
            )
        if target not in {row.id for row in self.lineage(self.current().id)[1:]}:
            raise RefusedError(
                f"v{target} is not part of the current version", "only a version that current builds on can go"
            )
        if version.is_import:
            raise RefusedError(
                f"v{target} was imported: it has no round of this home to take out",
                "`alignd rollback REF` goes back to a version without it",
            )
        if version.batch is None:
            raise RefusedError(
                f"v{target} has no round to take out: it took one out itself",
                "`alignd retry BATCH` trains a batch that was taken out again",
            )
