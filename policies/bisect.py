"""Which version to try next, to find the one that broke something; and what the verdicts so far say.

Versions stand in a line, oldest first, each the parent of the next. The answer is always a pair of neighbours that were
both tried: the older passes, the newer fails. Where the line goes from passing to failing once, that is the version that
broke it; where it changes back and forth, it is one of several such places.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from policies.decision import Decision


@dataclass(frozen=True, slots=True)
class Try:
    """The version to try next."""

    at: int
    """Its place in the line."""
    reason: str


@dataclass(frozen=True, slots=True)
class Found:
    """The search is over: ``broken_at`` is the place of the version that broke it, None when none can be told."""

    broken_at: int | None
    decision: Decision


def next_step(length: int, passed: Mapping[int, bool], *, is_good_given: bool) -> Try | Found:
    """What to do after some verdicts.

    First the newest version is tried, which must fail. Then a passing one is sought: the oldest, or, where nobody vouches
    for that one, the oldest that passes. Then the stretch between them is halved until they are neighbours. No version is
    tried twice; with a good one given at most ``2 + ceil(log2(length - 1))`` are.

    Args:
        length: versions in the line, at least 1; place 0 is the oldest, ``length - 1`` the newest.
        passed: place -> whether the version passed, for those that were tried.
        is_good_given: the oldest is said to pass, so that it is an error if it does not.
    Raises:
        ValueError: the line is empty.
    """
    if length < 1:
        raise ValueError("a line of versions has at least one")
    newest = length - 1
    if newest not in passed:
        return Try(newest, "the newest must fail")
    if passed[newest]:
        return _unbroken("the newest version passes: nothing is broken there")
    if length == 1:
        return _unbroken(
            "the version that fails is the oldest of those searched: there is none before it to compare with"
        )
    candidates = range(1 if is_good_given else newest)
    good = next((at for at in candidates if passed.get(at, True)), None)
    if good is None:
        return _unbroken(_none_passes(is_good_given))
    if good not in passed:
        return Try(good, "the oldest should pass" if good == 0 else "the oldest that passes is sought")
    return _halve(good, newest, passed)


def _halve(good: int, bad: int, passed: Mapping[int, bool]) -> Try | Found:
    num_failed_before = good
    while bad - good > 1:
        middle = (good + bad) // 2
        if middle not in passed:
            return Try(middle, f"halves the {bad - good - 1} versions in between")
        good, bad = (middle, bad) if passed[middle] else (good, middle)
    return Found(bad, Decision(True, ("it fails and its parent passes", *_assumed(num_failed_before, passed))))


def _assumed(num_failed_before: int, passed: Mapping[int, bool]) -> list[str]:
    """What the answer takes for granted, as sentences."""
    untried = max(passed) + 1 - len(passed)
    sentences = []
    if num_failed_before:
        sentences.append("the oldest versions fail too; the search began at the oldest that passes")
    if untried:
        sentences.append(
            f"{untried} versions were not tried; if some of them changed back and forth, there are more such places"
        )
    return sentences


def _none_passes(is_good_given: bool) -> str:
    return "the version said to be good fails as well" if is_good_given else "no version passes: it never worked"


def _unbroken(reason: str) -> Found:
    return Found(None, Decision(False, (reason,)))
