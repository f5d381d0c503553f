"""The outcome of a policy: a verdict and the reasons a person would want to read."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Decision:
    """``accepted`` says whether to go on; ``reasons`` are whole sentences, most important first."""

    accepted: bool
    reasons: tuple[str, ...] = ()
