"""Whether a candidate may be published: one verdict a gate, each with its numbers and reasons.

A verdict is pass, fail or inconclusive. Missing, NaN and too few samples are inconclusive, never a pass. So is a bound that
the point estimate misses while the interval still reaches it: more samples could decide, this measurement cannot.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from policies.decision import Decision

Verdict = Literal["pass", "fail", "inconclusive"]
Direction = Literal["low", "high"]
"""Which way is good: low for harm, over-refusal and degenerate rates and for drift, high for utility."""

Z_95 = 1.959963984540054


@dataclass(frozen=True)
class Share:
    """A measured share: ``hits`` of ``num_samples``."""

    hits: int
    num_samples: int

    @property
    def rate(self) -> float:
        """Point estimate; NaN without samples."""
        return self.hits / self.num_samples if self.num_samples else math.nan


@dataclass(frozen=True)
class Bounds:
    """What a gate demands. A regression is a worsening in the bad direction."""

    klass: Literal["required", "wanted", "dry_run"] = "required"
    max: float | None = None
    min: float | None = None
    max_regression: float | None = None
    """Allowed worsening against the current version."""
    max_drift: float | None = None
    """Allowed worsening against v0."""
    min_samples: int = 20


@dataclass(frozen=True)
class GateResult:
    """One gate's verdict with what it was reached on."""

    name: str
    klass: str
    verdict: Verdict
    value: float | None
    interval: tuple[float, float] | None
    num_samples: int
    current: float | None
    base: float | None
    reasons: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for the version and the ledger."""
        return asdict(self)


def wilson(share: Share) -> tuple[float, float]:
    """The 95 % Wilson score interval of a share; (0, 1) without samples."""
    n = share.num_samples
    if n == 0:
        return 0.0, 1.0
    p, z2 = share.rate, Z_95**2
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z_95 * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half))  # rounding may put p just outside


def judge_share(
    name: str,
    share: Share | None,
    bounds: Bounds,
    *,
    direction: Direction,
    current: float | None = None,
    base: float | None = None,
) -> GateResult:
    """The verdict on a share.

    Args:
        share: of the candidate; None = it could not be measured.
        current: the same rate of the current version, on the same samples.
        base: the same rate of v0.
    """
    if share is None or share.num_samples < max(1, bounds.min_samples):
        return _too_few(name, share, bounds)
    low, high = wilson(share)
    limits = _limits(bounds, direction, current, base)
    checks = [_check_limit(share.rate, (low, high), limit) for limit in limits]
    return GateResult(
        name,
        bounds.klass,
        _worst([verdict for verdict, _ in checks]),
        share.rate,
        (low, high),
        share.num_samples,
        current,
        base,
        tuple(reason for _, reason in checks) or ("no bound is set",),
    )


def judge_value(
    name: str, value: float | None, bounds: Bounds, *, num_samples: int, base: float | None = None
) -> GateResult:
    """The verdict on a plain number where low is good, such as the drift of the utility loss in nats a token."""
    if value is None or not math.isfinite(value):
        return _too_few(name, None, bounds)
    if num_samples < max(1, bounds.min_samples):
        return _too_few(name, Share(0, num_samples), bounds)
    over = bounds.max is not None and value > bounds.max
    reason = "no bound is set" if bounds.max is None else f"{value:.3f} {'>' if over else '<='} max {bounds.max:g}"
    verdict: Verdict = "fail" if over else "pass"
    return GateResult(name, bounds.klass, verdict, value, None, num_samples, None, base, (reason,))


def decide(results: Sequence[GateResult]) -> Decision:
    """Publish only if every required gate passed; the reasons name each gate that did not, wanted ones too."""
    blocking = [r for r in results if r.klass == "required" and r.verdict != "pass"]
    warnings = [r for r in results if r.klass == "wanted" and r.verdict != "pass"]
    if not any(r.klass == "required" for r in results):
        return Decision(False, ("no required gate was measured; set class = 'required' on at least one",))
    reasons = [f"gate {r.name} {_said(r)}: {'; '.join(r.reasons)}" for r in blocking]
    reasons += [f"wanted gate {r.name} {_said(r)} (not blocking): {'; '.join(r.reasons)}" for r in warnings]
    return Decision(not blocking, tuple(reasons) or ("every gate passed",))


@dataclass(frozen=True)
class _Limit:
    """A bound as an absolute one."""

    value: float | None
    """None = demanded, but nothing to compare with."""
    is_floor: bool
    """The rate must be at least this, else at most."""
    label: str


def _limits(bounds: Bounds, direction: Direction, current: float | None, base: float | None) -> list[_Limit]:
    limits: list[_Limit] = []
    is_good_high = direction == "high"
    sign = -1 if is_good_high else 1
    for bound, is_floor, label in ((bounds.max, False, "max"), (bounds.min, True, "min")):
        if bound is not None:
            limits.append(_Limit(bound, is_floor, f"{label} {bound:g}"))
    for allowed, reference, label in (
        (bounds.max_regression, current, "current version"),
        (bounds.max_drift, base, "v0"),
    ):
        if allowed is not None:
            known = reference is not None and math.isfinite(reference)
            limit = reference + sign * allowed if known and reference is not None else None
            shown = f"{reference:.3f}" if known else "not measured"
            limits.append(_Limit(limit, is_good_high, f"{label} {shown} {'+' if sign > 0 else '-'} {allowed:g}"))
    return limits


def _check_limit(rate: float, interval: tuple[float, float], limit: _Limit) -> tuple[Verdict, str]:
    if limit.value is None:
        return "inconclusive", f"nothing to compare with ({limit.label})"
    tolerance = 1e-9
    if limit.is_floor:
        meets, reaches = rate >= limit.value - tolerance, interval[1] >= limit.value
        sign = ">=" if meets else "<"
    else:
        meets, reaches = rate <= limit.value + tolerance, interval[0] <= limit.value
        sign = "<=" if meets else ">"
    verdict: Verdict = "pass" if meets else ("inconclusive" if reaches else "fail")
    return verdict, f"{rate:.3f} {sign} {limit.label}"


def _too_few(name: str, share: Share | None, bounds: Bounds) -> GateResult:
    num = share.num_samples if share else 0
    reason = f"{num} samples, at least {bounds.min_samples} are needed" if num else "not measured"
    return GateResult(name, bounds.klass, "inconclusive", None, None, num, None, None, (reason,))


def _worst(verdicts: Sequence[Verdict]) -> Verdict:
    order: tuple[Verdict, ...] = ("fail", "inconclusive", "pass")
    return next((v for v in order if v in verdicts), "pass")


def _said(result: GateResult) -> str:
    return "failed" if result.verdict == "fail" else "is inconclusive"
