"""The periodic check of every stored byte, in a worker of its own."""

from __future__ import annotations

import structlog

from daemon.job import Job, Workshop
from daemon.log import STORE_DAMAGED, STORE_VERIFIED, WORKER_FAILED
from daemon.progress import FailedEvent, StepEvent

_NO_LIMIT_S = 7 * 24 * 3600.0
_log = structlog.get_logger()


class Scrub:
    """Runs when asked, one at a time; what it finds stays on the status until a later run finds nothing."""

    def __init__(self, shop: Workshop) -> None:
        self._shop = shop
        self._is_asked = False
        self.job: Job | None = None
        self.num_findings = 0

    def ask(self) -> None:
        """Asks for a check; may be called from any thread."""
        self._is_asked = True

    def tick(self) -> None:
        """Takes in the result, or starts a check that was asked for."""
        if self.job is not None:
            ending = self.job.poll(_NO_LIMIT_S, _ignore)
            if ending is None:
                return
            self.job = None
            if isinstance(ending, FailedEvent):
                _log.error(WORKER_FAILED, job="verify", reason=ending.reason)
            else:
                self._report(list(ending.reasons))
        if self._is_asked:
            self._is_asked = False
            self.job = self._shop.start("verify", "all")

    def stop(self) -> None:
        """Ends the worker."""
        if self.job is not None:
            self.job.end()
            self.job = None

    def _report(self, findings: list[str]) -> None:
        self.num_findings = len(findings)
        if findings:
            _log.critical(STORE_DAMAGED, findings=findings)
            self._shop.note("verify", f"the store is damaged: {findings[0]}")
        else:
            _log.info(STORE_VERIFIED, depth="bytes")
            self._shop.note("verify", "")


def _ignore(event: StepEvent) -> None:
    """A check has no steps."""
