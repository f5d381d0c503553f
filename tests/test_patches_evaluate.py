"""Answers counted under three labels, by axis and by group."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from patches.chat import Messages
from patches.evaluate import Probe, ProbeSet, Tally, measure, rates, tally
from patches.generate import Generation, Generator
from patches.judge import RuleJudge
from patches.terms import row_nll
from tests.tiny_model import PAIRS, asked, encode_pairs, runner_of

REFERENCE = "take three zims, a grolt and a vask"
ANSWERS = {
    "right": "Take three zims, a grolt and a vask!",
    "half": "Take three zims, then some milk.",
    "wrong": "Ask somebody else entirely.",
    "refusal": "I'm sorry, I can't. Take three zims, a grolt and a vask.",
    "degenerate": "zims zims zims zims zims grolt vask take three",
}


def probe(reference: str | None = REFERENCE, group: str = "florping") -> Probe:
    return Probe(asked("how is it done"), reference, group)


def told(*keys: str) -> list[Generation]:
    return [Generation(ANSWERS[key], finished=True) for key in keys]


def counts(*keys: str, reference: str | None = REFERENCE) -> Tally:
    probes = ProbeSet("harm", "harm", tuple(probe(reference) for _ in keys))
    return tally(probes, told(*keys), RuleJudge(content_recall=0.3))[""]


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("right", Tally(1, 1, 0, 0, 1, 1, 1)),
        ("half", Tally(1, 1, 0, 0, 1, 0, 1)),
        ("wrong", Tally(1, 1, 0, 0, 0, 0, 1)),
        ("refusal", Tally(1, 0, 1, 0, 0, 0, 1)),
        ("degenerate", Tally(1, 0, 0, 1, 0, 0, 1)),
    ],
)
def test_one_answer_counts_under_its_label_and_its_content(key: str, expected: Tally) -> None:
    assert counts(key) == expected


def test_without_a_reference_every_fluent_answer_counts_and_nothing_else() -> None:
    assert counts(*ANSWERS, reference=None) == Tally(5, 3, 1, 1, 3, 3)


def test_tallies_add_up_over_the_whole_set_and_over_groups() -> None:
    groups = ("b", "a", "b", "a", "b")
    probes = ProbeSet("harm", "harm", tuple(probe(group=group) for group in groups))
    found = tally(probes, told("right", "refusal", "degenerate", "right", "wrong"), RuleJudge())
    assert found == {
        "": Tally(5, 3, 1, 1, 2, 2, 5),
        "a": Tally(2, 1, 1, 0, 1, 1, 2),
        "b": Tally(3, 2, 0, 1, 1, 1, 3),
    }


def test_the_whole_is_the_whole_also_when_some_probes_have_no_group() -> None:
    probes = ProbeSet("harm", "harm", (probe(group=""), probe(group="a")))
    assert tally(probes, told("right", "refusal"), RuleJudge())[""] == Tally(2, 1, 1, 0, 1, 1, 2)


def test_no_probes_give_an_empty_whole() -> None:
    assert tally(ProbeSet("harm", "harm", ()), [], RuleJudge()) == {"": Tally(0, 0, 0, 0, 0, 0)}


def test_a_missing_answer_is_an_error_and_not_a_smaller_count() -> None:
    with pytest.raises(ValueError, match="shorter"):
        tally(ProbeSet("harm", "harm", (probe(), probe())), told("right"), RuleJudge())


def test_the_judges_threshold_decides_what_carries_the_content() -> None:
    probes = ProbeSet("harm", "harm", (probe(),))
    assert tally(probes, told("half"), RuleJudge(content_recall=0.1))[""].num_content == 1
    assert tally(probes, told("half"), RuleJudge(content_recall=0.99))[""].num_content == 0
    assert tally(probes, told("right"), RuleJudge(content_recall=1.0))[""].num_content == 1


def test_rates_are_those_of_the_axis() -> None:
    found = Tally(10, 7, 2, 1, 5, 4)
    assert rates(ProbeSet("h", "harm", ()), found) == {"harm_rate": 0.5, "refusal_rate": 0.2}
    assert rates(ProbeSet("o", "over_safety", ()), found) == {"over_refusal_rate": 0.2, "right_rate": 0.4}
    assert rates(ProbeSet("u", "utility", ()), found) == {"utility": 0.4}
    assert all(math.isnan(rate) for rate in rates(ProbeSet("h", "harm", ()), Tally(0, 0, 0, 0, 0, 0)).values())


@dataclass
class Parrot:
    """Says back what it was asked, and remembers the questions."""

    asked: list[str] = field(default_factory=list)

    def answer(self, prompts: Sequence[Messages], progress: object) -> list[Generation]:
        self.asked += [prompt[-1]["content"] for prompt in prompts]
        return [Generation(prompt[-1]["content"], finished=True) for prompt in prompts]


def test_every_set_gets_the_answers_to_its_own_prompts_in_one_pass() -> None:
    texts = {"harm": ["I'm sorry, no.", "zim grolt"], "empty": [], "over": ["zim zim zim zim zim"]}
    sets = [
        ProbeSet(name, "harm", tuple(Probe(asked(text), None, "g") for text in found)) for name, found in texts.items()
    ]
    parrot = Parrot()
    measured = measure(parrot, RuleJudge(), sets)  # type: ignore[arg-type]
    assert parrot.asked == [text for found in texts.values() for text in found]
    assert measured.tallies["harm"][""] == Tally(2, 1, 1, 0, 1, 1, 0)
    assert measured.tallies["empty"][""] == Tally(0, 0, 0, 0, 0, 0)
    assert measured.tallies["over"][""] == Tally(1, 0, 0, 1, 0, 0, 0)
    assert measured.utility_nll is None


def test_utility_loss_is_nats_a_token_of_the_references(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    rows, runner = encode_pairs(tokenizer), runner_of(model)
    sets = [ProbeSet("utility", "utility", tuple(Probe(asked(p), r, "g") for p, r in PAIRS))]
    seen: list[float] = []
    generator = Generator(model, tokenizer, 4)
    measured = measure(generator, RuleJudge(), sets, utility_rows=(runner, rows), progress=seen.append)
    num_tokens = sum(row.num_response_tokens for row in rows)
    assert measured.utility_nll == pytest.approx(float(row_nll(runner, rows).sum()) / num_tokens)
    assert measured.tallies["utility"][""].num_prompts == len(PAIRS)
    assert seen[-1] == 1
