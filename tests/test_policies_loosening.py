"""Whether a round loosens at all, and whether it forgets."""

from __future__ import annotations

import pytest

from policies.gates import Share
from policies.loosening import may_loosen, needs_forgetting, needs_loosening


@pytest.mark.parametrize(
    ("hits", "num", "skip_below", "needed"),
    [(10, 40, 0.25, True), (9, 40, 0.25, False), (0, 40, 0.0, True), (0, 0, 0.25, True), (40, 40, 1.0, True)],
)
def test_loosening_is_skipped_only_below_the_share(hits: int, num: int, skip_below: float, needed: bool) -> None:
    decision = needs_loosening(Share(hits, num), skip_below)
    assert decision.accepted is needed
    assert decision.reasons and ("nothing is left" in decision.reasons[0]) is not needed


@pytest.mark.parametrize(
    ("batch", "standing", "skip_below", "needed"),
    [
        ((0, 100), (0, 100), 0.0, False),
        ((1, 100), (0, 100), 0.0, True),
        ((1, 100), (1, 100), 0.02, False),
        ((2, 100), (0, 100), 0.02, True),
        ((0, 1000), (3, 100), 0.02, True),
        ((0, 0), (0, 0), 0.02, False),
        ((5, 5), (0, 0), 0.02, True),
    ],
)
def test_forgetting_is_skipped_only_where_no_source_has_its_share_open(
    batch: tuple[int, int], standing: tuple[int, int], skip_below: float, needed: bool
) -> None:
    decision = needs_forgetting({"the batch": Share(*batch), "standing probes": Share(*standing)}, skip_below)
    assert decision.accepted is needed
    if batch[1]:
        assert f"{batch[0]} of {batch[1]} rows of the batch" in decision.reasons[0]


@pytest.mark.parametrize(
    ("hits", "at_least", "is_watched", "may"),
    [(3, 0.1, False, False), (10, 0.1, False, True), (0, 0.1, True, True), (0, 0.0, False, True)],
)
def test_a_batch_that_the_model_does_not_answer_loosens_only_where_standing_probes_watch(
    hits: int, at_least: float, is_watched: bool, may: bool
) -> None:
    decision = may_loosen(Share(hits, 100), at_least, is_watched=is_watched)
    assert decision.accepted is may and f"{hits} of 100 rows of the batch" in decision.reasons[0]
    assert ("[probes] harm" in decision.reasons[0]) is not may


def test_a_batch_without_rows_loosens_nothing() -> None:
    assert not may_loosen(Share(0, 0), 0.1, is_watched=False).accepted
