"""Exact set sizes, ties by position, fair draws, and what earlier rounds keep."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from patches.mask import (
    AccumulateName,
    difference,
    exclude_claimed,
    overlap,
    retention_mask,
    sizes,
    top_mask,
    top_masks,
    underfilled,
)

SHAPE = torch.Size((40, 50))


def bools(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.bool)


def naive_top(values: list[float], count: int) -> list[bool]:
    """A stable sort by falling score, the first ``count`` of it."""
    first = sorted(range(len(values)), key=lambda i: -values[i])[:count]
    return [i in first for i in range(len(values))]


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.floats(0, 1))
def test_the_top_set_is_that_of_a_stable_sort_and_has_its_exact_size(values: list[int], fraction: float) -> None:
    score = torch.tensor(values, dtype=torch.float32)
    mask = top_mask(score, fraction)
    assert int(mask.sum()) == int(fraction * len(values))
    assert mask.tolist() == naive_top(score.tolist(), int(fraction * len(values)))


@pytest.mark.parametrize(("fraction", "count"), [(0, 0), (1, 12), (0.5, 6), (0.99, 11), (0.08, 0), (1 / 12, 1)])
def test_top_sets_have_their_exact_size_at_the_edges(fraction: float, count: int) -> None:
    mask = top_mask(torch.rand(3, 4), fraction)
    assert mask.shape == (3, 4)
    assert mask.dtype == torch.bool
    assert int(mask.sum()) == count


def test_of_equal_scores_the_first_ones_win() -> None:
    assert torch.equal(top_mask(torch.ones(2, 4), 0.375).int(), torch.tensor([[1, 1, 1, 0], [0, 0, 0, 0]]).int())
    assert top_mask(torch.tensor([1.0, 2, 1, 2, 1]), 0.6).tolist() == [True, True, False, True, False]
    assert top_mask(torch.zeros(4), 0.5).tolist() == [True, True, False, False]


def test_one_entry_is_kept_whole_or_not_at_all() -> None:
    assert top_mask(torch.tensor([3.0]), 1).tolist() == [True]
    assert top_mask(torch.tensor([3.0]), 0.99).tolist() == [False]


def test_the_top_set_of_a_transposed_score_follows_its_own_order() -> None:
    score = torch.arange(6.0).view(2, 3).t()
    assert torch.equal(top_mask(score, 0.5), score >= 3)


def test_top_sets_are_taken_a_matrix_at_a_time() -> None:
    found = top_masks({"small": torch.rand(10, 10), "large": 100 + torch.rand(20, 10)}, 0.1)
    assert {name: int(mask.sum()) for name, mask in found.items()} == {"small": 10, "large": 20}


@pytest.mark.parametrize("bad", [-0.01, 1.01, float("nan")])
def test_shares_outside_zero_to_one_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="0 to 1"):
        top_mask(torch.ones(3), bad)
    with pytest.raises(ValueError, match="0 to 1"):
        retention_mask(SHAPE, bad, seed=1, key="k")


def test_a_retention_rate_of_three_tenths_keeps_three_tenths_and_not_bf16s_rounding_of_it() -> None:
    num = 8_000_000
    rate = float(retention_mask(torch.Size((num,)), 0.3, seed=11, key="safety:w").sum()) / num
    deviation = (0.3 * 0.7 / num) ** 0.5
    rounded = float(torch.tensor(0.3, dtype=torch.bfloat16))
    assert rounded == pytest.approx(0.3008, abs=1e-4)
    assert abs(rate - 0.3) < 3 * deviation < (rounded - 0.3) - 1.5 * deviation


def test_retention_at_the_edges_keeps_all_or_nothing() -> None:
    assert bool(retention_mask(SHAPE, 1, seed=1, key="k").all())
    assert not bool(retention_mask(SHAPE, 0, seed=1, key="k").any())


def test_retention_depends_on_seed_and_key_alone() -> None:
    first = retention_mask(SHAPE, 0.5, seed=1, key="safety:w")
    torch.manual_seed(123)
    torch.rand(5)
    assert torch.equal(first, retention_mask(SHAPE, 0.5, seed=1, key="safety:w"))
    for seed, key in ((2, "safety:w"), (1, "over_safety:w"), (1, "safety:v")):
        other = retention_mask(SHAPE, 0.5, seed=seed, key=key)
        agree = float((first == other).float().mean())
        assert 0.4 < agree < 0.6  # independent draws agree on half


def test_drawing_masks_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    retention_mask(SHAPE, 0.5, seed=1, key="k")
    assert torch.equal(torch.rand(3), expected)


def test_a_lower_rate_keeps_a_part_of_what_a_higher_one_keeps() -> None:
    low, high = (retention_mask(SHAPE, rate, seed=1, key="k") for rate in (0.2, 0.6))
    assert bool((high | ~low).all())


def test_difference_sets_hold_what_the_other_lacks() -> None:
    safety, over_safety = difference(bools(1, 1, 0, 0), bools(1, 0, 1, 0))
    assert torch.equal(safety, bools(0, 1, 0, 0))
    assert torch.equal(over_safety, bools(0, 0, 1, 0))


ENTRIES = range(12)
SETS = st.sets(st.sampled_from(ENTRIES))


def marked(entries: set[int]) -> torch.Tensor:
    return torch.tensor([i in entries for i in ENTRIES])


@given(SETS, SETS, SETS, SETS, st.sampled_from(["opposed", "protect", "off"]))
def test_masks_are_those_of_set_algebra(
    safety: set[int], over: set[int], by_safety: set[int], by_over: set[int], accumulate: AccumulateName
) -> None:
    found = difference(marked(safety), marked(over))
    assert torch.equal(found[0], marked(safety - over))
    assert torch.equal(found[1], marked(over - safety))
    kept_off = {
        "opposed": (by_over, by_safety),
        "protect": (by_safety | by_over, by_safety | by_over),
        "off": (set[int](), set[int]()),
    }[accumulate]
    free = exclude_claimed(marked(safety), marked(over), (marked(by_safety), marked(by_over)), accumulate)
    assert torch.equal(free[0], marked(safety - kept_off[0]))
    assert torch.equal(free[1], marked(over - kept_off[1]))


@given(SETS, SETS)
def test_overlap_and_sizes_are_counts_of_entries(first: set[int], second: set[int]) -> None:
    expected = len(first & second) / len(first | second) if first | second else 0.0
    assert overlap({"w": marked(first)}, {"w": marked(second)}) == {"w": pytest.approx(expected)}
    assert sizes({"w": marked(first)}) == {"w": pytest.approx(len(first) / len(ENTRIES))}


# entry:                free, by safety, by over-safety, by both
CLAIMED = (bools(0, 1, 0, 1), bools(0, 0, 1, 1))


@pytest.mark.parametrize(
    ("accumulate", "safety", "over_safety"),
    [
        ("opposed", bools(1, 1, 0, 0), bools(1, 0, 1, 0)),
        ("protect", bools(1, 0, 0, 0), bools(1, 0, 0, 0)),
        ("off", bools(1, 1, 1, 1), bools(1, 1, 1, 1)),
    ],
)
def test_masks_keep_off_what_earlier_rounds_claimed(
    accumulate: str, safety: torch.Tensor, over_safety: torch.Tensor
) -> None:
    found = exclude_claimed(bools(1, 1, 1, 1), bools(1, 1, 1, 1), CLAIMED, accumulate)  # type: ignore[arg-type]
    assert torch.equal(found[0], safety)
    assert torch.equal(found[1], over_safety)


@pytest.mark.parametrize("accumulate", ["opposed", "protect", "off"])
def test_claims_never_add_an_entry_and_the_first_round_has_none(accumulate: str) -> None:
    nothing = bools(0, 0, 0, 0)
    found = exclude_claimed(nothing, nothing, CLAIMED, accumulate)  # type: ignore[arg-type]
    assert not bool(found[0].any() | found[1].any())
    mask = bools(1, 0, 1, 0)
    first, second = exclude_claimed(mask, ~mask, None, accumulate)  # type: ignore[arg-type]
    assert torch.equal(first, mask)
    assert torch.equal(second, ~mask)


def test_overlap_is_intersection_over_union() -> None:
    first = {"some": bools(1, 1, 0, 0), "same": bools(1, 0), "none": bools(1, 0), "empty": bools(0, 0)}
    second = {"some": bools(1, 0, 1, 0), "same": bools(1, 0), "none": bools(0, 1), "empty": bools(0, 0)}
    assert overlap(first, second) == {"some": pytest.approx(1 / 3), "same": 1.0, "none": 0.0, "empty": 0.0}


def test_sizes_are_shares_of_each_matrix() -> None:
    assert sizes({"half": bools(1, 0), "none": bools(0, 0, 0)}) == {"half": 0.5, "none": 0.0}


def test_a_set_under_the_floor_is_told_with_its_numbers_and_one_at_it_is_not() -> None:
    assert underfilled(1, 10, 0.1, "safety") == underfilled(0, 10, 0.0, "safety") == ""
    assert underfilled(1, 10, 0.2, "over-safety") == "the over-safety set holds 1 of 10 entries, under the floor of 0.2"
