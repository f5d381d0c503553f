"""What the outcome of a round does to the store."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import structlog

from daemon.job import ACTOR, Ending, Workshop
from daemon.log import (
    ROUND_ABANDONED,
    ROUND_FAILED,
    ROUND_HELD_BACK,
    ROUND_REJECTED,
    STORE_COLLECTED,
    VERSION_COMMITTED,
    VERSION_HELD_BACK,
    VERSION_PUBLISHED,
    WORKER_FAILED,
)
from daemon.progress import FailedEvent
from daemon.views import is_wanted
from policies.schedule import is_out_of_attempts, retry_at
from state import durable, gc
from state.errors import LockedError, NotFoundError, RefusedError, StoreCorruptError, StoreError
from state.rows import BatchState, RoundRow

NOTE: Final = "verdicts"

_log = structlog.get_logger()


class Verdicts:
    """Ends rounds in the ledger, commits their versions, and cleans up after them."""

    def __init__(self, shop: Workshop) -> None:
        self._shop = shop
        self._store = shop.store

    def conclude(self, round_id: str, ending: Ending) -> datetime | None:
        """Does what the outcome asks for; when the round is to be resumed (`Workshop.steady`), or None when it has ended.

        Raises:
            LockedError, OSError: the store cannot be written now; the round is as it was, and may be resumed.
            StoreCorruptError: the store is damaged.
        """
        row = self._store.round(round_id)
        self._shop.note(NOTE, "")
        self._shop.waits.pop(round_id, None)
        if isinstance(ending, FailedEvent):
            return self._fail(row, ending)
        if ending.outcome == "ready":
            return self._commit(row, ending.result)
        reason = "; ".join(ending.reasons)
        if ending.outcome == "rejected":
            self._reject(row, reason or "a gate said no")
        elif ending.outcome == "quarantined":
            self._give_up(row, reason or "the round refused the batch")
        else:
            self._give_up(row, f"the worker ended a round with the outcome {ending.outcome!r}")
        return None

    def abandon(self, round_id: str, reason: str) -> None:
        """Ends a round that something else has overtaken; its batch is queued again, what it was to take out asked for again."""
        row = self._store.round(round_id)
        ended = self._store.end_round(round_id, "superseded", reason=reason, now=self._shop.stamp())
        _log.warning(ROUND_ABANDONED, round=round_id, cause=reason, state=ended.state)
        self._clear(round_id)
        if row.target is not None and row.state == "running":
            self._ask_again(row, reason)
        elif row.kind == "consolidation":
            self._store.forget_tried()  # where it is due, it is due on what came into service, too

    def _ask_again(self, row: RoundRow, reason: str) -> None:
        is_anew, why, now = row.kind == "consolidation", row.reason or reason, self._shop.stamp()
        with contextlib.suppress(RefusedError, NotFoundError):  # not in service any more, which is what was asked for
            self._store.request_revert(f"v{row.target}", is_anew=is_anew, actor=ACTOR, reason=why, now=now)

    def _commit(self, row: RoundRow, result: Mapping[str, Any]) -> datetime | None:
        lacking = {"staging_model", "overlay", "record"} - result.keys()
        if lacking:
            self._give_up(row, f"the worker's result lacks {', '.join(sorted(lacking))}")
            return None
        try:
            self._commit_version(row, result)
        except RefusedError as err:
            self.abandon(row.id, str(err))
        except (StoreCorruptError, LockedError):
            raise
        except StoreError as err:
            self._give_up(row, str(err))
        except OSError as err:
            if not self._is_committed(row.id):
                return self._wait(row, f"the version could not be written: {err.strerror}")
            self._tidy(row.id)  # the loop finishes what the fault kept from the link and the audit file
        else:
            self._tidy(row.id)
        return None

    def _is_committed(self, round_id: str) -> bool:
        with contextlib.suppress(OSError):
            return self._store.round(round_id).version is not None
        return False

    def _commit_version(self, row: RoundRow, result: Mapping[str, Any]) -> None:
        approval = self._shop.config.publish.approval
        version = self._store.commit_version(
            row.id,
            self._in_scratch(row, result["staging_model"]),
            overlay=self._in_scratch(row, result["overlay"]),
            patch=self._in_scratch(row, result["patch"]) if result.get("patch") else None,
            record=result["record"],
            state="awaiting_approval" if approval else "published",
            now=self._shop.stamp(),
        )
        _log.info(VERSION_COMMITTED, version=version.name, round=row.id, batch=row.batch)
        _log.info(VERSION_HELD_BACK if approval else VERSION_PUBLISHED, version=version.name)

    def _in_scratch(self, row: RoundRow, path: str) -> Path:
        return self._store.scratch(row.id) / path  # an absolute path stays as it is

    def _reject(self, row: RoundRow, reason: str) -> None:
        self._shop.num_bad += is_wanted(row)
        self._store.end_round(row.id, "rejected", reason=reason, now=self._shop.stamp())
        _log.warning(ROUND_REJECTED, round=row.id, batch=row.batch, reason=reason)
        self._tidy(row.id)

    def _fail(self, row: RoundRow, ending: FailedEvent) -> datetime | None:
        _log.error(WORKER_FAILED, round=row.id, attempts=row.attempts, reason=ending.reason)
        if ending.blameless:
            return self._wait(row, ending.reason)
        schedule = self._shop.config.schedule
        verdict = is_out_of_attempts(row.attempts, schedule.max_attempts)
        if not ending.retry or verdict.accepted:
            self._give_up(row, "; ".join((ending.reason, *verdict.reasons)))
            return None
        self._store.count_attempt(row.id)
        return retry_at(self._shop.steady(), row.attempts, schedule.retry_s)

    def _give_up(self, row: RoundRow, reason: str) -> None:
        self._shop.num_bad += 1
        aside: BatchState | None = "quarantined" if row.batch is not None else None
        self._store.end_round(row.id, "failed", reason=reason, now=self._shop.stamp(), batch_state=aside)
        _log.error(ROUND_FAILED, round=row.id, batch=row.batch, reason=reason)
        self._tidy(row.id)

    def _wait(self, row: RoundRow, reason: str) -> datetime:
        """The round stays as it is, and no attempt counts: the disk or a file of the user is to blame."""
        _log.error(ROUND_HELD_BACK, round=row.id, reasons=[reason])
        self._shop.waits[row.id] = reason
        self._shop.note(NOTE, f"round {row.id} waits: {reason}", is_stall=True)
        return retry_at(self._shop.steady(), 1, self._shop.config.schedule.retry_s)

    def _tidy(self, round_id: str) -> None:
        self._clear(round_id)
        try:
            keep = self._shop.config.publish.keep_materialized
            removed = gc.run(self._store, keep_materialized=keep, now=self._shop.stamp(), actor=ACTOR)
        except OSError as err:
            _log.warning(STORE_COLLECTED, num_removed=0, cause=err.strerror)
            return
        if removed:
            num_bytes = sum(item.num_bytes for item in removed)
            _log.info(STORE_COLLECTED, num_removed=len(removed), num_bytes=num_bytes)

    def _clear(self, round_id: str) -> None:
        durable.remove_tree(self._store.scratch(round_id))
