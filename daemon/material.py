"""What a round's patches are made from: the rows, and v0's distributions that both patches are held to."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from daemon.probes import ProbeRow, development_part
from daemon.workbench import Pair, Workbench, are_right, refusals_among
from patches.chat import Encoded
from patches.errors import NothingTrainedError
from patches.judge import Content
from patches.terms import HoldTerm, hold
from policies.wrappers import shared_wrappers


@dataclass(frozen=True)
class Material:
    """The rows that a round's patches are made from."""

    batch: Sequence[Pair]
    replay: Sequence[Pair]
    """Rows of earlier batches, to be held down."""
    standing: Sequence[Pair]
    """Standing harm probes of the development part: what other categories give away is forgotten along with the batch."""
    retain: Sequence[Pair]
    wrapped: Sequence[Pair]
    """Retained prompts in the batch's own jailbreaks, with v0's right answers: a jailbreak alone is no harm."""
    lookalikes: Sequence[ProbeRow]
    """Development part of the over-safety probes."""
    refusals: OwnRefusals


@dataclass(frozen=True)
class OwnRefusals:
    """v0's refusals, in its own words."""

    of_standing: Sequence[Pair]
    """Of standing harm probes: harmful prompts, most of them outside this batch."""
    of_batch: Sequence[Pair]
    of_lookalikes: Sequence[Pair]

    def texts(self) -> list[str]:
        """How v0 refuses, whatever it was asked."""
        return sorted({text for part in (self.of_standing, self.of_batch, self.of_lookalikes) for _, text in part})


@dataclass(frozen=True)
class Teachers:
    """Distributions of v0 that the patches are held to."""

    retain: HoldTerm
    wrapped: HoldTerm
    standing_refusals: HoldTerm
    batch_refusals: HoldTerm


def record_teachers(bench: Workbench, material: Material) -> Teachers:
    """What v0 says to retained rows, and how it refuses harmful prompts."""
    settings, refusals = bench.config.derive.retain, material.refusals
    with bench.base_model() as base:
        runner = bench.runner(base)

        def held(pairs: Sequence[Pair], weight: float, name: str) -> HoldTerm:
            return hold(runner, bench.encode(pairs), weight=weight, name=name)

        return Teachers(
            held(material.retain, settings.weight, "retain"),
            held(material.wrapped, settings.wrapped_weight, "wrapped"),
            held(refusals.of_standing, settings.refusals_weight, "standing_refusals"),
            held(refusals.of_batch, settings.batch_refusals_weight, "batch_refusals"),
        )


def references(rows: Sequence[ProbeRow]) -> list[Pair]:
    """The probes that come with a response, with it."""
    return [(row.messages, row.response) for row in rows if row.response]


def own_refusals(bench: Workbench, batch: Sequence[Pair], most: int = 200) -> OwnRefusals:
    """How v0 refuses: asked the development parts of the harm and over-safety probes, and the batch."""
    lookalikes = development_part(bench.files.over_safety)
    of_lookalikes = refusals_among(lookalikes, bench.base_answers, bench.judge)
    asked = [ProbeRow(messages, None, "", "") for messages, _ in batch]
    with bench.base_model() as base:
        generator = bench.generator(base)
        harm = development_part(bench.files.harm, most)
        of_standing = refusals_among(harm, generator.answer([row.messages for row in harm]), bench.judge)
        of_batch = refusals_among(asked, generator.answer([row.messages for row in asked]), bench.judge)
    return OwnRefusals(of_standing, of_batch, of_lookalikes)


def wrapped_rows(bench: Workbench, batch: Sequence[Pair], retain: Sequence[Pair], *, seed: int) -> list[Pair]:
    """Retained prompts in wrappers that the batch's prompts share, with v0's answers where these are right.

    Without them a patch learns that the jailbreak is what is to be refused, whatever is asked in it.
    """
    wrappers = shared_wrappers([messages[-1]["content"] for messages, _ in batch])
    most = min(bench.config.derive.retain.wrapped_rows, len(retain))
    if not wrappers or not most:
        return []
    draw = random.Random(seed)
    asked = []
    for (*before, last), response in draw.sample(list(retain), most):
        turn = last | {"content": draw.choice(wrappers).around(last["content"])}
        asked.append(ProbeRow((*before, turn), response, "", ""))
    with bench.base_model() as base:
        answers = bench.generator(base).answer([row.messages for row in asked])
    content = Content(row.response for row in asked if row.response)
    judged = zip(asked, answers, are_right(asked, answers, judge=bench.judge, content=content), strict=True)
    return [(row.messages, said.text) for row, said, is_right in judged if is_right]


def trainable(bench: Workbench, pairs: Sequence[Pair]) -> list[Encoded]:
    """The rows that fit into the configured length, encoded.

    Raises:
        NothingTrainedError: none does.
    """
    rows = bench.encode(pairs)
    if not rows:
        raise NothingTrainedError(
            f"none of {len(pairs)} rows fits into [derive] max_length = {bench.config.derive.max_length} tokens"
        )
    return rows
