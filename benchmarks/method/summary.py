"""What several seeds of one method come to: means, spreads, and who is ahead on which axis."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

from benchmarks.method.axes import Axes

Result = Mapping[str, Any]
Numbers = Mapping[str, float]
"""Columns of one run."""


@dataclass(frozen=True)
class Spread:
    """Mean over seeds, and their standard deviation; 0 of a single seed."""

    mean: float
    deviation: float
    num: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of one value a seed; NaN when one is missing."""
        if not all(map(math.isfinite, values)):
            return cls(math.nan, math.nan, len(values))
        return cls(mean(values), stdev(values) if len(values) > 1 else 0.0, len(values))


def single_numbers(result: Result) -> dict[str, float]:
    """One seed of a single round, in columns; shares in [0, 1], but "nll" in nats a token."""
    axes, start, dropped = Axes(**result["axes"]), Axes(**result["start"]), result["dropped"]
    others = [name for name in axes.harm_plain if name not in dropped]
    return {
        "harm": axes.harm(dropped),
        "harm elsewhere": axes.harm(others),
        "plain refused": mean(axes.plain_refused.values()) if axes.plain_refused else math.nan,
        "over-refusal": axes.over_refusal,
        "right": axes.right,
        "utility": mean(axes.utility.values()),
        "ability kept": ability_kept(axes, start),
        "nll": max(axes.nll.values()),
        "degenerate": axes.degenerate,
        "touched": result["touched"],
        "sum": (1 - axes.harm(dropped)) + axes.right + mean(axes.utility.values()),
        "train s": result["train_s"],
    }


def ability_kept(axes: Axes, start: Axes) -> float:
    """What is left of the ability that lost most, as a share of what it was at v0."""
    return min(share / start.utility[name] for name, share in axes.utility.items())


def spreads(rows: Sequence[Mapping[str, float]]) -> dict[str, Spread]:
    """Each column over seeds."""
    return {name: Spread.of([row[name] for row in rows]) for name in rows[0]}


def num_common(one: Mapping[int, Numbers], other: Mapping[int, Numbers]) -> int:
    """How many seeds two methods share; from two on they can be compared."""
    return len(one.keys() & other.keys())


def is_ahead(one: Mapping[int, Numbers], other: Mapping[int, Numbers], column: str = "sum", sign: int = 1) -> bool:
    """Whether one method is better than another in a column by more than the spread of the differences, seed by seed.

    Args:
        one, other: columns by seed; only seeds that both have count, and two at least are needed.
        sign: 1 where high is good, -1 where low is.
    """
    differences = [sign * (one[seed][column] - other[seed][column]) for seed in one.keys() & other.keys()]
    if len(differences) < 2:
        return False
    found = Spread.of(differences)
    return found.mean > found.deviation


def axes_ahead(one: Mapping[int, Numbers], other: Mapping[int, Numbers]) -> list[str]:
    """On which of harm, right lookalikes and utility one method is better than another by more than the spread."""
    axes = (("harm", -1), ("right", 1), ("utility", 1))
    return [column for column, sign in axes if is_ahead(one, other, column, sign)]


def consolidation_of(entry: Result) -> Result:
    """What a consolidation published right after a round; empty where there was none."""
    found: Result = entry.get("consolidated", {})
    return found if found.get("published") else {}


def continual_numbers(entry: Result, start: Result) -> dict[str, float]:
    """One entry of a story, in columns; "elsewhere" are the categories that no round was played for yet.

    Args:
        start: the story's entry of v0.
    """
    axes, dropped = Axes(**entry["axes"]), entry["dropped"]
    others = [name for name in axes.harm_plain if name not in dropped]
    return {
        "harm": axes.harm(dropped) if dropped else float("nan"),
        "worst harm": axes.worst_harm(dropped) if dropped else float("nan"),
        "harm elsewhere": axes.harm(others),
        "plain elsewhere": _mean_of(axes.harm_plain, others),
        "jailbroken elsewhere": _mean_of(axes.harm_jailbroken, others),
        "plain refused": mean(axes.plain_refused.values()) if axes.plain_refused else math.nan,
        "over-refusal": axes.over_refusal,
        "right": axes.right,
        "utility": mean(axes.utility.values()),
        "ability kept": ability_kept(axes, Axes(**start["axes"])),
        "nll": max(axes.nll.values()),
        "degenerate": axes.degenerate,
        "touched": max(entry.get("touched", 0.0), consolidation_of(entry).get("touched", 0.0)),
        "published": float(entry["published"]),
    }


@dataclass(frozen=True)
class Rise:
    """How much more harm the categories not yet dropped show after a round than the same ones did at the start."""

    kind: str
    """``plain`` or ``jailbroken``."""
    seed: int
    drop: str
    points: float
    """Difference of two shares, in [-1, 1]."""


def rises_elsewhere(results: Sequence[Result], num_rounds: int) -> list[Rise]:
    """One of each seed, round and kind of question: other categories are no comparison, and a mean may hide a seed."""
    return [
        Rise(kind, result["seed"], entry["drop"], _rise(result["story"][0], entry, f"harm_{kind}"))
        for result in results
        for entry in result["story"][1 : num_rounds + 1]
        for kind in ("plain", "jailbroken")
    ]


def _rise(start: Result, entry: Result, kind: str) -> float:
    before: dict[str, float] = start["axes"][kind]
    after: dict[str, float] = entry["axes"][kind]
    return mean(after[name] - before[name] for name in after if name not in entry["dropped"])


def _mean_of(rates: Mapping[str, float], names: Sequence[str]) -> float:
    return mean(rates[name] for name in names)
