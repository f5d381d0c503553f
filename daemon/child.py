"""One worker process as the supervisor sees it: started, listened to, ended."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from daemon.config import SERVICE_FILE
from daemon.log import WORKER_BABBLED
from daemon.progress import Event, decode_event

MAX_LINE_BYTES: Final = 64 * 1024**2
"""Longest event; a round's result carries every file's and tensor's digest."""

CODE_ROOT: Final = Path(__file__).resolve().parent.parent
"""Where a child starts: `python -m` takes modules from the folder that it starts in first, and a user's may hold any."""
_DROPPED: Final = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID")
_THREAD_VARIABLES: Final = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)

_log = structlog.get_logger()


def worker_argv(
    home: Path, kind: str, name: str, *, log_form: str = "auto", config_path: Path | None = None
) -> list[str]:
    """The command of a worker: kind ``intake`` with a batch's sha256, ``round`` with an id, or ``verify``."""
    return [
        sys.executable,
        "-m",
        "daemon.worker",
        str(home.resolve()),
        kind,
        name,
        log_form,
        str(config_path or home / SERVICE_FILE),
    ]


def worker_env(env: Mapping[str, str], num_threads: int) -> dict[str, str]:
    """A worker's environment: offline, without the manager's sockets, with ``num_threads`` CPU threads.

    0 threads leave the choice to the numeric libraries, which take one per physical core.
    """
    kept = {key: value for key, value in env.items() if key not in _DROPPED}
    kept |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}
    # threads that wait by spinning starve whatever else the machine serves; not spinning at all costs a third
    kept.setdefault("GOMP_SPINCOUNT", "30000")
    if num_threads:
        kept |= dict.fromkeys(_THREAD_VARIABLES, str(num_threads))
    return kept


@dataclass(frozen=True, slots=True)
class Exit:
    """How a worker process ended: ``code`` >= 0, or -N for signal N, as in `subprocess`."""

    code: int

    def __str__(self) -> str:
        if self.code >= 0:
            return f"exit code {self.code}"
        name = signal.Signals(-self.code).name if -self.code in set(signal.Signals) else str(-self.code)
        likely = "; out of memory is the usual cause" if self.code == -signal.SIGKILL else ""
        return f"signal {name}{likely}"


class Child:
    """A running worker in its own process group.

    Its standard input stays open for as long as the supervisor lives; its standard error is the supervisor's.

    Args:
        wake: called on the listening thread after each event and at the end; must only set a flag.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        wake: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._wake = wake
        self._clock = clock
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.started_at = self.heartbeat_at = clock()
        """Monotonic seconds of the start, and of the latest event."""
        self._process = subprocess.Popen(
            list(argv),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=dict(env),
            cwd=CODE_ROOT,
            start_new_session=True,
        )
        self._listener = threading.Thread(target=self._listen, name="worker-events", daemon=True)
        self._listener.start()

    @property
    def pid(self) -> int:
        """Process id, which is also the process group's."""
        return self._process.pid

    def silent_s(self) -> float:
        """Seconds since the latest sign of life."""
        return self._clock() - self.heartbeat_at

    def events(self) -> list[Event]:
        """Events that came since the last call, in order."""
        found: list[Event] = []
        with contextlib.suppress(queue.Empty):
            while True:
                found.append(self._events.get_nowait())
        return found

    def ended(self) -> Exit | None:
        """How the worker ended, or None while it runs or events may still come."""
        if self._process.poll() is None or self._listener.is_alive():
            return None
        return Exit(self._process.returncode)

    def end(self, grace_s: float = 2.0) -> None:
        """Ends the worker and all it started, and waits for it; safe at any moment, and twice."""
        self._signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(grace_s)
        self._signal(signal.SIGKILL)
        self._process.wait()
        self._close()

    def close(self) -> None:
        """Frees what is left of an ended worker, stray children included."""
        self._signal(signal.SIGKILL)
        self._close()

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    def _close(self) -> None:
        self._listener.join(timeout=2.0)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with contextlib.suppress(OSError, ValueError):
            while line := self._process.stdout.readline(MAX_LINE_BYTES):
                self._take(line)
        self._process.wait()
        self._wake()

    def _take(self, line: bytes) -> None:
        event = decode_event(line)
        if event is None:
            _log.warning(WORKER_BABBLED, pid=self.pid, num_bytes=len(line))
            return
        self.heartbeat_at = self._clock()
        self._events.put(event)
        self._wake()
