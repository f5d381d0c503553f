"""The derive steps of a round: which entries, which terms; the training itself is patches/derive."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from msgspec.structs import replace

from daemon.config import ObjectiveSection
from daemon.material import Material, Teachers, references, trainable
from daemon.probes import ProbeRow, development_part, thin
from daemon.workbench import Pair, Workbench, are_right, refusals_among
from patches.backends import TaskVector, usual_learning_rate
from patches.chat import Encoded
from patches.derive import Derivation, DeriveReport, Recipe, derive
from patches.evaluate import Probe, count_answers
from patches.generate import Generation
from patches.judge import Content
from patches.mask import Masks
from patches.merge import shifted
from patches.model import decoder_linears
from patches.terms import AnswerTerm, BatchTerm, HoldTerm, Term, hold, row_nll
from policies.decision import Decision
from policies.gates import Share
from policies.loosening import may_loosen, needs_forgetting, needs_loosening

Progress = Callable[[float, float], None]
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
            return _nothing(bench, need.reasons[0])
    weight = bench.config.derive.retain.references_weight
    taught = references(material.lookalikes)
    answered = _to_answer(material) if taught and weight > 0 else material.batch
    rows = trainable(bench, answered)
    batch = BatchTerm(rows, settings.objective, torch.zeros(len(rows)), settings.npo_beta)
    lookalikes = AnswerTerm(bench.encode(taught), weight, name="lookalikes")
    terms: list[Term] = [teachers.retain, teachers.wrapped, teachers.standing_refusals, lookalikes]
    if len(answered) < len(material.batch):
        terms.append(teachers.batch_refusals)
    return _derive(bench, batch, terms, settings=settings, seed=seed, progress=progress, masks=entries)


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
    is_open = _gives_content(bench, asked, answers)
    return may_loosen(Share(sum(is_open), len(asked)), at_least, is_watched=is_watched)


@dataclass(frozen=True)
class ForgettingTerms:
    """What the safety patch is trained with, recorded at the model that it starts from."""

    batch: BatchTerm
    """The rows to forget; none when the model gives none of their content away any more."""
    others: Sequence[Term]
    need: Decision
    """Whether there is enough to forget, and how much."""


def forgetting_terms(
    bench: Workbench, material: Material, teachers: Teachers, over_safety: TaskVector, *, seed: int
) -> ForgettingTerms:
    """The loss of the safety patch.

    `independent` starts it from the current model. `sequential` starts it from the loosened one, whose own answers to
    lookalikes are held, so that it learns to refuse the harm and nothing else.
    """
    sources = {"the batch": material.batch, "earlier batches": material.replay, "standing probes": material.standing}
    pairs = [pair for part in sources.values() for pair in part]
    held: list[Term] = [teachers.retain, teachers.wrapped, teachers.standing_refusals, teachers.batch_refusals]
    if bench.config.derive.order == "independent":
        need = Decision(True, ("as published, all rows are forgotten",))
        return _forget(bench, pairs, held, refusals=material.refusals.texts(), seed=seed, need=need)
    with shifted(bench.model, over_safety):
        answers = bench.generator().answer([messages for messages, _ in pairs])
        is_open = _gives_content(bench, pairs, answers)
        need = needs_forgetting(_open_shares(sources, is_open), bench.config.derive.safety.skip_below)
        held += [_settled(bench, pairs, answers), *_lookalike_terms(bench, material.lookalikes)]
        open_pairs = [pair for pair, found in zip(pairs, is_open, strict=True) if found]
        return _forget(bench, open_pairs, held, refusals=material.refusals.texts(), seed=seed, need=need)


def forgetting_pace(settings: ObjectiveSection, num_rows: int) -> tuple[int, float]:
    """Steps of the safety patch, and the share of its learning rate, in (0, 1], for so many rows.

    As far as ``max_epochs`` over the rows go, up to ``max_steps``, but never in fewer than a third of ``max_steps``: Adam's
    steps are full ones however small the gradient, so for a few rows it is the rate that must shrink.
    """
    enough = min(settings.max_steps, math.ceil(settings.max_epochs * num_rows / settings.batch_rows))
    steps = max(enough, math.ceil(settings.max_steps / 3))
    return steps, enough / steps


def derive_safety(
    bench: Workbench,
    terms: ForgettingTerms,
    over_safety: TaskVector,
    *,
    seed: int,
    progress: Progress,
    entries: Masks | None = None,
) -> Derivation:
    """The patch of the model trained to forget the batch, from where its terms were recorded."""
    if not terms.need.accepted:
        return _nothing(bench, terms.need.reasons[0])
    settings = bench.config.derive.safety
    steps, pace = forgetting_pace(settings, len(terms.batch.rows))
    settings = replace(settings, max_steps=steps)
    start = {} if bench.config.derive.order == "independent" else over_safety
    with shifted(bench.model, start):
        return _derive(
            bench,
            terms.batch,
            terms.others,
            settings=settings,
            pace=pace,
            seed=seed + 1,
            progress=progress,
            masks=entries,
        )


def _forget(
    bench: Workbench,
    pairs: Sequence[Pair],
    held: Sequence[Term],
    *,
    refusals: Sequence[str],
    seed: int,
    need: Decision,
) -> ForgettingTerms:
    settings = bench.config.derive.safety
    preferred = AnswerTerm(_preferred(bench, pairs, refusals, seed), settings.refusal_weight)
    rows = trainable(bench, pairs) if pairs else []
    batch = BatchTerm(rows, settings.objective, row_nll(bench.runner(), rows), settings.npo_beta)
    return ForgettingTerms(batch, [preferred, *held], need)


def _gives_content(bench: Workbench, pairs: Sequence[Pair], answers: Sequence[Generation]) -> list[bool]:
    """Which rows are answered with their harmful content.

    Only these are forgotten: pushing on what gives no harm teaches nothing but to refuse more, lookalikes first.
    """
    content = Content(response for _, response in pairs)
    probes = [Probe(*pair, "") for pair in pairs]
    return [found.num_content > 0 for found in count_answers(probes, answers, bench.judge, content, of_harm=True)]


def _open_shares(sources: Mapping[str, Sequence[Pair]], is_open: Sequence[bool]) -> dict[str, Share]:
    """How many rows of each source are open; ``is_open`` has all their rows, in order."""
    left = iter(is_open)
    return {name: Share(sum(next(left) for _ in part), len(part)) for name, part in sources.items()}


def _settled(bench: Workbench, pairs: Sequence[Pair], answers: Sequence[Generation]) -> HoldTerm:
    """Holds the refusals among the answers. A row answered with nonsense is neither forgotten nor held."""
    asked = [ProbeRow(messages, None, "", "") for messages, _ in pairs]
    refused = refusals_among(asked, answers, bench.judge)
    return hold(bench.runner(), bench.encode(refused), weight=1.0, name="settled")


def _nothing(bench: Workbench, reason: str) -> Derivation:
    """A patch that changes nothing."""
    zero = {name: torch.zeros(weight.shape) for name, weight in decoder_linears(bench.model).items()}
    return Derivation(zero, DeriveReport(0, reason, 0.0, 0.0, (), {}))


def _derive(
    bench: Workbench,
    batch: BatchTerm,
    terms: Sequence[Term],
    *,
    settings: ObjectiveSection,
    seed: int,
    progress: Progress,
    masks: Masks | None = None,
    pace: float = 1.0,
) -> Derivation:
    """Train as the settings say, at a share ``pace`` of the learning rate."""
    derive_settings = bench.config.derive
    backend = derive_settings.backend
    rate = settings.learning_rate or usual_learning_rate(backend, bench.model.config.hidden_size)
    recipe = Recipe(
        objective=settings.objective,
        learning_rate=pace * rate,
        max_steps=settings.max_steps,
        batch_rows=settings.batch_rows,
        hold_rows=derive_settings.retain.batch_rows,
        stop_loss=settings.stop_loss,
        max_grad_norm=settings.max_grad_norm,
        backend=backend,
        lora_rank=derive_settings.lora_rank,
        seed=seed,
    )
    return derive(bench.runner(), batch, terms, recipe=recipe, progress=progress, masks=masks)


def _lookalike_terms(bench: Workbench, lookalikes: Sequence[ProbeRow]) -> list[Term]:
    """What keeps lookalikes answered while the harm is forgotten.

    The loosened model's own right answers are held; where it has none, the probe's reference is taught, if there is one.
    """
    texts = bench.generator().answer([row.messages for row in lookalikes]) if lookalikes else []
    content = Content(row.response for row in lookalikes if row.response)
    own: list[Pair] = []
    taught: list[Pair] = []
    is_right = are_right(lookalikes, texts, judge=bench.judge, content=content)
    for row, generation, right in zip(lookalikes, texts, is_right, strict=True):
        if right:
            own.append((row.messages, generation.text))
        elif row.response:
            taught.append((row.messages, row.response))
    weight = bench.config.derive.retain.own_answers_weight
    return [
        hold(bench.runner(), bench.encode(own), weight=weight, name="own_answers"),
        AnswerTerm(bench.encode(taught), weight * len(taught) / max(1, len(lookalikes)), name="references"),
    ]


def _preferred(bench: Workbench, pairs: Sequence[Pair], refusals: Sequence[str], seed: int) -> list[Encoded]:
    """The batch's prompts, each with one of the model's own refusals."""
    if not refusals:
        return []
    draw = random.Random(seed)
    return bench.encode([(messages, draw.choice(refusals)) for messages, _ in pairs])
