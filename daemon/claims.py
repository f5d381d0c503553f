"""When the inbox is looked at, and what is claimed from it."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from datetime import timedelta

import structlog

from daemon.inbox import Inbox
from daemon.job import Workshop
from daemon.log import CLAIMING_RESUMED, CLAIMING_STOPPED, WATCHER_LOST
from daemon.watcher import Watcher
from state.errors import LockedError

_log = structlog.get_logger()
_NOTE = "claims"
_SLICE_S = 2.0
"""Claiming goes on for this long; then workers, status and watchdog have their turn before the rest is claimed."""


class Claims:
    """Keeps a watcher on the inbox, scans when it says so or time is due, and claims what is complete."""

    def __init__(self, shop: Workshop) -> None:
        self._shop = shop
        self.inbox = Inbox(shop.config, shop.home, shop.store)
        self._is_due = True
        self.stopped_by = ""
        """Why nothing is claimed; empty while claiming goes on."""
        self._watcher = self._new_watcher()

    def start(self) -> None:
        """Claims what an earlier service left in the spool, and begins to watch."""
        self._try_claiming(self._recover)
        self._scan()
        self._watcher.start()

    def stop(self) -> None:
        """Ends watching; does nothing when it has not begun."""
        self._watcher.stop()

    def look(self) -> None:
        """Asks for a scan at the next tick; may be called from any thread."""
        self._is_due = True
        self._shop.wake()

    def apply(self) -> None:
        """Takes changed settings."""
        self._watcher.stop()
        self.inbox.apply(self._shop.config)
        self._scan()
        self._watcher = self._new_watcher()
        self._watcher.start()

    def tick(self) -> None:
        """Scans and claims, when there is a reason to."""
        self._watch()
        if self._is_due or self._watcher.is_polling or self.inbox.waiting or self.stopped_by:
            self._is_due = False
            try:
                self._try_claiming(self._claim)
            except LockedError:
                self._is_due = True  # the drop may lie in the spool by now, where nothing waits for it
                raise

    def is_drained(self) -> bool:
        """Nothing in the inbox will become complete by itself, or nothing can be claimed."""
        return bool(self.stopped_by) or all(drop.is_stuck for drop in self.inbox.waiting)

    def next_look_s(self) -> float | None:
        """Seconds until a drop may have settled; None when no drop is settling."""
        now, settle_s = self._shop.steady(), self._shop.config.inbox.settle_s
        left = [settle_s - (now - drop.since).total_seconds() for drop in self.inbox.waiting if not drop.is_settled]
        return max(min(left), 0.05) if left else None

    def _watch(self) -> None:
        if not self._watcher.is_healthy():
            _log.warning(WATCHER_LOST, inbox=str(self.inbox.root))
            self._scan()
            self._watcher.start()
            self._is_due = True

    def _scan(self) -> None:
        """Looks at the inbox; that it can be looked at is no reason to go on where something else stopped claiming."""
        try:
            self.inbox.scan(self._shop.steady())
        except OSError as err:
            self._stop_claiming(err)

    def _recover(self) -> None:
        self.inbox.recover(self._shop.stamp())

    def _claim(self) -> None:
        self._recover()
        complete = [drop for drop in self.inbox.scan(self._shop.steady()) if drop.is_complete]
        # only now: the scan of a full inbox may take longer than that by itself
        until = time.monotonic() + _SLICE_S
        for drop in complete:
            self._check_space(drop.snapshot.num_bytes)
            self.inbox.claim(drop, self._shop.stamp())
            settled_at = drop.since + timedelta(seconds=self._shop.config.inbox.settle_s)
            self._shop.tally.claim(max((self._shop.steady() - settled_at).total_seconds(), 0.0))
            if time.monotonic() > until:
                return self.look()
        return None

    def _check_space(self, num_bytes: int) -> None:
        free, floor = self._shop.free_bytes(), self._shop.config.inbox.min_free_bytes
        if free < floor + num_bytes:
            raise OSError(errno.ENOSPC, f"{free} bytes are free; inbox.min_free_bytes is {floor}")

    def _try_claiming(self, action: Callable[[], None]) -> None:
        try:
            action()
        except OSError as err:
            self._stop_claiming(err)
        else:
            self._go_on()

    def _stop_claiming(self, err: OSError) -> None:
        cause = f"nothing is claimed: {err.strerror or err}"
        if not self.stopped_by:
            _log.error(CLAIMING_STOPPED, cause=cause)
        self.stopped_by = cause
        self._shop.note(_NOTE, cause)

    def _go_on(self) -> None:
        if self.stopped_by:
            _log.info(CLAIMING_RESUMED)
        self.stopped_by = ""
        self._shop.note(_NOTE, "")

    def _new_watcher(self) -> Watcher:
        return Watcher(self.inbox.root, self._shop.config.inbox.mode, self.look)
