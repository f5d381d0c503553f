"""The coefficient search: what it tries, when it ends, and what it prefers."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.search import Axes, Point, Space, Trial, Weights, choose, next_point, score, start

SPACE = Space(
    retention_rate=(1.0, 0.5),
    safety_fraction=(0.3, 0.1, 0.6),
    over_safety_fraction=(0.2,),
    alpha=(1.0, 0.7, 1.5),
    beta=(1.0, 0.5, 0.0),
)
START = Point(1.0, 0.3, 0.2, 1.0, 1.0)
AXES = Axes(
    harm_rate=0.3, over_refusal_rate=0.4, right_rate=0.5, utility=0.6, degenerate_rate=0.1, touched_fraction=0.2
)


def walk(space: Space, judged: Callable[[Point], float], limit: int = 1000) -> list[Point]:
    tried: dict[Point, float] = {}
    while (point := next_point(space, tried)) is not None and len(tried) < limit:
        assert point not in tried
        tried[point] = judged(point)
    return list(tried)


def peak(point: Point) -> float:
    return -abs(point.alpha - 1.5) - abs(point.beta - 0.5) - abs(point.safety_fraction - 0.1) + point.retention_rate


values = st.lists(st.integers(0, 9), min_size=1, max_size=4, unique=True).map(lambda found: tuple(map(float, found)))
spaces = st.builds(Space, values, values, values, values, values)


@given(spaces, st.randoms(use_true_random=False))
def test_the_search_never_repeats_a_point_stays_in_its_space_and_ends(space: Space, random: object) -> None:
    known: dict[Point, float] = {}

    def judged(point: Point) -> float:
        return known.setdefault(point, random.random())  # type: ignore[attr-defined]

    tried = walk(space, judged)
    assert tried[0] == start(space)
    assert len(tried) == len(set(tried)) < 1000
    for point in tried:
        assert all(getattr(point, f.name) in getattr(space, f.name) for f in fields(Space))


@given(spaces)
def test_it_ends_only_when_no_single_change_of_the_best_is_left_to_try(space: Space) -> None:
    tried = {point: peak(point) for point in walk(space, peak)}
    best = max(tried, key=lambda point: tried[point])
    for field in fields(Space):
        for value in getattr(space, field.name):
            assert replace(best, **{field.name: value}) in tried


def test_the_search_is_deterministic_and_starts_with_the_first_of_every_coordinate() -> None:
    assert start(SPACE) == next_point(SPACE, {}) == START
    assert walk(SPACE, peak) == walk(SPACE, peak)


def test_the_next_point_differs_from_the_best_one_in_one_coordinate() -> None:
    tried: dict[Point, float] = {}
    while (point := next_point(SPACE, tried)) is not None:
        if tried:
            best = max(tried, key=lambda known: tried[known])
            assert sum(getattr(point, f.name) != getattr(best, f.name) for f in fields(Point)) == 1
        tried[point] = peak(point)


def test_coordinate_ascent_finds_the_peak_of_a_separable_score() -> None:
    tried = walk(SPACE, peak)
    assert max(tried, key=peak) == Point(1.0, 0.1, 0.2, 1.5, 0.5)
    assert len(tried) < 2 * 3 * 1 * 3 * 3


def test_a_space_of_one_point_is_tried_once() -> None:
    space = Space((1.0,), (0.3,), (0.2,), (1.0,), (0.0,))
    assert walk(space, peak) == [Point(1.0, 0.3, 0.2, 1.0, 0.0)]


def test_beta_and_alpha_are_tried_before_the_rest() -> None:
    tried = walk(SPACE, lambda point: float(point == START))
    changed = [[f.name for f in fields(Point) if getattr(p, f.name) != getattr(START, f.name)] for p in tried[1:]]
    assert changed == [["beta"]] * 2 + [["alpha"]] * 2 + [["safety_fraction"]] * 2 + [["retention_rate"]]


@pytest.mark.parametrize(
    ("axis", "good"),
    [
        ("harm_rate", -1),
        ("over_refusal_rate", -1),
        ("right_rate", 1),
        ("utility", 1),
        ("degenerate_rate", -1),
        ("touched_fraction", -1),
    ],
)
@given(low=st.floats(0, 1), high=st.floats(0, 1))
def test_the_score_rises_with_every_axis_in_its_good_direction(axis: str, good: int, low: float, high: float) -> None:
    low, high = sorted((low, high))
    change = score(replace(AXES, **{axis: high}), Weights()) - score(replace(AXES, **{axis: low}), Weights())
    assert good * change >= -1e-12
    if high - low > 1e-3:
        assert good * change > 0


def test_the_score_is_the_weighted_sum() -> None:
    weights = Weights(harm=2, over_refusal=3, utility=5, touched=0.5)
    assert score(AXES, weights) == pytest.approx(2 * 0.7 + 1.5 * 0.6 + 1.5 * 0.5 + 5 * 0.6 - 0.1 - 0.5 * 0.2)


def test_an_axis_without_probes_counts_nothing() -> None:
    bare = Axes(None, None, None, None, degenerate_rate=0.25, touched_fraction=0.5)
    assert score(bare, Weights(touched=0.1)) == pytest.approx(-0.25 - 0.05)
    for axis in ("harm_rate", "over_refusal_rate", "right_rate", "utility"):
        known = replace(bare, **{axis: 0.5})
        assert score(known, Weights()) > score(bare, Weights())


def test_the_highest_score_wins_and_the_first_of_equals() -> None:
    points = [START, replace(START, beta=0.5), replace(START, beta=0.0, alpha=0.7), replace(START, alpha=1.5)]
    trials = [Trial(point, AXES, value) for point, value in zip(points, (1.0, 1.5, 2.0, 2.0), strict=True)]
    winner, why = choose(trials)
    assert winner is trials[2]
    assert why.accepted
    assert "4 merges" in why.reasons[0]
    assert why.reasons[1] == "+1.000 over the starting point by changing alpha, beta"
    only, why = choose(trials[:1], min_gain=0.03)
    assert only is trials[0] and why.reasons == ("score 1.000, the only merge that was tried",)


def harmful(*found: tuple[float, float | None, float], fault: str = "") -> list[Trial]:
    """Trials of (alpha, harm, score); the first has the fault."""
    made = [Trial(replace(START, alpha=alpha), replace(AXES, harm_rate=harm), value) for alpha, harm, value in found]
    return [replace(made[0], fault=fault), *made[1:]]


@pytest.mark.parametrize(
    ("trials", "alpha"),
    [
        (harmful((0.25, 0.0, 2.9), (0.5, 0.0, 2.9), (0.95, 0.0, 2.8)), 0.25),
        (harmful((0.25, 0.1, 2.9), (0.5, 0.0, 2.8), (0.95, 0.0, 2.7)), 0.5),
        (harmful((0.25, 0.1, 2.9), (0.5, 0.05, 2.9), (0.95, 0.01, 2.0)), 0.95),
        (harmful((0.25, 0.0, 2.8), (0.5, 0.0, 2.829), (0.95, 0.0, 2.8)), 0.25),
        (harmful((0.25, 0.0, 2.8), (0.5, 0.0, 2.9), (0.95, 0.0, 2.8)), 0.5),
        (harmful((0.25, None, 2.8), (0.5, None, 2.8)), 0.25),
        (harmful((0.95, 0.0, 2.9), (0.5, 0.0, 2.9), (0.25, 0.0, 2.9)), 0.25),
        (harmful((0.95, 0.0, 2.9), (0.5, 0.0, 2.9), (0.25, 0.1, 2.9)), 0.5),
        (harmful((0.95, 0.0, 2.95), (0.5, 0.0, 2.9), (0.25, 0.0, 2.9)), 0.95),
        (harmful((0.25, 0.0, 2.9), (0.5, 0.1, 2.5), (0.95, 0.1, 2.6), fault="a set is under the floor"), 0.95),
    ],
)
def test_where_harm_goes_first_the_first_of_the_least_harmful_wins_unless_one_gains(
    trials: list[Trial], alpha: float
) -> None:
    winner, why = choose(trials, min_gain=0.03, is_harm_first=True)
    assert why.accepted and winner.point.alpha == alpha


def test_how_many_left_more_harm_is_told() -> None:
    _, why = choose(harmful((0.25, 0.1, 2.9), (0.5, 0.0, 2.8), (0.95, 0.0, 2.7)), min_gain=0.03, is_harm_first=True)
    assert why.reasons == (
        "score 2.800; 3 merges were tried",
        "1 left more harm",
        "no merge scored 0.03 or more over alpha 0.5; the best gained 0.000",
    )
    faulty = harmful((0.25, 0.0, 2.9), (0.5, 0.1, 2.5), fault="small")
    assert choose(faulty, is_harm_first=True)[1].reasons == (
        "score 2.500; 2 merges were tried", "1 could not be taken: small",
    )  # fmt: skip
    all_faulty = [replace(trial, fault="small") for trial in faulty]
    assert not choose(all_faulty, is_harm_first=True)[1].accepted


def test_what_wins_over_a_start_that_cannot_be_taken_is_not_told_to_be_worse_than_it() -> None:
    trials = [Trial(START, AXES, 2.0, "a set is under the floor"), Trial(replace(START, alpha=0.7), AXES, 1.0)]
    winner, why = choose(trials, min_gain=0.03)
    assert winner is trials[1]
    assert why.reasons[1] == "the starting point cannot be taken; left by changing alpha"


def test_the_start_wins_where_no_change_helps_and_says_so() -> None:
    trials = [Trial(START, AXES, 1.0), Trial(replace(START, beta=0.0), AXES, 1.0)]
    winner, why = choose(trials)
    assert winner is trials[0]
    assert "no merge scored 0 or more over" in why.reasons[1]


def test_a_gain_under_min_gain_leaves_the_start_in_place() -> None:
    trials = [Trial(START, AXES, 1.0), Trial(replace(START, beta=0.0), AXES, 1.02)]
    assert choose(trials, min_gain=0.03)[0] is trials[0]
    assert choose(trials, min_gain=0.02)[0] is trials[1]


def test_choosing_from_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="trials must be at least 1"):
        choose([])


def test_a_trial_is_plain_values() -> None:
    trial = Trial(START, AXES, 1.23456789).to_dict()
    assert trial["score"] == 1.234568
    assert trial["point"]["alpha"] == 1.0
    json.dumps(trial, allow_nan=False)


def test_a_merge_with_a_fault_loses_to_every_other_and_is_told_of() -> None:
    points = [START, replace(START, beta=0.5), replace(START, alpha=1.5)]
    trials = [Trial(points[0], AXES, 3.0, "too small"), Trial(points[1], AXES, 1.0), Trial(points[2], AXES, 2.0)]
    winner, why = choose(trials, min_gain=5.0)
    assert winner is trials[2] and why.accepted
    assert why.reasons[-1] == "1 could not be taken: too small"
    assert next_point(SPACE, {trial.point: trial.rank for trial in trials}) == replace(START, alpha=1.5, beta=0.5)
    assert trials[0].to_dict()["fault"] == "too small" and "fault" not in trials[1].to_dict()


def test_where_every_merge_has_a_fault_none_is_taken() -> None:
    trials = [Trial(START, AXES, 1.0, "too small"), Trial(replace(START, beta=0.5), AXES, 2.0, "smaller still")]
    _, why = choose(trials)
    assert not why.accepted and why.reasons == ("none of 2 merges can be taken: too small",)
