"""When all batches are learnt anew together, and whether that is taken."""

from __future__ import annotations

from dataclasses import replace

import pytest

from policies.consolidation import is_due, is_no_worse
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
