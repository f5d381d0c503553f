"""Verdicts: what passes, what fails, and that what could not be measured never passes."""

from __future__ import annotations

import json
import math
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.gates import Bounds, GateResult, Share, decide, judge_share, judge_value, wilson


def verdict(
    hits: int,
    num: int,
    bounds: Bounds,
    *,
    direction: Literal["low", "high"] = "low",
    current: float | None = None,
    base: float | None = None,
) -> str:
    return judge_share("g", Share(hits, num), bounds, direction=direction, current=current, base=base).verdict


def result(name: str, verdict: Literal["pass", "fail", "inconclusive"], klass: str = "required") -> GateResult:
    return GateResult(name, klass, verdict, 0.5, (0.4, 0.6), 100, None, None, (f"because of {name}",))


@pytest.mark.parametrize(
    ("hits", "num", "low", "high"),
    [
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (5, 10, 0.2366, 0.7634),
        (81, 263, 0.2553, 0.3662),  # Newcombe 1998, table I
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (1, 1, 0.2065, 1.0),
    ],
)
def test_wilson_intervals_are_the_published_ones(hits: int, num: int, low: float, high: float) -> None:
    assert wilson(Share(hits, num)) == pytest.approx((low, high), abs=6e-5)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_intervals_hold_the_point_estimate_and_mirror_themselves(share: tuple[int, int]) -> None:
    hits, num = share
    low, high = wilson(Share(hits, num))
    assert 0 <= low <= hits / num + 1e-12
    assert hits / num - 1e-12 <= high <= 1
    assert wilson(Share(num - hits, num)) == pytest.approx((1 - high, 1 - low))


def test_without_samples_the_interval_is_everything_and_the_rate_nan() -> None:
    assert wilson(Share(0, 0)) == (0.0, 1.0)
    assert math.isnan(Share(0, 0).rate)


@pytest.mark.parametrize(
    ("hits", "bounds", "direction", "expected"),
    [
        (5, Bounds(max=0.05), "low", "pass"),
        (6, Bounds(max=0.05), "low", "inconclusive"),  # the interval reaches 0.05
        (30, Bounds(max=0.05), "low", "fail"),
        (95, Bounds(min=0.95), "high", "pass"),
        (94, Bounds(min=0.95), "high", "inconclusive"),
        (60, Bounds(min=0.95), "high", "fail"),
        (60, Bounds(min=0.95), "low", "fail"),
        (10, Bounds(max=0.5), "high", "pass"),
        (90, Bounds(max=0.5), "high", "fail"),
        (90, Bounds(min=0.5, max=0.7), "low", "fail"),
        (10, Bounds(min=0.5, max=0.7), "low", "fail"),
        (60, Bounds(min=0.5, max=0.7), "low", "pass"),
    ],
)
def test_absolute_bounds(hits: int, bounds: Bounds, direction: Literal["low", "high"], expected: str) -> None:
    assert verdict(hits, 100, bounds, direction=direction) == expected


@pytest.mark.parametrize(
    ("direction", "hits", "expected"),
    [
        ("low", 12, "pass"),
        ("low", 13, "inconclusive"),
        ("low", 40, "fail"),
        ("low", 0, "pass"),
        ("high", 8, "pass"),
        ("high", 7, "inconclusive"),
        ("high", 0, "fail"),
        ("high", 90, "pass"),
    ],
)
@pytest.mark.parametrize("against", ["current", "base"])
def test_a_worsening_counts_in_the_bad_direction_only(
    against: str, direction: Literal["low", "high"], hits: int, expected: str
) -> None:
    if against == "current":
        found = verdict(hits, 100, Bounds(max_regression=0.02), direction=direction, current=0.1, base=0.9)
    else:
        found = verdict(hits, 100, Bounds(max_drift=0.02), direction=direction, current=0.9, base=0.1)
    assert found == expected


def test_a_slow_slide_passes_against_the_current_version_and_fails_against_v0() -> None:
    bounds = Bounds(max_regression=0.02, max_drift=0.05)
    assert verdict(30, 100, bounds, current=0.29, base=0.28) == "pass"
    assert verdict(60, 100, bounds, current=0.59, base=0.1) == "fail"


@pytest.mark.parametrize("reference", [None, math.nan])
def test_a_bound_with_nothing_to_compare_with_is_inconclusive(reference: float | None) -> None:
    assert verdict(0, 100, Bounds(max_regression=0.02), current=reference) == "inconclusive"
    assert verdict(0, 100, Bounds(max_drift=0.02), base=reference) == "inconclusive"
    assert verdict(90, 100, Bounds(max=0.1, max_drift=0.02), base=reference) == "fail"


@pytest.mark.parametrize("bounds", [Bounds(max=1.0), Bounds(), Bounds(max=1.0, min_samples=0), Bounds(min_samples=0)])
def test_what_was_not_measured_never_passes(bounds: Bounds) -> None:
    for share in (None, Share(0, 0)):
        found = judge_share("g", share, bounds, direction="low")
        assert found.verdict == "inconclusive"
        assert found.value is None
        assert found.reasons == ("not measured",)
    for value in (None, math.nan, math.inf, -math.inf):
        assert judge_value("g", value, bounds, num_samples=100).verdict == "inconclusive"
    assert judge_value("g", 0.0, bounds, num_samples=0).verdict == "inconclusive"


def test_too_few_samples_are_inconclusive_even_when_they_look_perfect_or_terrible() -> None:
    for hits in (0, 19):
        found = judge_share("g", Share(hits, 19), Bounds(max=0.5), direction="low")
        assert found.verdict == "inconclusive"
        assert found.reasons == ("19 samples, at least 20 are needed",)
    assert verdict(0, 20, Bounds(max=0.5)) == "pass"
    assert judge_value("g", 0.0, Bounds(max=1), num_samples=19).verdict == "inconclusive"


def test_a_plain_value_passes_up_to_its_maximum() -> None:
    found = [judge_value("drift", value, Bounds(max=0.1), num_samples=50, base=2.0) for value in (-3.0, 0.1, 0.11)]
    assert [r.verdict for r in found] == ["pass", "pass", "fail"]
    assert found[2].reasons == ("0.110 > max 0.1",)
    assert (found[0].value, found[0].base, found[0].num_samples) == (-3.0, 2.0, 50)


def test_a_value_that_is_not_a_number_is_not_said_to_lack_samples() -> None:
    assert judge_value("drift", math.nan, Bounds(max=1), num_samples=500).reasons == ("not measured",)


def test_the_worst_bound_decides_and_every_bound_is_named() -> None:
    found = judge_share(
        "harm", Share(30, 100), Bounds(max=0.5, max_regression=0.01), direction="low", current=0.1, base=0.2
    )
    assert found.verdict == "fail"
    assert found.reasons == ("0.300 <= max 0.5", "0.300 > current version 0.100 + 0.01")
    assert (found.value, found.num_samples, found.current, found.base) == (0.3, 100, 0.1, 0.2)
    assert found.interval == wilson(Share(30, 100))
    json.dumps(found.to_dict(), allow_nan=False)


def test_a_rate_on_its_bound_meets_it_whatever_the_rounding() -> None:
    assert verdict(3, 30, Bounds(max_regression=0.1), current=0.0) == "pass"
    assert verdict(30, 100, Bounds(max_regression=0.1), current=0.2) == "pass"  # 0.1 + 0.2 is not 0.3
    assert verdict(70, 100, Bounds(max_regression=0.1), direction="high", current=0.8) == "pass"


@given(st.integers(0, 100), st.integers(0, 100), st.sampled_from(["low", "high"]))
def test_a_better_rate_never_has_a_worse_verdict(first: int, second: int, direction: Literal["low", "high"]) -> None:
    order = ["fail", "inconclusive", "pass"]
    bounds = Bounds(max=0.4, max_regression=0.1) if direction == "low" else Bounds(min=0.4, max_regression=0.1)
    worse, better = sorted((first, second), reverse=direction == "low")
    ranks = [order.index(verdict(h, 100, bounds, direction=direction, current=0.5)) for h in (worse, better)]
    assert ranks[0] <= ranks[1]


def test_publishing_needs_every_required_gate_to_pass() -> None:
    assert decide([result("a", "pass"), result("b", "pass")]).accepted
    for bad in ("fail", "inconclusive"):
        found = decide([result("a", "pass"), result("b", bad)])
        assert not found.accepted
        assert len(found.reasons) == 1
        assert "gate b" in found.reasons[0]
        assert "because of b" in found.reasons[0]


def test_wanted_gates_warn_and_dry_runs_are_silent() -> None:
    found = decide([result("a", "pass"), result("b", "fail", "wanted"), result("c", "fail", "dry_run")])
    assert found.accepted
    assert [("gate b" in reason, "not blocking" in reason) for reason in found.reasons] == [(True, True)]


def test_nothing_is_published_when_nothing_was_required() -> None:
    for results in ([], [result("a", "pass", "wanted")], [result("a", "pass", "dry_run")]):
        assert not decide(results).accepted
