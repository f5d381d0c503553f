"""Two judges beside each other, and one beside labels; by hand, by scikit-learn's formulas, and at the edges."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.calibration import (
    Confusion,
    agreement,
    agreement_of,
    best_threshold,
    brier,
    calibration_error,
    confusion,
)


@pytest.mark.parametrize(
    ("counts", "kappa"),
    [
        ((20, 5, 10, 15), 0.4),  # the textbook's example: observed 0.7, chance 0.5
        ((10, 0, 0, 10), 1.0),
        ((0, 10, 10, 0), -1.0),
        ((25, 25, 25, 25), 0.0),
        ((10, 0, 0, 0), None),
        ((0, 0, 0, 7), None),
        ((9, 1, 0, 0), 0.0),
    ],
)
def test_kappa_is_agreement_beyond_chance(counts: tuple[int, int, int, int], kappa: float | None) -> None:
    found = agreement(*counts)
    assert found.kappa == (None if kappa is None else pytest.approx(kappa))
    assert (found.num, found.num_equal) == (sum(counts), counts[0] + counts[3])
    assert (found.only_first, found.only_second) == counts[1:3]


def test_no_answers_agree_on_nothing() -> None:
    assert agreement(0, 0, 0, 0).to_dict() == {
        "num": 0, "num_equal": 0, "only_first": 0, "only_second": 0, "kappa": None,
    }  # fmt: skip


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1))
def test_agreement_does_not_depend_on_who_is_first(pairs: list[tuple[bool, bool]]) -> None:
    first, second = zip(*pairs, strict=True)
    one, other = agreement_of(first, second), agreement_of(second, first)
    assert (one.num_equal, one.only_first, one.only_second) == (other.num_equal, other.only_second, other.only_first)
    assert one.kappa == (None if other.kappa is None else pytest.approx(other.kappa))
    assert one.kappa is None or -1 - 1e-9 <= one.kappa <= 1 + 1e-9


def test_rates_are_those_of_a_confusion_matrix() -> None:
    said = [True] * 8 + [False] * 12
    labels = [True] * 6 + [False] * 2 + [True] * 3 + [False] * 9
    found = confusion(said, labels)
    assert found == Confusion(6, 2, 3, 9)
    assert found.to_dict() == {
        "true_positive": 6, "false_positive": 2, "false_negative": 3, "true_negative": 9,
        "accuracy": 0.75, "precision": 0.75, "recall": pytest.approx(2 / 3), "f1": pytest.approx(12 / 17),
        "false_positive_rate": pytest.approx(2 / 11),
    }  # fmt: skip


def test_a_rate_of_nothing_is_not_known() -> None:
    found = confusion([False, False], [False, False])
    assert (found.precision, found.recall, found.f1, found.false_positive_rate) == (None, None, None, 0.0)
    assert confusion([], []).accuracy is None
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        confusion([True, False], [True])


def test_the_best_threshold_lies_between_what_it_parts() -> None:
    found = best_threshold([0.1, 0.2, 0.6, 0.9], [False, False, True, True])
    assert found is not None and found[0] == pytest.approx(0.4) and found[1] == Confusion(2, 0, 0, 2)


def test_of_equal_thresholds_the_middle_one_is_taken_and_labels_that_are_alike_choose_none() -> None:
    found = best_threshold([0.2, 0.4, 0.6], [True, True, False])
    assert found is not None and found[0] == 0.0 and found[1] == Confusion(2, 1, 0, 0)
    assert best_threshold([0.2, 0.4], [True, True]) is None and best_threshold([], []) is None


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=12))
def test_no_threshold_does_better(pairs: list[tuple[float, bool]]) -> None:
    scores, labels = [score for score, _ in pairs], [label for _, label in pairs]
    found = best_threshold(scores, labels)
    if found is not None:
        best = found[1].f1 or 0.0
        assert all((confusion([s >= cut for s in scores], labels).f1 or 0.0) <= best + 1e-12 for cut in [0.0, *scores])


def test_probabilities_are_held_against_what_was_true() -> None:
    assert brier([0.0, 1.0, 0.5], [False, True, True]) == pytest.approx(0.25 / 3)
    assert calibration_error([0.25] * 4, [True, False, False, False]) == pytest.approx(0.0)
    assert calibration_error([1.0, 1.0, 0.0, 0.0], [False, True, False, False]) == pytest.approx(0.25)
    assert brier([], []) is None and calibration_error([], []) is None


def naive_threshold(scores: list[float], labels: list[bool]) -> tuple[float, Confusion] | None:
    if len(set(labels)) < 2:
        return None
    cuts = [0.0, *((low + high) / 2 for low, high in pairwise(sorted(set(scores))))]
    found = [(cut, confusion([score >= cut for score in scores], labels)) for cut in cuts]
    best = max(matrix.f1 or 0.0 for _, matrix in found)
    equal = [item for item in found if math.isclose(item[1].f1 or 0.0, best)]
    return equal[len(equal) // 2]


SCORES = st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.5, math.nextafter(0.5, 1), math.nextafter(0.5, 0), 1.0]))


@given(st.lists(st.tuples(SCORES, st.booleans()), max_size=20))
def test_counting_along_gives_what_counting_anew_at_each_threshold_gives(pairs: list[tuple[float, bool]]) -> None:
    scores, labels = [score for score, _ in pairs], [label for _, label in pairs]
    assert best_threshold(scores, labels) == naive_threshold(scores, labels)


def test_many_answers_are_counted_once_and_not_once_a_threshold(monkeypatch: pytest.MonkeyPatch) -> None:
    def counted_anew(*args: object) -> None:
        raise AssertionError

    monkeypatch.setattr("policies.calibration.confusion", counted_anew)
    scores = [place / 5000 for place in range(5000)]
    found = best_threshold(scores, [score >= 0.25 for score in scores])
    assert found is not None and found[1] == Confusion(3750, 0, 0, 1250)
