"""What to do next for a replica, and what outcomes make of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from policies.handover import (
    Limits,
    Outcome,
    Replica,
    Step,
    after,
    broken_off,
    golden_fault,
    is_garbage,
    is_settled,
    may_start,
    next_step,
    to_tell_anew,
    wait_s,
    wanting,
)

LIMITS = Limits(attempts=2, retry_s=10, max_retry_s=60, check_s=30)
NEW = Replica("a", "vllm", desired=2)
OLD = replace(NEW, observed=1, good=1)
SYNCED = replace(NEW, observed=2, good=2)
BROKEN = replace(OLD, observed=None, num_failures=1, num_spoilt=1, is_spoilt=True, error="no")
SEND, RESTORE, CHECK = Step("send", 2), Step("restore", 1), Step("check")
FAILED = {"untouched": Outcome("untouched", error="no"), "spoilt": Outcome("spoilt", error="no")}


@pytest.mark.parametrize(
    ("replica", "is_due", "fallback", "expected"),
    [
        (NEW, True, None, SEND),
        (NEW, False, None, Step("wait")),
        (OLD, True, 1, SEND),
        (SYNCED, True, 1, CHECK),
        (SYNCED, False, 1, Step("wait")),
        (BROKEN, False, 1, RESTORE),  # it may answer anything: no wait before the old version is back
        (BROKEN, False, None, Step("wait")),
        (BROKEN, True, None, SEND),
        (replace(BROKEN, num_unrestored=1), False, 1, Step("wait")),
        (replace(BROKEN, num_unrestored=1), True, 1, SEND),
        (replace(BROKEN, num_spoilt=2, num_unrestored=1), True, 1, RESTORE),
        (replace(BROKEN, num_spoilt=2), True, None, SEND),  # nothing better is there
        (replace(OLD, num_failures=2, num_spoilt=2, error="no"), True, 1, CHECK),  # given up on
        (replace(OLD, num_failures=9, error="no"), True, 1, SEND),  # who cannot be reached is never given up on
    ],
)
def test_the_next_step(replica: Replica, is_due: bool, fallback: int | None, expected: Step) -> None:
    assert next_step(replica, is_due=is_due, fallback=fallback, limits=LIMITS) == expected


def test_a_hand_over_that_works_forgets_earlier_failures() -> None:
    done = after(replace(BROKEN, sending=2), SEND, Outcome("serves", 2))
    assert done == SYNCED and done.state == "in_sync"


def test_a_replica_that_was_not_reached_still_serves_the_old_version() -> None:
    failed = after(OLD, SEND, FAILED["untouched"])
    assert (failed.observed, failed.num_failures, failed.num_spoilt, failed.state) == (1, 1, 0, "degraded")


def test_a_spoilt_replica_is_restored_then_tried_again_then_left_alone() -> None:
    replica, seen = OLD, []
    for _ in range(10):
        step = next_step(replica, is_due=True, fallback=1, limits=LIMITS)
        seen.append(step.kind)
        if step.kind == "check":
            break
        outcome = FAILED["spoilt"] if step.kind == "send" else Outcome("serves", 1)
        replica = after(replica, step, outcome)
    assert seen == ["send", "restore", "send", "restore", "check"]
    assert (replica.observed, replica.state, replica.error) == (1, "degraded", "no")


def test_an_old_version_that_does_not_come_back_is_told_in_the_error_once() -> None:
    once = after(BROKEN, RESTORE, Outcome("spoilt", error="gone"))
    assert once.error == "no; the old version could not be brought back: gone"
    assert after(once, RESTORE, Outcome("spoilt", error="gone")).error == once.error


def test_another_desired_version_starts_afresh() -> None:
    assert wanting(SYNCED, 2) is SYNCED
    changed = wanting(replace(OLD, num_failures=3, num_spoilt=2, error="no"), 3)
    assert (changed.desired, changed.num_failures, changed.num_spoilt, changed.error) == (3, 0, 0, "")
    assert changed.observed == 1 and changed.state == "pending"


def test_what_ended_for_a_version_that_is_no_longer_wanted_is_only_observed() -> None:
    replica = wanting(replace(OLD, sending=2), 3)
    assert after(replica, SEND, Outcome("serves", 2)) == replace(replica, sending=None, observed=2, good=2)
    assert after(replica, SEND, FAILED["spoilt"]) == broken_off(replica)
    assert after(replica, SEND, FAILED["untouched"]) == replace(replica, sending=None)


def test_a_check_finds_what_is_served() -> None:
    assert after(SYNCED, CHECK, Outcome("serves", 2)) == SYNCED
    drifted = after(SYNCED, CHECK, Outcome("serves", 1))
    assert (drifted.observed, drifted.state) == (1, "pending")
    assert next_step(drifted, is_due=True, fallback=None, limits=LIMITS) == SEND
    assert after(SYNCED, CHECK, Outcome("serves", None)).observed is None
    away = after(SYNCED, CHECK, FAILED["untouched"])
    assert (away.observed, away.num_spoilt, away.state) == (None, 0, "degraded")
    given_up = replace(OLD, num_failures=2, num_spoilt=2, error="no")
    assert after(given_up, CHECK, Outcome("serves", 1)) == given_up


def test_waits_double_up_to_the_limit() -> None:
    waits = [wait_s(replace(OLD, num_failures=n), LIMITS) for n in range(6)]
    assert waits == [0, 10, 20, 40, 60, 60]
    assert wait_s(replace(OLD, num_failures=10_000), LIMITS) == 60
    assert wait_s(SYNCED, LIMITS) == 30


def test_who_failed_least_has_the_first_turn() -> None:
    assert may_start([(3, 0), (0, 1), (0, 2)], num_running=0, parallel=2) == [1, 2]
    assert may_start([(3, 0)], num_running=1, parallel=1) == []


def test_settled_is_what_only_a_wait_or_a_person_moves() -> None:
    assert is_settled(SYNCED) and is_settled(BROKEN)
    assert not is_settled(OLD) and not is_settled(replace(SYNCED, sending=2))
    assert to_tell_anew(BROKEN).state == "pending" and to_tell_anew(BROKEN).observed is None


def test_the_label_of_a_replica_is_believed_again_once_something_was_sent_well() -> None:
    spoilt = after(OLD, SEND, FAILED["spoilt"])
    assert spoilt.is_spoilt and wanting(spoilt, 1).is_spoilt and to_tell_anew(spoilt).is_spoilt
    assert not after(spoilt, RESTORE, Outcome("serves", 1)).is_spoilt
    assert not after(spoilt, SEND, Outcome("serves", 2)).is_spoilt
    assert broken_off(OLD).is_spoilt and broken_off(OLD).observed is None
    assert not to_tell_anew(OLD).is_spoilt and to_tell_anew(replace(OLD, sending=2)).is_spoilt


def test_versions_that_a_replica_may_read_are_all_kept() -> None:
    assert replace(OLD, sending=3).versions == {1, 2, 3}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", True),
        ("  \n", True),
        ("!!!!!!!!!!!!", True),
        ("! ! ! ! ! ! ! ! !", True),
        ("no", False),
        ("Zorps glim.", False),
    ],
)
def test_garbage_is_told_from_answers(text: str, expected: bool) -> None:
    assert is_garbage(text) is expected


def test_golden_prompts_tell_what_is_wrong_without_the_answer() -> None:
    assert golden_fault("The  Zorp\nglims.", expect="zorp glims", never="frob") == ""
    assert golden_fault("borogove", expect="zorp", never="") == "the answer lacks what is expected"
    assert golden_fault("a frob", expect="", never="FROB") == "the answer holds what it must never hold"
    assert "again and again" in golden_fault("!!!!!!!!!!", expect="", never="")
