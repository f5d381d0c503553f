"""Whether a round should loosen the model at all, and whether there is anything to forget."""

from __future__ import annotations

from collections.abc import Mapping

from policies.decision import Decision
from policies.gates import Share


def needs_loosening(refused: Share, skip_below: float) -> Decision:
    """Accepted when an over-safety patch is worth its risk: it loosens every category, named by a batch or not.

    Args:
        refused: lookalikes of the development part that the current version refuses.
        skip_below: share in [0, 1] under which nothing is left to loosen; 0 = always loosen.
    """
    if refused.num_samples == 0:
        return Decision(True, ("no lookalikes to tell over-refusal by",))
    said = f"{refused.hits} of {refused.num_samples} lookalikes are refused"
    if refused.rate < skip_below:
        return Decision(False, (f"{said}, fewer than {skip_below:.0%}: nothing is left to loosen",))
    return Decision(True, (said,))


def may_loosen(given_away: Share, at_least: float, *, is_watched: bool) -> Decision:
    """Accepted when what is given to learn from is harm of this model, or when it would be seen what loosening costs.

    A batch of answers that the model never gives would otherwise loosen it, and measure nothing that it gives away since.

    Args:
        given_away: rows of the batch that the current version answers with their content.
        at_least: share in [0, 1] that must be; 0 = none need.
        is_watched: there are standing harm probes.
    """
    said = f"{given_away.hits} of {given_away.num_samples} rows of the batch are answered with their content now"
    if is_watched or at_least == 0 or given_away.rate >= at_least:
        return Decision(True, (said,))
    return Decision(
        False,
        (
            f"{said}, fewer than {at_least:.0%}, and no standing harm probes would show what loosening costs: nothing is "
            "loosened ([probes] harm)",
        ),
    )


def needs_forgetting(still_open: Mapping[str, Share], skip_below: float) -> Decision:
    """Accepted when a safety patch is worth its price: each one costs some right answers to lookalikes.

    Args:
        still_open: by source, rows that the model answers with their harmful content.
        skip_below: share in [0, 1] of every source under which nothing is forgotten; 0 = forget as long as a row is open.
    """
    said = [
        f"{share.hits} of {share.num_samples} rows of {name}" for name, share in still_open.items() if share.num_samples
    ]
    found = f"answered with the harmful content: {', '.join(said) or 'no rows'}"
    if not any(share.hits for share in still_open.values()):
        return Decision(False, (f"{found}: nothing is left to forget",))
    if all(share.rate < skip_below for share in still_open.values() if share.num_samples):
        return Decision(
            False, (f"{found}; fewer than {skip_below:.0%} of each: a patch would cost more than it gains",)
        )
    return Decision(True, (found,))
