"""A worker at work: what it reported so far, and how it ended; and what every kind of job shares."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final, Literal

import structlog

from daemon.child import Child, worker_env
from daemon.config import Config
from daemon.log import STEP_FINISHED, WORKER_DIED, WORKER_SILENCED, WORKER_STARTED
from daemon.metrics import Tally
from daemon.progress import DoneEvent, FailedEvent, ProgressEvent, StepEvent
from state import durable
from state.store import Store

Kind = Literal["intake", "round", "verify"]
Ending = DoneEvent | FailedEvent
ACTOR: Final = "service"
LOSS_POINTS: Final = 200
_EXIT_GRACE_S: Final = 10.0
"""A worker that told its outcome has this long to leave."""

_log = structlog.get_logger()


@dataclass
class Workshop:
    """What the jobs share: the store, the settings, the clock, and how a worker is started."""

    home: Path
    store: Store
    config: Config
    now: Callable[[], datetime]
    wake: Callable[[], None]
    argv: Callable[[str, str], list[str]]
    """(kind, name) -> command of a worker."""
    num_bad: int = 0
    """Batches and candidates that were quarantined or rejected since the start."""
    notes: dict[str, str] = field(default_factory=dict)
    """What a person should know, by the part that says it."""
    tally: Tally = field(default_factory=Tally)
    """What the metrics count since the start."""
    stalled: set[str] = field(default_factory=set)
    """Parts whose note names what a person has to mend before they go on: the disk, the settings, the probes."""
    waits: dict[str, str] = field(default_factory=dict)
    """Why one batch (its sha256) or one round (its id) does not go on, where that is its own matter; nobody waits for it."""

    def __post_init__(self) -> None:
        self._began = self.now(), time.monotonic()

    def steady(self) -> datetime:
        """A time that only goes forward, by the seconds that really pass: for waits, which outlast a jump of the clock."""
        began, at_s = self._began
        return began + timedelta(seconds=time.monotonic() - at_s)

    def stamp(self) -> str:
        """The time now, as the ledger writes it."""
        return self.now().isoformat(timespec="milliseconds")

    def free_bytes(self) -> int:
        """Free space where the store is."""
        return durable.free_bytes(self.store.root)

    def start(self, kind: Kind, name: str) -> Job:
        """Starts a worker for one job."""
        env = worker_env(os.environ, self.config.model.num_threads)
        job = Job(kind, name, Child(self.argv(kind, name), env=env, wake=self.wake))
        _log.info(WORKER_STARTED, kind=kind, job=name, pid=job.child.pid)
        return job

    def note(self, part: str, text: str, *, is_stall: bool = False) -> None:
        """Replaces what ``part`` has to say; empty takes it back.

        Args:
            is_stall: the part cannot go on before a person has mended it, so that nobody should wait for it.
        """
        self.notes.pop(part, None)
        self.stalled.discard(part)
        if text:
            self.notes[part] = text
        if text and is_stall:
            self.stalled.add(part)


@dataclass
class Curve:
    """The course of a number from its first value on, in at most `LOSS_POINTS` points: every `stride`-th is kept."""

    points: list[float] = field(default_factory=list)
    stride: int = 1
    num_added: int = 0

    def add(self, value: float) -> None:
        """Takes the next value in."""
        if self.num_added % self.stride == 0:
            self.points.append(value)
        self.num_added += 1
        if len(self.points) > LOSS_POINTS:
            self.points, self.stride = self.points[::2], 2 * self.stride


class Job:
    """One worker, from its start to its outcome."""

    def __init__(self, kind: Kind, name: str, child: Child) -> None:
        self.kind: Final = kind
        self.name: Final = name
        self.child: Final = child
        self.step = ""
        self.fraction = 0.0
        self.loss: float | None = None
        self.losses: dict[str, Curve] = {}
        self.durations_s: dict[str, float] = {}
        """Seconds of each step that this worker finished, in order."""
        self._step_since = child.started_at
        self._last: Ending | None = None

    def elapsed_s(self) -> float:
        """Seconds since the running step began."""
        return time.monotonic() - self._step_since

    def poll(self, limit_s: float, on_step: Callable[[StepEvent], None]) -> Ending | None:
        """Takes in what the worker said; how it ended, or None while it goes on.

        Args:
            limit_s: a worker that is silent for longer is ended.
            on_step: called for each finished step, in order.
        """
        exit_ = self.child.ended()
        for event in self.child.events():
            if isinstance(event, ProgressEvent):
                self._note(event)
            elif isinstance(event, StepEvent):
                self._finish(event)
                on_step(event)
            else:
                self._last = event
        if exit_ is not None:
            self.child.close()
            return self._last or self._died(str(exit_))
        return self._silenced(limit_s)

    def end(self) -> None:
        """Ends the worker at once; always safe."""
        self.child.end()

    def _note(self, event: ProgressEvent) -> None:
        if event.step != self.step:
            self.step, self._step_since = event.step, time.monotonic()
        self.fraction, self.loss = event.fraction, event.loss
        if event.loss is not None:
            self.losses.setdefault(event.step, Curve()).add(event.loss)

    def _finish(self, event: StepEvent) -> None:
        took_s = self.elapsed_s()
        self.durations_s[event.step] = took_s
        self._step_since = time.monotonic()
        self.fraction = 1.0
        _log.info(STEP_FINISHED, job=self.name, step=event.step, duration_s=round(took_s, 3))

    def _silenced(self, limit_s: float) -> Ending | None:
        silent_s = self.child.silent_s()
        if silent_s <= (min(limit_s, _EXIT_GRACE_S) if self._last else limit_s):
            return None
        self.child.end()
        if self._last is not None:
            return self._last
        _log.error(WORKER_SILENCED, job=self.name, step=self.step, silent_s=round(silent_s, 1))
        at = f" in step {self.step}" if self.step else ""
        reason = f"the worker reported nothing for {silent_s:.0f} s{at} (schedule.phase_limit_s)"
        return FailedEvent(reason, retry=True)

    def _died(self, how: str) -> FailedEvent:
        _log.error(WORKER_DIED, job=self.name, step=self.step, how=how)
        at = f" in step {self.step}" if self.step else ""
        return FailedEvent(f"the worker died{at}: {how}", retry=True)


def estimate_s(job: Job, earlier: Mapping[str, float]) -> float | None:
    """Seconds until the job ends: the rest of its running step, and the steps after it as long as they once took.

    Args:
        earlier: seconds of each step of an earlier job of this kind, in order.
    Returns:
        None while nothing is known about the running step.
    """
    elapsed_s = job.elapsed_s()
    if job.fraction > 0.02:
        rest_s = elapsed_s * (1 - job.fraction) / job.fraction
    elif job.step in earlier:
        rest_s = max(earlier[job.step] - elapsed_s, 0.0)
    else:
        return None
    steps = list(earlier)
    after = steps[steps.index(job.step) + 1 :] if job.step in steps else []
    return rest_s + sum(earlier[step] for step in after)
