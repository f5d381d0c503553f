"""Whether a round loosens at all."""

from __future__ import annotations

import pytest

from policies.gates import Share
from policies.loosening import needs_loosening


@pytest.mark.parametrize(
    ("hits", "num", "skip_below", "needed"),
    [(10, 40, 0.25, True), (9, 40, 0.25, False), (0, 40, 0.0, True), (0, 0, 0.25, True), (40, 40, 1.0, True)],
)
def test_loosening_is_skipped_only_below_the_share(hits: int, num: int, skip_below: float, needed: bool) -> None:
    decision = needs_loosening(Share(hits, num), skip_below)
    assert decision.accepted is needed
    assert decision.reasons and ("nothing is left" in decision.reasons[0]) is not needed
