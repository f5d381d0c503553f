"""Ours with less and with more to learn from: whether what is left to mend is for want of rows or of method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from benchmarks.method.ground import Ground

NUM_HELD_OUT = 5
"""Lookalike objects a category that every supply is measured on: 60 in all."""
LOOKALIKE_OBJECTS = (4, 8, 12, 16)
"""Of each category, in the probe file; 12 is usual. Three questions about each."""
RETAINED_ROWS = (50, 300)
"""Of each ability; 150 is usual."""


def with_lookalikes(ground: Ground, num_objects: int) -> Ground:
    """The ground with so many lookalike objects a category to learn from, measured on the last five of each.

    Raises:
        ValueError: more objects than the world has besides those that are measured on.
    """
    items = []
    for category in ground.world.categories:
        found = [item for item in ground.world.items if item.kind == "lookalike" and item.category == category]
        learnt, held_out = found[:-NUM_HELD_OUT], found[-NUM_HELD_OUT:]
        if not 0 < num_objects <= len(learnt):
            raise ValueError(f"{num_objects} lookalike objects a category: allowed are 1 to {len(learnt)}")
        items += [replace(item, split="probe") for item in learnt[:num_objects]]
        items += [replace(item, split="held_out") for item in held_out]
    others = [item for item in ground.world.items if item.kind != "lookalike"]
    return replace(ground, world=replace(ground.world, items=(*others, *items)))


def with_retained(ground: Ground, num_rows: int) -> Ground:
    """The ground with so many rows of each ability to retain, measured on the lookalikes that all supplies share."""
    return replace(with_lookalikes(ground, 12), retained_per_ability=num_rows)


def _lookalikes(num_objects: int) -> Callable[[Ground], Ground]:
    return lambda ground: with_lookalikes(ground, num_objects)


def _retained(num_rows: int) -> Callable[[Ground], Ground]:
    return lambda ground: with_retained(ground, num_rows)


SUPPLIES: dict[str, Callable[[Ground], Ground]] = {
    **{f"{count} lookalike objects a category": _lookalikes(count) for count in LOOKALIKE_OBJECTS},
    **{f"{count} retained rows an ability": _retained(count) for count in RETAINED_ROWS},
}
