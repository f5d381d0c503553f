"""The supervisor's loop body: what happens at the start, at each tick, and at the end."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final

import structlog

from daemon import intakes, verdicts
from daemon.board import Board
from daemon.claims import Claims
from daemon.config import Config
from daemon.exporter import Exporter
from daemon.intakes import Intakes
from daemon.job import Job, Workshop
from daemon.log import (
    SERVICE_FAILED,
    SERVICE_RECOVERED,
    SERVICE_STARTED,
    SERVICE_STOPPED,
    STORE_VERIFIED,
)
from daemon.metrics_values import Values, loop_values, text
from daemon.notify import Notifier
from daemon.report import facts, status_line
from daemon.rounds import Rounds
from daemon.scrub import Scrub
from daemon.serving import Serving
from daemon.timers import VERIFY, Timers
from daemon.web import Web
from state.errors import LockedError, StoreCorruptError
from state.remedy import remedy
from state.rows import BatchRow

TICK_S: Final = 1.0
"""Commands write to the ledger; this is how long one of them may go unnoticed."""
_TRANSIENT: Final = (LockedError, OSError)
_NOTE: Final = "store of "
_LINK: Final = "link and audit"

_log = structlog.get_logger()


class Loop:
    """What happens at the start, at each tick, and at the end."""

    def __init__(self, shop: Workshop, notify: Notifier) -> None:
        self.shop = shop
        self._notify = notify
        self._timers = Timers(shop.config, self._on_timer)
        self.claims = Claims(shop)
        self.intakes = Intakes(shop)
        self.rounds = Rounds(shop)
        self.scrub = Scrub(shop)
        self.serving = Serving(shop)
        self.metrics = Exporter(shop.home, shop.config.metrics, self._metrics, lambda said: shop.note("metrics", said))
        self._board = Board(shop.home)
        self._web = Web(shop)
        self._seen_version: tuple[int, int] | None = None
        self._queue: list[BatchRow] = []
        self._rescanned_at = shop.steady()
        self._retry_at: datetime | None = None
        self._is_told = False
        self._told: object = None

    def start(self) -> None:
        """Recovers, checks the current version, claims what an earlier service left, and says that it is ready."""
        recovered = self.shop.store.recover(self.shop.stamp())
        if recovered:
            _log.info(SERVICE_RECOVERED, done=recovered)
        self._check_current()
        self.rounds.durations_s = self._board.load_durations()
        self.claims.start()
        self._timers.start()
        self._web.apply(self.shop.config.web)
        self.metrics.start()
        self._notify.ready()
        _log.info(SERVICE_STARTED, pid=os.getpid(), home=str(self.shop.home), python=sys.version.split()[0])

    def tick(self, *, woken: bool = True) -> None:
        """Everything that is due now, once; nothing in it waits for a worker.

        Args:
            woken: False when the loop only looks by itself; then a tick at rest costs next to nothing.
        """
        self._guard("ledger", lambda: self._turn(woken=woken), self._tell_in_short)
        self.metrics.tick()
        self._ping()

    def _turn(self, *, woken: bool) -> None:
        version = self.shop.store.ledger.data_version()
        changed = version != self._seen_version
        self._seen_version = version  # as of before the work: what comes in meanwhile is work for the next tick
        if changed or self._is_rescan_due():
            self.claims.look()  # a command may have put a drop back, and the watcher may have missed one
        if changed or _NOTE + _LINK in self.shop.notes:
            self._guard(_LINK, self._catch_up, _nothing)
        self._guard("claims", self.claims.tick, _nothing)
        if woken or changed or self._jobs() or self._is_retry_due() or self._is_untold():
            self._work()
            self._tell(changed=changed)

    def _work(self) -> None:
        self._guard("intakes", self.intakes.tick, self.intakes.suspend)
        self._guard("rounds", self.rounds.tick, self.rounds.suspend)
        self._guard("verify", self.scrub.tick, self.scrub.stop)
        self._guard("serving", self.serving.tick, _nothing)
        self._board.save_durations(self.rounds.durations_s)
        times = (self.rounds.next_retry(), self.intakes.next_retry(), self.serving.next_due())
        self._retry_at = min((when for when in times if when is not None), default=None)

    def _is_untold(self) -> bool:
        return not self._is_told or self._standing() != self._told

    def _is_retry_due(self) -> bool:
        return self._retry_at is not None and self._retry_at <= self.shop.steady()

    def _is_rescan_due(self) -> bool:
        if self.shop.steady() < self._rescan_at():
            return False
        self._rescanned_at = self.shop.steady()
        return True

    def _rescan_at(self) -> datetime:
        return self._rescanned_at + timedelta(seconds=self.shop.config.inbox.rescan_s)

    def _catch_up(self) -> None:
        done = self.shop.store.catch_up()
        if done:
            _log.info(SERVICE_RECOVERED, done=done)

    def _standing(self) -> object:
        """What can change while nothing wakes the loop."""
        inbox = self.claims.inbox
        return dict(self.shop.notes), inbox.problems, [(drop.name, drop.lacks) for drop in inbox.waiting]

    def _jobs(self) -> list[Job]:
        jobs = (self.intakes.job, self.rounds.job, self.scrub.job)
        return [job for job in jobs if job is not None]

    def patience_s(self) -> float:
        """Seconds until something is due that wakes nobody."""
        due = min(self._rescan_at(), self._retry_at or datetime.max.replace(tzinfo=UTC))
        left_s = max((due - self.shop.steady()).total_seconds(), 0.05)
        return min(self.claims.next_look_s() or TICK_S, left_s)

    def is_drained(self) -> bool:
        """Nothing is left that would go on by itself."""
        if not self.claims.is_drained() or self.intakes.job or self.rounds.job or self.serving.is_busy():
            return False
        if self.shop.stalled:
            return True
        if self.intakes.waiting():
            return False
        waits_for_person = bool(self.rounds.held_back) and self.rounds.next_retry() is None
        return self.rounds.next_work() is None or waits_for_person

    @property
    def held_back(self) -> tuple[str, ...]:
        """Why nothing that is queued goes on; what is the matter with one batch or round alone is in `Workshop.waits`."""
        shared = sorted(self.shop.stalled - {intakes.NOTE, verdicts.NOTE})
        return (*self.rounds.all_held_back, *(self.shop.notes[part] for part in shared))

    def is_troubled(self) -> bool:
        """Something was quarantined, rejected or held back."""
        inbox = self.claims.inbox
        left = inbox.num_set_aside or inbox.problems or inbox.waiting or self.claims.stopped_by
        bad = self.shop.num_bad or self.scrub.num_findings
        return bool(left or bad or self.shop.stalled or self.rounds.held_back or self.serving.is_degraded())

    def apply(self, config: Config) -> None:
        """Takes changed settings. Raises ConfigError, and then keeps the old ones."""
        self._timers.apply(config)
        self.shop.config = config
        self.claims.apply()
        self._web.apply(config.web)
        self.metrics.apply(config.metrics)

    def stop(self) -> None:
        """Ends workers and threads within seconds; whatever they did is resumed at the next start."""
        self._notify.stopping()
        self._web.stop()
        self._timers.stop()
        self.claims.stop()
        for part in (self.intakes, self.rounds, self.scrub):
            part.stop()
        self._guard("serving", self.serving.stop, _nothing)
        self.metrics.stop()
        self._board.remove()
        _log.info(SERVICE_STOPPED, pid=os.getpid())

    def _check_current(self) -> None:
        store = self.shop.store
        row = store.current()
        record = store.version_record(row.id)
        folder = store.model_path(row.id)
        missing = [name for name in record["files"] if not (folder / name).is_file()]
        if missing:
            raise StoreCorruptError(f"{folder}: {', '.join(missing)} is gone", remedy(store, folder))
        _log.info(STORE_VERIFIED, version=row.name, num_files=len(record["files"]), depth="names")

    def _guard(self, part: str, action: Callable[[], None], on_trouble: Callable[[], None]) -> None:
        try:
            action()
        except _TRANSIENT as err:
            said, key = f"the store cannot be written: {err}", _NOTE + part
            if self.shop.notes.get(key) != said:
                _log.error(SERVICE_FAILED, part=part, error=type(err).__name__, reason=str(err))
            is_busy = isinstance(err, LockedError)  # that passes by itself
            self.shop.note(key, said, is_stall=not is_busy)
            on_trouble()
        else:
            self.shop.note(_NOTE + part, "")

    def _tell_in_short(self) -> None:
        """What can be told without the ledger."""
        self._notify.status("; ".join(self.shop.notes.values()))

    def _tell(self, *, changed: bool) -> None:
        if changed:
            self._queue = self.shop.store.ledger.batches("queued")
        told = facts(self.shop, claims=self.claims, intakes=self.intakes, rounds=self.rounds, queue=self._queue)
        told["page"] = self._web.url
        self._is_told = self._board.show(told, at=self.shop.stamp())
        self._told = self._standing()
        self._notify.status(status_line(told))

    def _metrics(self) -> str:
        return text(self.shop.store, self.shop.tally, self._values)

    def _values(self) -> Values:
        """May be called from any thread."""
        return loop_values(
            jobs=[job.kind for job in self._jobs()],
            num_problems=len(self.shop.notes),
            num_findings=self.scrub.num_findings,
            num_waiting=len(self.claims.inbox.waiting),
            replicas=self.serving.replicas,
            durations_s=self.rounds.durations_s,
        )

    def _ping(self) -> None:
        limit_s = self.shop.config.schedule.phase_limit_s + 60
        watched = [job for job in self._jobs() if job is not self.scrub.job]
        is_healthy = all(job.child.silent_s() < limit_s for job in watched)
        self._notify.watchdog(time.monotonic(), healthy=is_healthy)

    def _on_timer(self, reason: str) -> None:
        if reason == VERIFY:
            self.scrub.ask()
        self.claims.look()


def _nothing() -> None:
    """Claims keep their own account of trouble."""
