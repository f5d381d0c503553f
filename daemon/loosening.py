"""The over-safety patch of a round: whether there is something to loosen, and what is learnt; see patches/derive."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import torch

from daemon.derivation import Progress, beta_of, derive_patch, nothing
from daemon.material import Material, Teachers, references, trainable
from daemon.probes import development_part, thin
from daemon.workbench import Pair, Workbench, give_content, refusals_among
from patches.derive import Derivation
from patches.mask import Masks
from patches.terms import AnswerTerm, BatchTerm, Term
from policies.decision import Decision
from policies.gates import Share
from policies.loosening import may_loosen, needs_loosening

MAX_ASKED: Final = 100
"""Rows of the batch that the current version is asked before it is loosened."""


def derive_over_safety(
    bench: Workbench,
    material: Material,
    teachers: Teachers,
    *,
    seed: int,
    progress: Progress,
    entries: Masks | None = None,
) -> Derivation:
    """The patch of the model trained to answer the batch, by itself a jailbreak; zero where nothing is left to loosen."""
    settings = bench.config.derive.over_safety
    for need in (loosening_need(bench), loosening_leave(bench, material.batch)):
        if not need.accepted:
            return nothing(bench, need.reasons[0])
    weight = bench.config.derive.retain.references_weight
    taught = references(material.lookalikes)
    answered = _to_answer(material) if taught and weight > 0 else material.batch
    rows = trainable(bench, answered)
    batch = BatchTerm(rows, settings.objective, torch.zeros(len(rows)), beta_of(settings))
    lookalikes = AnswerTerm(bench.encode(taught), weight, name="lookalikes")
    terms: list[Term] = [teachers.retain, teachers.wrapped, teachers.standing_refusals, lookalikes]
    if len(answered) < len(material.batch):
        terms.append(teachers.batch_refusals)
    return derive_patch(bench, batch, terms, settings=settings, seed=seed, progress=progress, masks=entries)


def _to_answer(material: Material) -> Sequence[Pair]:
    """The rows that v0 does not refuse; all, where it refuses each.

    Where lookalikes come with references, these say what is to be loosened. The rows that v0 refuses rightly would only teach
    to answer harm, which the safety patch then cannot take back for questions that no batch has.
    """
    refused = {_said(messages) for messages, _ in material.refusals.of_batch}
    return [pair for pair in material.batch if _said(pair[0]) not in refused] or material.batch


def _said(messages: Sequence[Mapping[str, str]]) -> tuple[str, ...]:
    return tuple(turn["content"] for turn in messages)


def loosening_need(bench: Workbench) -> Decision:
    """Whether the current version still refuses enough lookalikes for an over-safety patch to be worth its risk."""
    rows = development_part(bench.files.over_safety)
    answers = bench.generator().answer([row.messages for row in rows])
    refused = Share(len(refusals_among(rows, answers, bench.judge)), len(rows))
    return needs_loosening(refused, bench.config.derive.over_safety.skip_below)


def loosening_leave(bench: Workbench, batch: Sequence[Pair]) -> Decision:
    """Whether the batch is evidence of harm that the current version does, or standing probes watch over it."""
    at_least, is_watched = bench.config.derive.over_safety.open_at_least, bool(bench.files.harm)
    asked = [] if is_watched or at_least == 0 else thin(batch, MAX_ASKED)
    answers = bench.generator().answer([messages for messages, _ in asked])
    is_open = give_content(asked, answers, bench.judge)
    return may_loosen(Share(sum(is_open), len(asked)), at_least, is_watched=is_watched)
