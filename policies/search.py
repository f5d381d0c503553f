"""Which merge to try next, and which of those tried to take. A merge costs no training, so search instead of guessing."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from policies.decision import Decision


@dataclass(frozen=True)
class Point:
    """One setting of a merge."""

    retention_rate: float
    safety_fraction: float
    over_safety_fraction: float
    alpha: float
    beta: float


@dataclass(frozen=True)
class Space:
    """Values to try for each coordinate; the first of each is where the search starts."""

    retention_rate: tuple[float, ...]
    safety_fraction: tuple[float, ...]
    over_safety_fraction: tuple[float, ...]
    alpha: tuple[float, ...]
    beta: tuple[float, ...]


@dataclass(frozen=True)
class Axes:
    """What one merge measured on the development parts; shares in [0, 1], None where there were no probes."""

    harm_rate: float | None
    over_refusal_rate: float | None
    right_rate: float | None
    """Harmless lookalikes answered rightly."""
    utility: float | None
    degenerate_rate: float
    touched_fraction: float


@dataclass(frozen=True)
class Weights:
    """The policy's trade-off between the axes."""

    harm: float = 1.0
    over_refusal: float = 1.0
    utility: float = 1.0
    degenerate: float = 1.0
    touched: float = 0.05


@dataclass(frozen=True)
class Trial:
    """A merge that was tried, and its score."""

    point: Point
    axes: Axes
    score: float
    fault: str = ""
    """Why it cannot be taken, whatever it scores; empty when it can."""

    @property
    def rank(self) -> float:
        """What the search goes by: the score; a merge that cannot be taken is behind all others."""
        return -math.inf if self.fault else self.score

    def to_dict(self) -> dict[str, Any]:
        """Plain values for the ledger."""
        fault = {"fault": self.fault} if self.fault else {}
        return {"point": asdict(self.point), "axes": asdict(self.axes), "score": round(self.score, 6)} | fault


def score(axes: Axes, weights: Weights) -> float:
    """Weighted sum of the axes, higher is better: safe, not refusing, right, able, small.

    An axis without probes counts nothing. A lookalike counts half for not being refused and half for a right answer.
    """
    parts = [
        (weights.harm, _inverse(axes.harm_rate)),
        (weights.over_refusal / 2, _inverse(axes.over_refusal_rate)),
        (weights.over_refusal / 2, axes.right_rate),
        (weights.utility, axes.utility),
    ]
    gained = sum(weight * good for weight, good in parts if good is not None)
    return gained - weights.degenerate * axes.degenerate_rate - weights.touched * axes.touched_fraction


def start(space: Space) -> Point:
    """The point that the search begins with."""
    return Point(*(getattr(space, field.name)[0] for field in fields(Space)))


def next_point(space: Space, tried: Mapping[Point, float]) -> Point | None:
    """The next merge to try: an untried neighbour of the best so far, one coordinate changed; None when there is none.

    Coordinate ascent: deterministic, and it never tries a point twice. The coordinates with a bearing on both axes (beta, alpha)
    are walked first.
    """
    if not tried:
        return start(space)
    best = max(tried, key=lambda point: tried[point])
    for name in ("beta", "alpha", "safety_fraction", "over_safety_fraction", "retention_rate"):
        for value in getattr(space, name):
            neighbour = replace(best, **{name: value})
            if neighbour not in tried:
                return neighbour
    return None


def choose(trials: Sequence[Trial], *, min_gain: float = 0.0, is_harm_first: bool = False) -> tuple[Trial, Decision]:
    """The trial with the highest score (the first of equals) and why it won; not accepted when every trial has a fault.

    Args:
        min_gain: what the best must score over the first trial; else the first is taken, unless it has a fault.
        is_harm_first: choose among those only that can be taken and leave the least harm, the smallest alpha in place of the
            first.

    Raises:
        ValueError: there is no trial.
    """
    if not trials:
        raise ValueError("no merge was tried; [merge.search] trials must be at least 1")
    left = _least_harmful(trials) if is_harm_first else trials
    first, best = left[0], max(left, key=lambda trial: trial.rank)
    if best.fault:
        return first, Decision(False, (f"none of {len(trials)} merges can be taken: {first.fault}",))
    winner = first if not first.fault and best.score - first.score < min_gain else best
    return winner, Decision(True, tuple(_why(winner, best, trials, left, min_gain)))


def _least_harmful(trials: Sequence[Trial]) -> Sequence[Trial]:
    """The smallest alpha first; all of them as they are where none can be taken."""
    sound = [trial for trial in trials if not trial.fault]
    least = min((trial.axes.harm_rate or 0.0 for trial in sound), default=0.0)
    left = [trial for trial in sound if (trial.axes.harm_rate or 0.0) <= least]
    return sorted(left, key=lambda trial: trial.point.alpha) or trials


def _why(winner: Trial, best: Trial, trials: Sequence[Trial], left: Sequence[Trial], min_gain: float) -> Iterator[str]:
    first, faults = left[0], [trial.fault for trial in trials if trial.fault]
    if len(trials) == 1:
        yield f"score {winner.score:.3f}, the only merge that was tried"
        return
    yield f"score {winner.score:.3f}; {len(trials)} merges were tried"
    if more_harm := len(trials) - len(left) - len(faults) * (left is not trials):
        yield f"{more_harm} left more harm"
    if winner is not first:
        changed = [f.name for f in fields(Point) if getattr(winner.point, f.name) != getattr(first.point, f.name)]
        gained = f"{winner.score - first.score:+.3f} over the starting point"
        yield f"{'the starting point cannot be taken; left' if first.fault else gained} by changing {', '.join(changed)}"
    elif len(left) > 1:
        gain = best.score - first.score
        yield f"no merge scored {min_gain:g} or more over {_named(first, trials)}; the best gained {gain:.3f}"
    if faults:
        yield f"{len(faults)} could not be taken: {faults[0]}"


def _named(first: Trial, trials: Sequence[Trial]) -> str:
    return "the starting point" if first is trials[0] else f"alpha {first.point.alpha:g}"


def _inverse(rate: float | None) -> float | None:
    return None if rate is None else 1 - rate
