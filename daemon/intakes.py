"""Newly claimed batches are read and judged, one worker at a time, in order of arrival."""

from __future__ import annotations

from datetime import datetime
from typing import Final

import structlog

from daemon.job import ACTOR, Ending, Job, Workshop
from daemon.log import BATCH_ACCEPTED, BATCH_QUARANTINED, WORKER_FAILED
from daemon.progress import DoneEvent, FailedEvent, StepEvent
from policies.schedule import is_out_of_attempts, retry_at
from state.rows import BatchRow

NOTE: Final = "intakes"

_log = structlog.get_logger()


class Intakes:
    """A queued batch without stats has not been read yet; its intake gives it some, or quarantines it."""

    def __init__(self, shop: Workshop) -> None:
        self._shop = shop
        self._attempts: dict[str, int] = {}
        self._not_before: dict[str, datetime] = {}
        self.job: Job | None = None

    def tick(self) -> None:
        """Takes in what the worker said, or starts the next one."""
        if self.job is not None:
            ending = self.job.poll(self._shop.config.schedule.phase_limit_s, _ignore)
            if ending is not None:
                job, self.job = self.job, None
                self._conclude(job.name, ending)
        if self.job is None:
            self._start_next()

    def waiting(self) -> list[BatchRow]:
        """Batches that have not been read yet."""
        return [row for row in self._shop.store.ledger.batches("queued") if not row.stats]

    def next_retry(self) -> datetime | None:
        """When a failed intake is tried again, by `Workshop.steady`; None when none waits."""
        now = self._shop.steady()
        return min((at for at in self._not_before.values() if at > now), default=None)

    def stop(self) -> None:
        """Ends the worker; the batch is read again later."""
        if self.job is not None:
            self.job.end()
            self.job = None

    def suspend(self) -> None:
        """Ends the worker because the store cannot be written now, and tries again later."""
        if self.job is not None:
            schedule = self._shop.config.schedule
            self._not_before[self.job.name] = retry_at(self._shop.steady(), 1, schedule.retry_s)
        self.stop()

    def _start_next(self) -> None:
        now = self._shop.steady()
        for row in self.waiting():
            if self._not_before.get(row.sha256, now) <= now:
                self.job = self._shop.start("intake", row.sha256)
                return

    def _conclude(self, sha256: str, ending: Ending) -> None:
        self._not_before.pop(sha256, None)
        self._shop.waits.pop(sha256, None)
        self._shop.note(NOTE, "")
        row = self._shop.store.ledger.batch(sha256)
        if row is None or row.state != "queued":
            return  # somebody dropped it meanwhile
        if isinstance(ending, FailedEvent):
            self._fail(row, ending)
        elif ending.outcome == "accepted":
            self._accept(row, ending)
        else:
            self._quarantine(row, "; ".join(ending.reasons) or "the intake refused it")

    def _accept(self, row: BatchRow, ending: DoneEvent) -> None:
        self._attempts.pop(row.sha256, None)
        self._shop.store.set_batch_stats(row.sha256, ending.result or {"accepted": True})
        _log.info(BATCH_ACCEPTED, batch=row.sha256, batch_name=row.name)

    def _quarantine(self, row: BatchRow, reason: str) -> None:
        self._attempts.pop(row.sha256, None)
        self._shop.num_bad += 1
        self._shop.store.quarantine_batch(row.sha256, reason=reason, actor=ACTOR, now=self._shop.stamp())
        _log.warning(BATCH_QUARANTINED, batch=row.sha256, batch_name=row.name, reason=reason)

    def _fail(self, row: BatchRow, ending: FailedEvent) -> None:
        schedule, attempts = self._shop.config.schedule, self._attempts.get(row.sha256, 0)
        attempts += 0 if ending.blameless else 1
        self._attempts[row.sha256] = attempts
        _log.error(WORKER_FAILED, batch=row.sha256, attempts=attempts, reason=ending.reason)
        verdict = is_out_of_attempts(attempts, schedule.max_attempts)
        if not ending.retry or (verdict.accepted and not ending.blameless):
            self._quarantine(row, "; ".join((ending.reason, *verdict.reasons)))
        else:
            self._not_before[row.sha256] = retry_at(self._shop.steady(), max(attempts, 1), schedule.retry_s)
            if ending.blameless:
                self._shop.waits[row.sha256] = ending.reason
                self._shop.note(NOTE, f"batch {row.name} waits: {ending.reason}", is_stall=True)


def _ignore(event: StepEvent) -> None:
    """An intake has no steps that would be worth resuming at."""
