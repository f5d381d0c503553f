"""Judges on labelled answers: how each does beside the labels, and how far they agree with each other. No text is told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from daemon import judging
from daemon.config import Config
from daemon.labelled import Labelled
from patches.judge import Judge, RuleJudge, Verdict
from patches.judge_models import ModelJudge
from patches.model import pick_device
from policies.calibration import agreement_of, best_threshold, brier, calibration_error, confusion


def open_judge(config: Config, home: Path) -> Judge:
    """The judge of some settings, without what a round learns from v0.

    Raises:
        JudgeError: it cannot be used.
    """
    settings = config.judge
    rule = RuleJudge(settings.refusals, settings.content_recall, judging.rule_identity(settings))
    if settings.kind == "rule":
        return rule
    found = judging.model_digest(settings, home)
    device = pick_device(config.model.device)
    return ModelJudge(
        rule, judging.open_scorer(settings, home, model_sha256=found, dtype=config.model.dtype, device=device)
    )


def trial(judges: Sequence[Judge], rows: Sequence[Labelled]) -> dict[str, Any]:
    """What `alignd judge` tells, as plain values.

    Raises:
        JudgeError: a judge cannot be asked.
    """
    verdicts = {judge.identity: judge.verdicts([row.answer for row in rows], of_harm=True) for judge in judges}
    harm = {name: [_is_harm(verdict) for verdict in found] for name, found in verdicts.items()}
    return {
        "num_answers": len(rows),
        "num_harmful": sum(row.is_harmful for row in rows),
        "num_refusals": sum(bool(row.is_refusal) for row in rows),
        "judges": [_about(judge, rows, verdicts[judge.identity], harm[judge.identity]) for judge in judges],
        "agreement": [
            {"first": first, "second": second, **agreement_of(harm[first], harm[second]).to_dict()}
            for first, second in combinations(harm, 2)
        ],
    }


def _is_harm(verdict: Verdict) -> bool:
    """The rules know harm only by a reference: without one any fluent answer that is no refusal counts."""
    return verdict.label == "answer" if verdict.is_harmful is None else verdict.is_harmful


def _about(judge: Judge, rows: Sequence[Labelled], verdicts: Sequence[Verdict], harm: Sequence[bool]) -> dict[str, Any]:
    labels = [row.is_harmful for row in rows]
    told = [(v.label == "refusal", row.is_refusal) for v, row in zip(verdicts, rows, strict=True)]
    refusals = [(said, label) for said, label in told if label is not None]
    return {
        "identity": judge.identity,
        "num_by_label": {
            label: sum(v.label == label for v in verdicts) for label in ("answer", "refusal", "degenerate")
        },
        "harm": confusion(harm, labels).to_dict(),
        "refusal": confusion(*map(list, zip(*refusals, strict=True))).to_dict() if refusals else None,
        "scores": _scores(judge, rows, verdicts),
    }


def _scores(judge: Judge, rows: Sequence[Labelled], verdicts: Sequence[Verdict]) -> Mapping[str, Any] | None:
    """How good probabilities of harm are, and the threshold that fits the labels best; None of a judge without any.

    Degenerate text is left out: the model is never asked about it.
    """
    if not isinstance(judge, ModelJudge):
        return None
    fluent = [row for row, verdict in zip(rows, verdicts, strict=True) if verdict.label != "degenerate"]
    found = zip(judge.opinions([row.answer for row in fluent]), fluent, strict=True)
    pairs = [(opinion.score, row.is_harmful) for opinion, row in found if opinion.score is not None]
    if not pairs:
        return None
    scores, labels = [score for score, _ in pairs], [label for _, label in pairs]
    best = best_threshold(scores, labels)
    return {
        "num": len(pairs),
        "brier": brier(scores, labels),
        "calibration_error": calibration_error(scores, labels),
        "best_threshold": None if best is None else best[0],
        "best": None if best is None else best[1].to_dict(),
    }
