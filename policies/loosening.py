"""Whether a round should loosen the model at all."""

from __future__ import annotations

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
