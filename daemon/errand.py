"""One step for one replica, in a thread of its own: the loop never waits for an engine."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

from daemon.handover import Attempt
from policies.handover import Step


class Errand:
    """One step for one replica, in a thread of its own."""

    def __init__(self, step: Step, work: Callable[[threading.Event], Attempt], done: Callable[[], None]) -> None:
        self.step: Final = step
        self.cancelled = threading.Event()
        self.result: Attempt | None = None
        self._began = time.monotonic()
        self._work, self._done = work, done
        self._thread = threading.Thread(target=self._run, name="errand", daemon=True)
        self._thread.start()

    @property
    def is_over(self) -> bool:
        """The thread has ended, well or not."""
        return not self._thread.is_alive()

    @property
    def is_telling(self) -> bool:
        """It changes the replica, and does not only look."""
        return self.step.kind != "check"

    def elapsed_s(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self._began

    def wait(self, seconds: float) -> None:
        """Waits for its end, at most so long."""
        self._thread.join(max(seconds, 0))

    def _run(self) -> None:
        try:
            self.result = self._work(self.cancelled)
        finally:
            self._done()
