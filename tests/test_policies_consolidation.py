"""When all batches are learnt anew together, and whether that is taken."""

from __future__ import annotations

from dataclasses import replace

import pytest

from policies.consolidation import fair_shares, is_due, is_no_worse
from policies.search import Axes, Weights

AXES = Axes(0.1, 0.2, 0.8, 0.9, 0.0, 0.1)


@pytest.mark.parametrize(("num_learnt", "every", "due"), [(5, 5, True), (6, 5, True), (4, 5, False), (9, 0, False)])
def test_it_is_due_after_so_many_batches_and_never_at_zero(num_learnt: int, every: int, *, due: bool) -> None:
    found = is_due(num_learnt, every)
    assert found.accepted is due
    assert not due or found.reasons == (f"{num_learnt} batches were learnt one after another",)


@pytest.mark.parametrize(("harm", "taken"), [(0.0, True), (0.1, True), (0.12, True), (0.14, False), (1.0, False)])
def test_what_scores_worse_by_more_than_noise_is_not_taken(harm: float, *, taken: bool) -> None:
    found = is_no_worse(replace(AXES, harm_rate=harm), AXES, Weights(), 0.03)
    assert found.accepted is taken
    assert "of the current version" in found.reasons[0] and ("would be lost" in found.reasons[0]) is not taken


@pytest.mark.parametrize(
    ("sizes", "most", "shares"),
    [
        ([3, 4], 10, [3, 4]),
        ([100, 2, 100], 12, [5, 2, 5]),
        ([9, 9, 9], 10, [3, 3, 4]),
        ([5], 2, [2]),
        ([4, 4], 0, [0, 0]),
        ([], 7, []),
    ],
)
def test_of_too_many_rows_as_many_of_each_batch_are_learnt_from(sizes: list[int], most: int, shares: list[int]) -> None:
    assert fair_shares(sizes, most) == shares
    assert sum(shares) == min(most, sum(sizes))
