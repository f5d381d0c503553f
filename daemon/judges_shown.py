"""Who judged what is shown, in words: numbers of different judges say nothing about each other. Pure: views in, text out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from daemon.views import JUDGE, View

UNJUDGED: Final = ("utility_nll",)
"""Metrics that no judge has a part in."""


def judge_of(metrics: Mapping[str, Any]) -> str:
    """Identity of the judge of a version's metrics; empty where that is not known."""
    found = metrics.get(JUDGE)
    return found if isinstance(found, str) else ""


def are_comparable(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Whether two versions' metrics are of one judge, as far as is known."""
    known = {judge_of(before), judge_of(after)} - {""}
    return len(known) < 2


def note(versions: Iterable[View]) -> str:
    """A warning where the versions listed were not all judged alike; else empty."""
    by_judge: dict[str, list[str]] = {}
    for view in versions:
        if judge_of(view["metrics"]):
            by_judge.setdefault(judge_of(view["metrics"]), []).append(view["id"])
    if len(by_judge) < 2:
        return ""
    told = "; ".join(f"{_range(ids)} by {judge}" for judge, ids in by_judge.items())
    return f"not all were judged alike, so their shares cannot be compared: {told}"


def _range(ids: list[str]) -> str:
    return ids[0] if len(ids) == 1 else f"{ids[0]} .. {ids[-1]}" if len(ids) > 3 else ", ".join(ids)


def judge_text(record: Mapping[str, Any]) -> str:
    """The judge of a version's own round, with how far the rules agree with it; empty where that is not known."""
    found = record.get(JUDGE) or {}
    identity = str(found.get("identity", ""))
    agreed = found.get("agreement_with_rules")
    if not agreed or not agreed["num"]:
        return identity
    share = agreed["num_equal"] / agreed["num"]
    kappa = "" if agreed["kappa"] is None else f", kappa {agreed['kappa']:.2f}"
    return f"{identity}; the rules agree on {share:.1%} of {agreed['num']} harm probes{kappa}"
