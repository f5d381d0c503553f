"""What a worker tells the supervisor: one JSON object a line, and the outcome that ends it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TextIO

import msgspec

from state.text import printable

ResultName = Literal["ready", "rejected", "quarantined", "accepted"]
MIN_INTERVAL_S: Final = 0.2
"""Progress lines are not sent closer together than this, except at the ends of a step."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a worker's job ended.

    ``ready``: the candidate passed, ``result`` has what `state.store.Store.commit_version` needs.
    ``rejected``: the gates said no. ``quarantined``: the batch cannot be used.
    ``accepted``: an intake's batch is usable, ``result`` holds its stats.
    ``reasons`` are whole sentences, most important first, without batch text.
    """

    outcome: ResultName
    reasons: tuple[str, ...] = ()
    result: Mapping[str, Any] = field(default_factory=dict)


class ProgressEvent(msgspec.Struct, frozen=True, tag_field="event", tag="progress"):
    """The worker is alive and this far into a step; ``fraction`` in [0, 1], ``loss`` in nats a token."""

    step: str
    fraction: float
    loss: float | None = None


class StepEvent(msgspec.Struct, frozen=True, tag_field="event", tag="step"):
    """A step is finished and its artefacts are durable."""

    step: str
    result: dict[str, Any]


class DoneEvent(msgspec.Struct, frozen=True, tag_field="event", tag="done"):
    """The last line of a worker that came to an outcome."""

    outcome: ResultName
    reasons: list[str] = []
    result: dict[str, Any] = {}


class FailedEvent(msgspec.Struct, frozen=True, tag_field="event", tag="failed"):
    """The last line of a worker that could not go on; ``retry`` says whether trying again can help."""

    reason: str
    retry: bool
    blameless: bool = False
    """The disk, the store, the probes or the settings are to blame and not the batch: no attempt is counted."""


Event = ProgressEvent | StepEvent | DoneEvent | FailedEvent
_DECODER: Final[msgspec.json.Decoder[Event]] = msgspec.json.Decoder(Event)


def decode_event(line: bytes | str) -> Event | None:
    """The event of one line, or None when the line is none."""
    try:
        return _DECODER.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


class Reporter:
    """The worker's side of the line to the supervisor; every line is flushed at once.

    Args:
        stream: where the lines go; nothing else may write there.
        clock: monotonic seconds.
    """

    def __init__(self, stream: TextIO, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._step = ""
        self._sent_at = -math.inf

    def progress(self, step: str, fraction: float, loss: float | None = None) -> None:
        """Tells how far ``step`` is, at most five times a second; also the sign of life."""
        now = self._clock()
        due = step != self._step or fraction >= 1 or now - self._sent_at >= MIN_INTERVAL_S
        if not due:
            return
        self._step, self._sent_at = step, now
        shown = min(max(fraction, 0.0), 1.0) if math.isfinite(fraction) else 0.0
        finite = loss if loss is not None and math.isfinite(loss) else None
        self._send(ProgressEvent(step, shown, finite))

    def step(self, step: str, result: Mapping[str, Any]) -> None:
        """Tells that ``step`` is finished and every artefact named in ``result`` is durable."""
        self._send(StepEvent(step, dict(result)))

    def done(self, outcome: Outcome) -> None:
        """Tells the outcome; the last line."""
        self._send(DoneEvent(outcome.outcome, [printable(reason) for reason in outcome.reasons], dict(outcome.result)))

    def failed(self, reason: str, *, retry: bool, blameless: bool = False) -> None:
        """Tells that the job cannot go on; the last line."""
        self._send(FailedEvent(printable(reason), retry, blameless))

    def _send(self, event: Event) -> None:
        self._stream.write(msgspec.json.encode(event).decode() + "\n")
        self._stream.flush()
