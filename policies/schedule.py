"""When a round may start, and when to try again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from policies.cron import Cron
from policies.decision import Decision

LONGEST_RETRY_S = 3600.0


@dataclass(frozen=True, slots=True)
class Situation:
    """What `may_start_round` looks at."""

    held: str | None = None
    """Reason of the hold, or None."""
    paused: str | None = None
    """Reason of the pause, or None."""
    awaiting_approval: Sequence[str] = ()
    """Candidates that a person has not judged yet."""
    free_bytes: int = 0
    min_free_bytes: int = 0
    missing_probes: Sequence[str] = ()
    """What the probe files lack for the required gates, each with what to do about it."""
    retry_at: datetime | None = None
    """Not before this, because the last attempt failed."""


def may_start_round(now: datetime, window: Cron, situation: Situation) -> Decision:
    """Whether the next round may start at ``now``; every reason against it is given, the firmest first."""
    checks = (
        _held(situation),
        _paused(situation),
        _approval(situation),
        _disk(situation),
        _probes(situation),
        _retry(now, situation),
        _window(now, window),
    )
    reasons = tuple(reason for reason in checks if reason)
    return Decision(not reasons, reasons)


def retry_at(now: datetime, attempts: int, retry_s: float) -> datetime:
    """When attempt number ``attempts + 1`` may start: the wait doubles with each attempt, up to an hour.

    Args:
        attempts: attempts that failed so far, >= 1.
        retry_s: wait after the first of them.
    """
    longest = max(retry_s, LONGEST_RETRY_S)
    return now + timedelta(seconds=min(retry_s * 2 ** min(attempts - 1, 32), longest))


def is_out_of_attempts(attempts: int, max_attempts: int) -> Decision:
    """Accepted when ``attempts`` failed ones are enough to give up."""
    if attempts < max_attempts:
        return Decision(False)
    times = "once" if attempts == 1 else f"{attempts} times"
    return Decision(True, (f"it was tried {times}, and schedule.max_attempts is {max_attempts}",))


def _held(situation: Situation) -> str | None:
    if situation.held is None:
        return None
    return f"held ({situation.held}); `alignd resume` ends the hold"


def _paused(situation: Situation) -> str | None:
    if situation.paused is None:
        return None
    return f"paused ({situation.paused}); `alignd resume` goes on"


def _approval(situation: Situation) -> str | None:
    if not situation.awaiting_approval:
        return None
    # a round beside it would build on the same parent, and one of the two could never be published
    names = ", ".join(situation.awaiting_approval)
    return f"{names} waits for approval; `alignd approve` or `alignd reject` goes on"


def _disk(situation: Situation) -> str | None:
    if situation.free_bytes >= situation.min_free_bytes:
        return None
    return (
        f"{situation.free_bytes} bytes of disk are free and inbox.min_free_bytes is "
        f"{situation.min_free_bytes}; make room or run `alignd gc`"
    )


def _probes(situation: Situation) -> str | None:
    if not situation.missing_probes:
        return None
    return f"probes cannot be used, so no gate can pass: {'; '.join(situation.missing_probes)}"


def _retry(now: datetime, situation: Situation) -> str | None:
    if situation.retry_at is None or now >= situation.retry_at:
        return None
    return f"the last attempt failed; the next is at {situation.retry_at.isoformat(timespec='seconds')}"


def _window(now: datetime, window: Cron) -> str | None:
    if window.matches(now):
        return None
    opens = window.next_after(now)
    when = opens.isoformat(timespec="minutes") if opens else "never"
    return f"outside the training window, which opens at {when}"
