"""What to do next for one replica of a serving engine, and what an outcome makes of it. Level-triggered: only desired
against observed counts, never which event came before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

StepKind = Literal["wait", "send", "restore", "check"]
OutcomeKind = Literal["serves", "untouched", "spoilt"]
State = Literal["in_sync", "pending", "degraded"]

_MIN_GOLDEN_CHARS = 8
_GARBAGE_SHARE = 0.8


@dataclass(frozen=True)
class Limits:
    """How often and how soon things are tried again; times in seconds."""

    attempts: int = 3
    """Hand-overs of one version that may have changed a replica and failed, before it is left with the old one."""
    retry_s: float = 10.0
    max_retry_s: float = 600.0
    check_s: float = 60.0


@dataclass(frozen=True)
class Replica:
    """What is known of one replica; versions are numbers."""

    name: str
    kind: str
    desired: int
    observed: int | None = None
    """What it was last seen to serve; None: not known, or broken."""
    good: int | None = None
    """The version that it last served and was verified to serve."""
    sending: int | None = None
    """What was being sent to it when this was written; a process that dies meanwhile leaves it here."""
    num_failures: int = 0
    """Hand-overs of `desired` in a row that failed."""
    num_spoilt: int = 0
    """Of these, those after which nobody knows what the replica serves."""
    num_unrestored: int = 0
    """Failures in a row to bring the old version back."""
    is_spoilt: bool = False
    """Something that was sent to it failed, or was broken off, and nothing has been sent well since: no label of its own is
    believed, because engines keep the old one when a reload fails."""
    error: str = ""
    since: str = ""
    """Since when its state and `observed` are what they are."""
    checksums: Mapping[str, str] = field(default_factory=dict)
    """Version name -> checksum of its weights when this replica first served it; where that is asked for."""

    @property
    def state(self) -> State:
        """`degraded` as soon as something failed; `pending` while nothing has."""
        if self.error or self.num_failures:
            return "degraded"
        return "in_sync" if self.observed == self.desired and self.sending is None else "pending"

    @property
    def versions(self) -> set[int]:
        """Versions whose folder it may still need."""
        return {v for v in (self.desired, self.observed, self.good, self.sending) if v is not None}


@dataclass(frozen=True)
class Step:
    """What to do now; ``version`` for `send` and `restore`."""

    kind: StepKind
    version: int | None = None


@dataclass(frozen=True)
class Outcome:
    """How a step ended.

    `serves`: it was seen to serve ``version``; None where it serves something else that has no name here.
    `untouched`: it was not reached, or said no before anything changed.
    `spoilt`: it may serve anything by now.
    """

    kind: OutcomeKind
    version: int | None = None
    error: str = ""


def wanting(replica: Replica, desired: int) -> Replica:
    """The replica under another desired version: what failed for the one before no longer counts."""
    if replica.desired == desired:
        return replica
    return replace(replica, desired=desired, num_failures=0, num_spoilt=0, error="")


def asked_again(replica: Replica) -> Replica:
    """The replica as if nothing had failed yet."""
    return replace(replica, num_failures=0, num_spoilt=0, num_unrestored=0, error="")


def to_tell_anew(replica: Replica) -> Replica:
    """The replica after somebody mended it and asked for another try."""
    known = broken_off(replica) if replica.sending is not None else replica
    return replace(asked_again(known), observed=None)


def broken_off(replica: Replica) -> Replica:
    """The replica after what told it something ended in the middle: a killed service, a version no longer wanted."""
    return replace(replica, observed=None, sending=None, is_spoilt=True)


def next_step(replica: Replica, *, is_due: bool, fallback: int | None, limits: Limits) -> Step:
    """What to do for a replica now.

    Args:
        is_due: the wait that `wait_s` gave after its last step is over.
        fallback: an older version that may be sent when the desired one cannot be served; None where there is none.
    """
    is_broken = replica.observed is None and replica.num_spoilt > 0
    if is_broken and fallback is not None and replica.num_unrestored == 0:
        return Step("restore", fallback)
    if not is_due:
        return Step("wait")
    if replica.observed == replica.desired:
        return Step("check")
    if replica.num_spoilt < limits.attempts:
        return Step("send", replica.desired)
    if is_broken:
        return Step("restore", fallback) if fallback is not None else Step("send", replica.desired)
    return Step("check")


def after(replica: Replica, step: Step, outcome: Outcome) -> Replica:
    """The replica once a step has ended."""
    done = replace(replica, sending=None)
    if step.kind == "send":
        return _after_send(done, step, outcome)
    if step.kind == "restore":
        return _after_restore(done, outcome)
    return _after_check(done, outcome)


def _after_send(replica: Replica, step: Step, outcome: Outcome) -> Replica:
    if outcome.kind == "serves" and outcome.version == step.version:
        kept = asked_again(replica) if step.version == replica.desired else replica
        return replace(kept, observed=outcome.version, good=outcome.version, is_spoilt=False)
    if step.version != replica.desired:  # another version is wanted by now; what the old one failed of does not count
        return replica if outcome.kind == "untouched" else broken_off(replica)
    failed = replace(replica, num_failures=replica.num_failures + 1, error=outcome.error)
    if outcome.kind == "untouched":
        return failed
    return replace(broken_off(failed), num_spoilt=replica.num_spoilt + 1, num_unrestored=0)


def _after_restore(replica: Replica, outcome: Outcome) -> Replica:
    if outcome.kind == "serves":
        served = outcome.version
        return replace(replica, observed=served, good=served, num_unrestored=0, is_spoilt=False)
    error = f"{replica.error}; the old version could not be brought back: {outcome.error}"
    error = replica.error if replica.num_unrestored else error
    return replace(replica, num_unrestored=replica.num_unrestored + 1, error=error)


def _after_check(replica: Replica, outcome: Outcome) -> Replica:
    if outcome.kind == "serves":
        if outcome.version == replica.desired:
            return replace(asked_again(replica), observed=outcome.version, good=outcome.version)
        return replace(replica, observed=outcome.version)
    failed = replace(replica, num_failures=replica.num_failures + 1, error=outcome.error)
    if outcome.kind == "spoilt":
        return replace(broken_off(failed), num_spoilt=replica.num_spoilt + 1)
    # who cannot be reached may come back with another version: it is told again
    return replace(failed, observed=None if replica.observed == replica.desired else replica.observed)


def wait_s(replica: Replica, limits: Limits) -> float:
    """Seconds until a replica is looked at again: soon after the first failure, then twice as long each time."""
    if replica.observed == replica.desired:
        return limits.check_s
    failures = replica.num_failures + replica.num_unrestored
    if failures == 0:
        return 0.0
    return float(min(limits.max_retry_s, limits.retry_s * 2 ** min(failures - 1, 30)))


def is_settled(replica: Replica) -> bool:
    """Nothing more happens to it before a wait is over: it serves what it should, or a hand-over has failed."""
    return replica.sending is None and replica.state != "pending"


def may_start(waiting: list[tuple[int, int]], *, num_running: int, parallel: int) -> list[int]:
    """Which replicas get their turn, by index: those that failed least first, in their order, so that one which hangs
    does not keep the others waiting.

    Args:
        waiting: (failures so far, index) of each replica that has something to do.
        parallel: how many may be worked on at once.
    """
    return [index for _, index in sorted(waiting)][: max(parallel - num_running, 0)]


def is_garbage(text: str) -> bool:
    """Whether an answer is what engines say that freed their weights and never read new ones: nothing, or one
    character again and again. vLLM answers "!!!!" then, without an error.
    """
    letters = "".join(text.split())
    if not letters:
        return True
    most = max(letters.count(letter) for letter in set(letters))
    return len(letters) >= _MIN_GOLDEN_CHARS and most >= _GARBAGE_SHARE * len(letters)


def golden_fault(answer: str, *, expect: str, never: str) -> str:
    """What is wrong with the answer to a golden prompt, without a word of it; empty when nothing is.

    Args:
        expect: must occur in it, whatever its case and spaces; empty: anything but garbage will do.
        never: must not occur in it; empty: nothing is forbidden.
    """
    if is_garbage(answer):
        return "the answer is empty or one character again and again"
    if expect and _plain(expect) not in _plain(answer):
        return "the answer lacks what is expected"
    if never and _plain(never) in _plain(answer):
        return "the answer holds what it must never hold"
    return ""


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())
