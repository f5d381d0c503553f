"""A flag that threads and signal handlers may set, and one loop waits for."""

from __future__ import annotations

import os
import select


class Wakeup:
    """Like `threading.Event`, which a signal handler may not set: it can interrupt the very loop that holds its lock."""

    def __init__(self) -> None:
        self._fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def set(self) -> None:
        """Ends the wait that is going on, or the next one."""
        os.eventfd_write(self._fd, 1)

    def wait(self, timeout_s: float) -> bool:
        """Waits until it is set, and clears it; False when the time is over first."""
        ready, _, _ = select.select([self._fd], [], [], max(timeout_s, 0))
        if ready:
            os.eventfd_read(self._fd)
        return bool(ready)
