"""The search for the version that broke something."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.bisect import Found, Try, next_step

HISTORIES = st.lists(st.booleans(), min_size=1, max_size=40)


def search(history: list[bool], *, is_good_given: bool) -> tuple[Found, list[int]]:
    """The end of a search over a history of verdicts, and the places that were tried, in order."""
    passed: dict[int, bool] = {}
    order: list[int] = []
    while isinstance(step := next_step(len(history), passed, is_good_given=is_good_given), Try):
        assert step.reason
        order.append(step.at)
        passed[step.at] = history[step.at]
        assert len(order) <= len(history)
    return step, order


@given(HISTORIES, st.booleans())
def test_no_version_is_tried_twice_and_none_outside_the_line(history: list[bool], is_good_given: bool) -> None:
    _, order = search(history, is_good_given=is_good_given)
    assert len(order) == len(set(order))
    assert set(order) <= set(range(len(history)))


@given(HISTORIES, st.booleans())
def test_an_answer_is_a_tried_pair_of_a_passing_parent_and_a_failing_child(
    history: list[bool], is_good_given: bool
) -> None:
    found, order = search(history, is_good_given=is_good_given)
    if found.broken_at is not None:
        assert {found.broken_at - 1, found.broken_at} <= set(order)
        assert (history[found.broken_at - 1], history[found.broken_at]) == (True, False)


@given(HISTORIES, st.booleans())
def test_there_is_an_answer_exactly_when_the_newest_fails_and_a_good_one_passes(
    history: list[bool], is_good_given: bool
) -> None:
    found, _ = search(history, is_good_given=is_good_given)
    has_good = history[0] if is_good_given else any(history[:-1])
    assert (found.broken_at is not None) == (len(history) > 1 and has_good and not history[-1])
    assert found.decision.accepted == (found.broken_at is not None)
    assert found.decision.reasons


@given(st.integers(2, 2000), st.data())
def test_a_history_that_changes_once_is_solved_exactly_in_a_logarithm_of_steps(
    length: int, data: st.DataObject
) -> None:
    first_bad = data.draw(st.integers(1, length - 1))
    history = [at < first_bad for at in range(length)]
    found, order = search(history, is_good_given=True)
    assert found.broken_at == first_bad
    assert len(order) <= 2 + math.ceil(math.log2(length - 1))
    assert search(history, is_good_given=False) == (found, order)


@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 20))
def test_without_a_given_good_one_failures_at_the_start_are_passed_over(early: int, good: int, late: int) -> None:
    history = [False] * early + [True] * good + [False] * late
    found, order = search(history, is_good_given=False)
    assert found.broken_at == early + good
    assert order[: early + 2] == [len(history) - 1, *range(early + 1)]
    assert any("oldest" in reason for reason in found.decision.reasons)
    assert search(history, is_good_given=True)[0].broken_at is None


def test_the_order_of_a_small_search() -> None:
    found, order = search([True, True, True, True, True, False, False, False], is_good_given=True)
    assert (found.broken_at, order) == (5, [7, 0, 3, 5, 4])
    assert "3 versions were not tried" in found.decision.reasons[1]


def test_a_line_where_all_were_tried_assumes_nothing() -> None:
    assert search([True, False], is_good_given=True)[0].decision.reasons == ("it fails and its parent passes",)


@pytest.mark.parametrize(
    ("history", "is_good_given", "said"),
    [
        ([True, True], False, "nothing is broken"),
        ([False, False], True, "said to be good fails"),
        ([False, True, False], True, "said to be good fails"),
        ([False, False], False, "never worked"),
        ([False], False, "oldest of those searched"),
    ],
)
def test_ends_that_agree_are_told(history: list[bool], is_good_given: bool, said: str) -> None:
    found, _ = search(history, is_good_given=is_good_given)
    assert found.broken_at is None
    assert said in found.decision.reasons[0]


def test_an_empty_line_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="at least one"):
        next_step(0, {}, is_good_given=False)
