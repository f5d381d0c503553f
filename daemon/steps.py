"""The steps of a round, in order, by its kind; what has not begun can be shown without loading the method."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

_LEARN: Final = ("teach", "choose", "over_safety", "safety", "score", "search", "mask", "merge")
_JUDGE: Final = ("evaluate", "gate")
STEPS: Final[Mapping[str, tuple[str, ...]]] = {
    "batch": ("parse", *_LEARN, *_JUDGE),
    "revert": ("remerge", *_JUDGE),
    "consolidation": ("gather", *_LEARN, *_JUDGE),
}


def in_order(kind: str, steps: Iterable[str]) -> list[str]:
    """Some steps of a round in the order in which they are done; unknown ones last, as they came."""
    known = STEPS.get(kind, ())
    return sorted(steps, key=lambda step: known.index(step) if step in known else len(known))
