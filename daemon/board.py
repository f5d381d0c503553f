"""run/progress.json: what the service does right now, for `alignd status` to read."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from daemon.job import Job, estimate_s
from state.layout import PROGRESS_FILE

DURATIONS_FILE: Final = Path("run", "durations.json")
_MIN_INTERVAL_S: Final = 0.2
_REFRESH_S: Final = 30.0


class Board:
    """Writes the file whenever something changed, at most five times a second. Losing it costs nothing."""

    def __init__(self, home: Path) -> None:
        self._path = home / PROGRESS_FILE
        self._durations_path = home / DURATIONS_FILE
        self._shown: dict[str, Any] = {}
        self._written_at = 0.0
        self._durations_s: dict[str, float] = {}
        for path in (self._path, self._durations_path):
            with contextlib.suppress(OSError):
                _unfinished(path).unlink()  # by a service that was killed while it wrote

    def show(self, facts: dict[str, Any], *, at: str) -> bool:
        """Replaces the file by ``facts``, with ``at`` and the process id; False when it is too early for that."""
        now = time.monotonic()
        age_s = now - self._written_at
        if facts == self._shown and age_s < _REFRESH_S:
            return True
        if age_s < _MIN_INTERVAL_S:
            return False
        self._shown, self._written_at = facts, now
        _replace(self._path, {"at": at, "pid": os.getpid(), **facts})
        return True

    def remove(self) -> None:
        """Takes the file away: nothing is running."""
        self._path.unlink(missing_ok=True)

    def load_durations(self) -> dict[str, float]:
        """Seconds of each step of the latest round, as an earlier service noted them."""
        try:
            return msgspec.json.decode(self._durations_path.read_bytes(), type=dict[str, float])
        except (OSError, msgspec.DecodeError):
            return {}

    def save_durations(self, durations_s: Mapping[str, float]) -> None:
        """Notes them for the next service, when they changed."""
        if durations_s and dict(durations_s) != self._durations_s:
            self._durations_s = dict(durations_s)
            _replace(self._durations_path, self._durations_s)


def job_facts(job: Job | None, earlier: Mapping[str, float], steps_done: list[str]) -> dict[str, Any]:
    """What the board says about a running job; the same keys with nulls when none runs."""
    if job is None:
        return {
            "step": None, "steps_done": [], "fraction": None, "eta_s": None, "loss": None, "losses": {},
        }  # fmt: skip
    eta_s = estimate_s(job, earlier)
    return {
        "step": job.step or None,
        "steps_done": steps_done,
        "fraction": round(job.fraction, 4),
        "eta_s": None if eta_s is None else round(eta_s),
        "loss": job.loss,
        "losses": {step: list(curve.points) for step, curve in job.losses.items()},
    }


def _unfinished(path: Path) -> Path:
    return path.with_name(f".{path.name}.new")  # one name will do: a home has one service


def _replace(path: Path, value: Any) -> None:
    """Readers see the old file or the new one; not flushed to disk, since it means nothing after a crash."""
    temporary = _unfinished(path)
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        fd = os.open(temporary, os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(msgspec.json.encode(value))
        temporary.replace(path)
    except OSError:  # a full disk must not stop the service for the sake of a display
        with contextlib.suppress(OSError):
            temporary.unlink()
