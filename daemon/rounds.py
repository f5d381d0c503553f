"""Rounds, one worker at a time: which is next, resuming, and what its outcome does to the store."""

from __future__ import annotations

import contextlib
from datetime import datetime
from pathlib import Path

import structlog

from daemon import config as settings
from daemon.config import Config
from daemon.job import ACTOR, Job, Workshop
from daemon.log import (
    ROUND_HELD_BACK,
    ROUND_RESUMED,
    ROUND_STARTED,
)
from daemon.probes import lacking
from daemon.progress import FailedEvent, StepEvent
from daemon.timers import cron_setting
from daemon.verdicts import Verdicts
from policies.consolidation import is_due
from policies.decision import Decision
from policies.schedule import Situation, may_start_round, retry_at
from state.errors import RefusedError, StoreError
from state.rows import BatchRow, RoundRow

Work = RoundRow | BatchRow
Stamp = tuple[int, int] | None
"""Size and time of change of a file; None when there is none."""

_log = structlog.get_logger()


class Rounds:
    """Runs the rounds of a store. The ledger says what there is to do; nothing here survives, or has to.

    Also what a worker is at work on stands in the ledger: a round that takes the whole service down with it counts as
    an attempt at the next start, so that it is not tried for ever.
    """

    def __init__(self, shop: Workshop) -> None:
        self._shop = shop
        self._store = shop.store
        self._verdicts = Verdicts(shop)
        self._not_before: datetime | None = None
        self._cut_off = shop.store.at_work
        """The round that an earlier service was at work on when it died, until it is looked at."""
        self._probes = _ProbeCheck()
        self.job: Job | None = None
        self.durations_s: dict[str, float] = {}
        """Seconds of each step of the latest round that came to its end."""
        self.held_back: tuple[str, ...] = ()
        """Why the next round does not start; empty when nothing waits or something runs."""
        self.all_held_back: tuple[str, ...] = ()
        """Those of the reasons that are not the next round's own matter: no other round would start either."""

    def tick(self) -> None:
        """Takes in what the worker said, ends it when it was overtaken, or starts the next one."""
        if self.job is not None:
            self._attend(self.job)
        if self.job is None:
            self._start_next()

    def next_work(self) -> Work | None:
        """What runs next: an interrupted round, then reverts, then a consolidation, then batches in order of arrival."""
        ledger = self._store.ledger
        # what takes a batch out comes first: nothing else is to learn from it once more
        asked = sorted(ledger.rounds("queued"), key=lambda row: row.target is None)
        for round_ in (*ledger.rounds("running"), *asked):
            return round_
        return next((row for row in ledger.batches("queued") if row.stats), None)

    def next_retry(self) -> datetime | None:
        """When a failed round is tried again, by `Workshop.steady`; None when none waits."""
        waits = self._not_before is not None and self._not_before > self._shop.steady()
        return self._not_before if waits else None

    def stop(self) -> None:
        """Ends the worker; the round is resumed at its last finished step later."""
        if self.job is not None:
            self.job.end()
            self.job = None
            with contextlib.suppress(OSError, StoreError):  # the store may be what this stops for
                self._store.note_at_work("")

    def suspend(self) -> None:
        """Ends the worker because the store cannot be written now, and tries again later."""
        self.stop()
        self._not_before = retry_at(self._shop.steady(), 1, self._shop.config.schedule.retry_s)

    def _attend(self, job: Job) -> None:
        overtaken = self._overtaken_by(job.name)
        if overtaken:
            job.end()
            self.job = None
            self._verdicts.abandon(job.name, overtaken)
            self._store.note_at_work("")
            return
        ending = job.poll(self._shop.config.schedule.phase_limit_s, self._finish_step)
        if ending is not None:
            self.job = None
            self.durations_s = {**self.durations_s, **job.durations_s}
            for step, duration_s in job.durations_s.items():
                self._shop.tally.step(step, duration_s)
            self._not_before = self._verdicts.conclude(job.name, ending)
            self._store.note_at_work("")

    def _overtaken_by(self, round_id: str) -> str:
        row, held = self._store.round(round_id), self._store.held
        if row.state != "running":
            return f"it was ended as {row.state}"
        if held is not None:
            return f"held: {held.reason}"
        current = self._store.current()
        if current.id != row.parent:
            return f"it builds on v{row.parent}, and {current.name} became current"
        return ""

    def _start_next(self) -> None:
        self._ask_to_consolidate()
        work = self.next_work()
        if isinstance(work, RoundRow) and work.state == "running":
            overtaken = self._overtaken_by(work.id)
            if overtaken:
                return self._verdicts.abandon(work.id, overtaken)
            if work.id == self._cut_off:
                return self._count_cut_off(work)
        decision = self._may_start(self.next_retry()) if work is not None else Decision(True)
        self._hold_back(decision.reasons)
        self.all_held_back = self._may_start(None).reasons if decision.reasons else ()
        if work is not None and decision.accepted:
            self._start(work)
        return None

    def _ask_to_consolidate(self) -> None:
        every = self._shop.config.derive.consolidate_every
        if self._store.ledger.rounds("queued", "running", "awaiting_approval"):
            return
        due = is_due(self._store.learnt_alone(every), every)
        if due.accepted:
            with contextlib.suppress(RefusedError):  # a command came in between
                reason = due.reasons[0]
                self._store.request_consolidation(actor=ACTOR, reason=reason, now=self._shop.stamp())

    def _count_cut_off(self, round_: RoundRow) -> None:
        # no wait: mostly it was not the round that ended the service
        self._verdicts.conclude(round_.id, FailedEvent("the service died while it worked on this round", retry=True))
        self._store.note_at_work("")
        self._cut_off = ""
        self._start_next()

    def _may_start(self, retry: datetime | None) -> Decision:
        """Args: retry: when the next round may be tried again after it failed."""
        config, store, now = self._shop.config, self._store, self._shop.now()
        held, paused = store.held, store.paused
        waiting = [row.name for row in store.ledger.versions("awaiting_approval")]
        situation = Situation(
            held=held.reason if held else None,
            paused=paused.reason if paused else None,
            awaiting_approval=waiting,
            free_bytes=self._shop.free_bytes(),
            min_free_bytes=config.inbox.min_free_bytes,
            missing_probes=self._probes.lacking(self._shop.home, config),
            retry_at=now + (retry - self._shop.steady()) if retry else None,
        )
        window = cron_setting("schedule.training_window", config.schedule.training_window)
        return may_start_round(now, window, situation)

    def _hold_back(self, reasons: tuple[str, ...]) -> None:
        if reasons and reasons != self.held_back:
            _log.info(ROUND_HELD_BACK, reasons=list(reasons))
        self.held_back = reasons

    def _start(self, work: Work) -> None:
        try:
            row = self._begin(work)
        except RefusedError as err:
            self.all_held_back = (str(err),)
            return self._hold_back((str(err),))  # a command came in between
        self._not_before = None
        event = ROUND_RESUMED if row.step else ROUND_STARTED
        _log.info(event, round=row.id, batch=row.batch, parent=row.parent, after=row.step, attempts=row.attempts)
        self._store.note_at_work(row.id)
        self.job = self._shop.start("round", row.id)
        return None

    def _begin(self, work: Work) -> RoundRow:
        if isinstance(work, RoundRow) and work.state == "running":
            return work
        config, now = settings.of_round(self._shop.config), self._shop.stamp()
        if isinstance(work, RoundRow):
            return self._store.begin_queued(work.id, config=config, now=now)
        return self._store.begin_round(work.sha256, config=config, now=now)

    def _finish_step(self, event: StepEvent) -> None:
        assert self.job is not None
        self._store.finish_step(self.job.name, event.step, event.result)


class _ProbeCheck:
    """What the probe files lack, read again only when one of them or the settings changed."""

    def __init__(self) -> None:
        self._seen: tuple[Config, dict[str, Stamp]] | None = None
        self._lacking: tuple[str, ...] = ()

    def lacking(self, home: Path, config: Config) -> tuple[str, ...]:
        """Sentences; empty when a round can be judged."""
        seen = config, {key: _stamp(path) for key, path in settings.digest_inputs(home, config).items()}
        if seen != self._seen:
            self._lacking = lacking(home, config)
            self._seen = seen
        return self._lacking


def _stamp(path: Path) -> Stamp:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns
