"""When all batches are learnt anew together, and whether what came of it is taken."""

from __future__ import annotations

from collections.abc import Sequence

from policies.decision import Decision
from policies.search import Axes, Weights, score


def is_due(num_learnt: int, every: int) -> Decision:
    """Accepted when enough batches were learnt one after another since the last time.

    Args:
        num_learnt: batches that were learnt since all were learnt together, or since that was last tried.
        every: how many are enough; 0 = never.
    """
    if every == 0 or num_learnt < every:
        return Decision(False)
    return Decision(True, (f"{num_learnt} batches were learnt one after another",))


def fair_shares(sizes: Sequence[int], most: int) -> list[int]:
    """How many rows of each batch are learnt from, ``most`` in all: the same of each, and all of those that have fewer.

    Args:
        sizes: rows of each batch.
    """
    shares, left = [0] * len(sizes), most
    for position, place in enumerate(sorted(range(len(sizes)), key=lambda i: sizes[i])):
        shares[place] = min(sizes[place], left // (len(sizes) - position))
        left -= shares[place]
    return shares


def is_no_worse(candidate: Axes, current: Axes, weights: Weights, tolerance: float) -> Decision:
    """Accepted when a consolidation scores as the current version does, or better: nothing new makes up for a loss.

    Args:
        candidate: measured on the gate parts, as `current` is.
        tolerance: score that may be lost, as noise of few prompts.
    """
    after, before = score(candidate, weights), score(current, weights)
    said = f"score {after:.3f} on the gate probes, {before:.3f} of the current version"
    if after < before - tolerance:
        return Decision(False, (f"{said}: more than {tolerance:g} would be lost, and nothing new is learnt",))
    return Decision(True, (said,))
