"""The safety patch of a round: what is forgotten and what is held meanwhile; the training itself is patches/derive."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from msgspec.structs import replace

from daemon.config_method import ObjectiveSection
from daemon.derivation import Progress, beta_of, derive_patch, nothing
from daemon.material import Material, Teachers, trainable
from daemon.probes import ProbeRow
from daemon.workbench import Pair, Workbench, are_right, give_content, refusals_among
from patches.backends import TaskVector
from patches.chat import Encoded, broken_off
from patches.derive import Derivation
from patches.generate import Generation
from patches.judge import Content
from patches.mask import Masks
from patches.merge import shifted
from patches.terms import AnswerTerm, BatchTerm, HoldTerm, Term, hold, row_nll
from policies.decision import Decision
from policies.gates import Share
from policies.loosening import needs_forgetting

RECOVER_FROM: Final = 0.4
"""Share of a harmful answer, rounded down to tokens, that is said before it breaks off: an opening alone tells no harm."""


@dataclass(frozen=True)
class ForgettingTerms:
    """What the safety patch is trained with, recorded at the model that it starts from."""

    batch: BatchTerm | None
    """The rows to forget; None where the model gives so few of them away that nothing is trained."""
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
    refusals = material.refusals.texts()
    held: list[Term] = [teachers.retain, teachers.wrapped, teachers.standing_refusals, teachers.batch_refusals]
    if bench.config.derive.order == "independent":
        need = Decision(True, ("as published, all rows are forgotten",))
        held.append(_recoveries(bench, pairs, refusals, seed))
        return _forget(bench, pairs, held, refusals=refusals, seed=seed, need=need)
    with shifted(bench.model, over_safety):
        answers = bench.generator().answer([messages for messages, _ in pairs])
        is_open = give_content(pairs, answers, bench.judge)
        need = needs_forgetting(_open_shares(sources, is_open), bench.config.derive.safety.skip_below)
        if not need.accepted:
            return ForgettingTerms(None, (), need)
        held += [_recoveries(bench, pairs, refusals, seed), _settled(bench, pairs, answers)]
        held += _lookalike_terms(bench, material.lookalikes)
        open_pairs = [pair for pair, found in zip(pairs, is_open, strict=True) if found]
        return _forget(bench, open_pairs, held, refusals=refusals, seed=seed, need=need)


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
    if terms.batch is None:
        return nothing(bench, terms.need.reasons[0])
    settings = bench.config.derive.safety
    steps, pace = forgetting_pace(settings, len(terms.batch.rows))
    settings = replace(settings, max_steps=steps)
    start = {} if bench.config.derive.order == "independent" else over_safety
    with shifted(bench.model, start):
        return derive_patch(
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
    batch = BatchTerm(rows, settings.objective, row_nll(bench.runner(), rows), beta_of(settings))
    return ForgettingTerms(batch, [preferred, *held], need)


def _open_shares(sources: Mapping[str, Sequence[Pair]], is_open: Sequence[bool]) -> dict[str, Share]:
    """How many rows of each source are open; ``is_open`` has all their rows, in order."""
    left = iter(is_open)
    return {name: Share(sum(next(left) for _ in part), len(part)) for name, part in sources.items()}


def _settled(bench: Workbench, pairs: Sequence[Pair], answers: Sequence[Generation]) -> HoldTerm:
    """Holds the refusals among the answers. A row answered with nonsense is neither forgotten nor held."""
    asked = [ProbeRow(messages, None, "", "") for messages, _ in pairs]
    refused = refusals_among(asked, answers, bench.judge)
    return hold(bench.runner(), bench.encode(refused), weight=1.0, name="settled")


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


def _recoveries(bench: Workbench, pairs: Sequence[Pair], refusals: Sequence[str], seed: int) -> AnswerTerm:
    """Harmful answers that break off with one of the model's own refusals, somewhere behind their opening.

    What is asked about in a question that no batch has is told from harmless things by little more than its name. What the
    model is about to answer tells more, so it also learns to stop there (the recovery examples of arXiv 2406.05946). Prompts
    that are refused already count too: it is questions like them that come to be answered.
    """
    weight = bench.config.derive.safety.recovery_weight
    draw = random.Random(seed)
    rows: list[Encoded] = []
    for messages, response in pairs if refusals and weight > 0 else ():
        coded = bench.encode([(messages, response), (messages, draw.choice(refusals))])
        if len(coded) < 2:
            continue
        harmful, refusal = coded
        row = broken_off(harmful, refusal, kept_tokens(harmful.num_response_tokens, draw), max_length=bench.max_length)
        rows += [] if row is None else [row]
    return AnswerTerm(rows, weight, name="recoveries")


def kept_tokens(num_tokens: int, draw: random.Random) -> int:
    """After how many tokens an answer of so many, its end token among them, breaks off: behind its opening, before its end.

    One of two words or less is said whole.
    """
    first = max(1, int(RECOVER_FROM * num_tokens))
    return draw.randint(first, max(first, num_tokens - 2))
