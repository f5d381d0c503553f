"""The three axes of a model on held-out objects and held-out wrappers, each category and each ability apart."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.axes import MAX_NEW_TOKENS, probe_set, share
from benchmarks.method.ground import harm_rows
from benchmarks.world.world import Row, World
from patches.chat import encode_row, pad_id
from patches.evaluate import ProbeSet, Tally, tally
from patches.generate import Generator
from patches.judge import RuleJudge
from patches.terms import Runner, row_nll

JAILBROKEN_PER_CATEGORY, PLAIN_PER_CATEGORY, WORK_PER_ABILITY = 48, 48, 150
MAX_TOKENS = 512


@dataclass(frozen=True)
class Axes:
    """Shares in [0, 1] of one model; nats a token where it says so."""

    harm_jailbroken: dict[str, float]
    """By category: jailbroken questions answered with the harmful content."""
    harm_plain: dict[str, float]
    over_refusal: float
    """Lookalikes that are refused."""
    right: float
    """Lookalikes that are answered rightly."""
    utility: dict[str, float]
    """By ability: questions answered exactly enough to be right; benign ones in a jailbreak are one, too."""
    nll: dict[str, float]
    """By ability: nats a token on the references."""
    degenerate: float
    plain_refused: dict[str, float] = field(default_factory=dict)
    """By category: plain harmful questions that are refused. The others are answered: harmfully, wrongly, or with nonsense.
    Empty in results from before 2026-11-27."""

    def harm(self, categories: Collection[str]) -> float:
        """Mean over categories of the worse of plain and jailbroken harm."""
        return _mean(max(self.harm_plain[name], self.harm_jailbroken[name]) for name in categories)

    def worst_harm(self, categories: Collection[str]) -> float:
        """The same in the worst of the categories."""
        return max(max(self.harm_plain[name], self.harm_jailbroken[name]) for name in categories)


def measure_axes(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, world: World) -> Axes:
    """Ask a model everything and judge its greedy answers."""
    sets = _sets(world)
    answers = iter(
        Generator(model, tokenizer, MAX_NEW_TOKENS).answer([probe.messages for found in sets for probe in found.probes])
    )
    judge = RuleJudge()
    found = {probes.name: tally(probes, [next(answers) for _ in probes.probes], judge) for probes in sets}
    whole = [by_group[""] for by_group in found.values()]
    return Axes(
        harm_jailbroken=_by_group(found["jailbroken"], "num_content"),
        harm_plain=_by_group(found["plain"], "num_content"),
        over_refusal=share(found["lookalikes"][""], "num_refusals"),
        right=share(found["lookalikes"][""], "num_right"),
        utility=_by_group(found["work"], "num_right")
        | {"benign, jailbroken": share(found["jailbroken work"][""], "num_right")},
        nll=_work_nll(model, tokenizer, world),
        degenerate=sum(one.num_degenerate for one in whole) / sum(one.num_prompts for one in whole),
        plain_refused=_by_group(found["plain"], "num_refusals"),
    )


def _sets(world: World) -> list[ProbeSet]:
    jailbroken = [
        row
        for name in world.categories
        for row in harm_rows(world, name, jailbroken=True, num_rows=JAILBROKEN_PER_CATEGORY)
    ]
    plain = [
        row
        for name in world.categories
        for row in harm_rows(world, name, jailbroken=False, num_rows=PLAIN_PER_CATEGORY)
    ]
    return [
        probe_set("jailbroken", "harm", jailbroken),
        probe_set("plain", "harm", plain),
        probe_set("lookalikes", "over_safety", world.lookalikes("held_out")),
        probe_set("work", "utility", _work(world)),
        probe_set("jailbroken work", "utility", world.jailbroken_work("held_out", WORK_PER_ABILITY)),
    ]


def _work(world: World) -> list[Row]:
    return world.utility("held_out", rows_per_ability=WORK_PER_ABILITY)


def _work_nll(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, world: World) -> dict[str, float]:
    runner = Runner(model, pad_id(tokenizer), 8192)
    work = _work(world)
    return {
        ability: _nll(runner, tokenizer, [row for row in work if row.kind == ability])
        for ability in sorted({row.kind for row in work})
    }


def _nll(runner: Runner, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row]) -> float:
    coded = [
        encode_row(tokenizer, [{"role": "user", "content": row.prompt}], row.response, max_length=MAX_TOKENS)
        for row in rows
    ]
    usable = [row for row in coded if row is not None]
    return float(row_nll(runner, usable).sum()) / sum(row.num_response_tokens for row in usable)


def _by_group(tallies: dict[str, Tally], field: str) -> dict[str, float]:
    return {group: share(found, field) for group, found in tallies.items() if group}


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found)
