"""How well a judge does: beside another judge, and beside labels that people gave. Pure functions of counts and numbers."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate, pairwise
from typing import Any, Final

MAX_BINS: Final = 10


@dataclass(frozen=True)
class Agreement:
    """Two judges on the same answers, each saying yes or no."""

    num: int
    num_equal: int
    only_first: int
    """Answers that only the first says yes to."""
    only_second: int
    kappa: float | None
    """Cohen's: 1 is full agreement, 0 what chance alone would give; None where chance alone would give all."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def agreement(both: int, only_first: int, only_second: int, neither: int) -> Agreement:
    """Agreement of two judges, from how many answers each pair of verdicts stands for.

    Source: Cohen 1960: kappa = (observed - chance) / (1 - chance).
    """
    num = both + only_first + only_second + neither
    equal = both + neither
    if not num:
        return Agreement(0, 0, 0, 0, None)
    first, second = (both + only_first) / num, (both + only_second) / num
    chance = first * second + (1 - first) * (1 - second)
    kappa = None if math.isclose(chance, 1.0) else (equal / num - chance) / (1 - chance)
    return Agreement(num, equal, only_first, only_second, kappa)


def agreement_of(first: Sequence[bool], second: Sequence[bool]) -> Agreement:
    """The same, from the verdicts themselves."""
    pairs = list(zip(first, second, strict=True))
    return agreement(*(pairs.count(pair) for pair in ((True, True), (True, False), (False, True), (False, False))))


@dataclass(frozen=True)
class Confusion:
    """A judge's yes and no beside the labels'."""

    true_positive: int
    false_positive: int
    false_negative: int
    true_negative: int

    @property
    def num(self) -> int:
        """Answers that were judged."""
        return self.true_positive + self.false_positive + self.false_negative + self.true_negative

    @property
    def accuracy(self) -> float | None:
        """Share that it has right."""
        return _ratio(self.true_positive + self.true_negative, self.num)

    @property
    def precision(self) -> float | None:
        """Share of its yes that is right."""
        return _ratio(self.true_positive, self.true_positive + self.false_positive)

    @property
    def recall(self) -> float | None:
        """Share of the labels' yes that it finds."""
        return _ratio(self.true_positive, self.true_positive + self.false_negative)

    @property
    def false_positive_rate(self) -> float | None:
        """Share of the labels' no that it says yes to."""
        return _ratio(self.false_positive, self.false_positive + self.true_negative)

    @property
    def f1(self) -> float | None:
        """Harmonic mean of precision and recall, 2 TP / (2 TP + FP + FN)."""
        return _ratio(2 * self.true_positive, 2 * self.true_positive + self.false_positive + self.false_negative)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, rates included."""
        names = ("accuracy", "precision", "recall", "false_positive_rate", "f1")
        return asdict(self) | {name: getattr(self, name) for name in names}


def confusion(said: Sequence[bool], labels: Sequence[bool]) -> Confusion:
    """A judge's verdicts beside the labels of the same answers."""
    pairs = list(zip(said, labels, strict=True))
    return Confusion(*(pairs.count(pair) for pair in ((True, True), (True, False), (False, True), (False, False))))


def best_threshold(scores: Sequence[float], labels: Sequence[bool]) -> tuple[float, Confusion] | None:
    """The threshold with the highest F1, half-way between two scores, and what it gives; the middle one of equals.

    None where the labels are all alike: then no threshold is better than another.
    """
    if len(set(labels)) < 2:
        return None
    rows = sorted(zip(scores, labels, strict=True))
    known = [score for score, _ in rows]
    harmful = [0, *accumulate(label for _, label in rows)]  # how many of the lowest scores are labelled yes
    cuts = [0.0, *((low + high) / 2 for low, high in pairwise(known) if low != high)]
    found = [(cut, _parted(bisect_left(known, cut), harmful)) for cut in cuts]
    best = max(matrix.f1 or 0.0 for _, matrix in found)
    equal = [item for item in found if math.isclose(item[1].f1 or 0.0, best)]
    return equal[len(equal) // 2]


def _parted(num_below: int, harmful: Sequence[int]) -> Confusion:
    """What a threshold gives that so many scores lie below."""
    missed, num = harmful[num_below], len(harmful) - 1
    found = harmful[-1] - missed
    return Confusion(found, num - num_below - found, missed, num_below - missed)


def brier(scores: Sequence[float], labels: Sequence[bool]) -> float | None:
    """Mean squared distance of probabilities from what was true, in [0, 1]; lower is better. None without any."""
    pairs = list(zip(scores, labels, strict=True))
    return sum((score - label) ** 2 for score, label in pairs) / len(pairs) if pairs else None


def calibration_error(scores: Sequence[float], labels: Sequence[bool]) -> float | None:
    """Expected calibration error over ten bins of equal width: how far probabilities are from frequencies, in [0, 1].

    Source: Guo et al. 2017, arXiv 1706.04599, equation 3, with the probability of harm as the confidence.
    """
    pairs = list(zip(scores, labels, strict=True))
    if not pairs:
        return None
    bins: dict[int, list[tuple[float, bool]]] = {}
    for score, label in pairs:
        bins.setdefault(min(int(score * MAX_BINS), MAX_BINS - 1), []).append((score, label))
    gaps = (abs(sum(score for score, _ in rows) - sum(label for _, label in rows)) for rows in bins.values())
    return sum(gaps) / len(pairs)


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None
