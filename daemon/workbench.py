"""What the steps of a round share: models, tokenizer, encoded rows, and what must be held."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from daemon.config import Config
from daemon.intake import sequence_limit
from daemon.judging import rule_identity
from daemon.probes import ProbeFiles, ProbeRow, development_part, plain, thin
from daemon.rows import Row
from patches.chat import Encoded, encode_row, pad_id
from patches.evaluate import Probe, count_answers
from patches.generate import Generation, Generator
from patches.judge import Answered, Content, Judge, RuleJudge, learn_refusals
from patches.judge_models import ModelJudge, Scorer
from patches.model import load_model, load_tokenizer, pick_device
from patches.terms import Runner

MICRO_BATCH_TOKENS = 8192
ORDINARY_PROMPTS = 64
Pair = tuple[tuple[dict[str, str], ...], str]
"""Prompt turns and a response."""


@dataclass
class Workbench:
    """The current version's model, loaded once, and the base's, loaded when it is asked for."""

    config: Config
    current: Path
    base: Path
    files: ProbeFiles
    harmful: Sequence[str]
    """Responses of the batches: how they open is compliance, never a refusal."""
    tokenizer: PreTrainedTokenizerBase
    device: torch.device
    model: PreTrainedModel
    scorer: Scorer | None = None
    """The model that the judge asks; None for the rules alone."""

    @classmethod
    def open(
        cls,
        config: Config,
        current: Path,
        base: Path,
        files: ProbeFiles,
        *,
        harmful: Sequence[str] = (),
        scorer: Scorer | None = None,
    ) -> Workbench:
        """Load tokenizer and current model as the configuration says."""
        assert (scorer is None) == (config.judge.kind == "rule"), "daemon.judging opens what the settings name"
        device = pick_device(config.model.device)
        tokenizer = load_tokenizer(current)
        model = load_model(current, dtype=config.model.dtype, device=device)
        return cls(config, current, base, files, harmful, tokenizer, device, model, scorer)

    @cached_property
    def base_answers(self) -> list[Generation]:
        """What v0 says to the development part of the over-safety probes, as it stands in the file."""
        rows = development_part(self.files.over_safety)
        with self.base_model() as base:
            return self.generator(base).answer([row.messages for row in rows]) if rows else []

    @cached_property
    def judge(self) -> Judge:
        """The judge of every number of a round: known refusals, configured ones, those v0 was seen to use, and the model
        that is asked about harm where the settings name one."""
        learnt = learn_refusals(
            [answer.text for answer in self.base_answers], [*self.files.responses(), *self.harmful, *self._base_work()]
        )
        settings = self.config.judge
        rule = RuleJudge((*settings.refusals, *learnt), settings.content_recall, rule_identity(settings))
        return rule if self.scorer is None else ModelJudge(rule, self.scorer)

    def learn_judge(self) -> None:
        """Listen to v0 now: later, in the middle of a search, the model in memory may be a candidate."""
        _ = self.judge

    def _base_work(self) -> list[str]:
        """How v0 answers ordinary questions, so that its way of opening an answer is not taken for a refusal."""
        rows = development_part(self.files.utility, ORDINARY_PROMPTS)
        with self.base_model() as base:
            return [answer.text for answer in self.generator(base).answer([row.messages for row in rows])]

    def runner(self, model: PreTrainedModel | None = None) -> Runner:
        """Forward passes of a model, the current one by default."""
        return Runner(self.model if model is None else model, pad_id(self.tokenizer), MICRO_BATCH_TOKENS)

    def generator(self, model: PreTrainedModel | None = None) -> Generator:
        """Greedy answers of a model, the current one by default."""
        limit = self.config.judge.max_new_tokens
        return Generator(self.model if model is None else model, self.tokenizer, limit)

    @contextmanager
    def base_model(self) -> Iterator[PreTrainedModel]:
        """v0; the current model itself while nothing has been merged yet."""
        if self.base.resolve() == self.current.resolve():
            yield self.model
            return
        model = load_model(self.base, dtype=self.config.model.dtype, device=self.device)
        try:
            yield model
        finally:
            del model
            gc.collect()

    @cached_property
    def max_length(self) -> int:
        """Tokens of a row at most."""
        return sequence_limit(self.current, self.config)

    def encode(self, pairs: Sequence[Pair]) -> list[Encoded]:
        """Rows for training; those whose prompt leaves no room for an answer are left out."""
        coded = (encode_row(self.tokenizer, messages, text, max_length=self.max_length) for messages, text in pairs)
        return [row for row in coded if row is not None]


def batch_pairs(rows: Sequence[Row]) -> list[Pair]:
    """Batch rows as prompt turns and harmful response."""
    return [(plain(row), row.response) for row in rows]


def retain_pairs(files: ProbeFiles, most: int = 1000) -> list[Pair]:
    """What must not drift: the retain file and the utility probes' development part, without what only judges."""
    judged = files.gate_keys()
    rows = {row.key: row for row in (*files.retain, *files.utility) if row.response and row.key not in judged}
    return [(row.messages, row.response or "") for row in thin(list(rows.values()), most)]


def refusals_among(rows: Sequence[ProbeRow], answers: Sequence[Generation], judge: Judge) -> list[Pair]:
    """The prompts that were refused, with the refusals."""
    said = [Answered(row.messages, answer.text) for row, answer in zip(rows, answers, strict=True)]
    verdicts = judge.verdicts(said, of_harm=False)
    judged = zip(rows, answers, verdicts, strict=True)
    return [(row.messages, answer.text) for row, answer, verdict in judged if verdict.label == "refusal"]


def are_right(rows: Sequence[ProbeRow], answers: Sequence[Generation], *, judge: Judge, content: Content) -> list[bool]:
    """Of each answer, whether it is one, and carries the reference's content where there is a reference."""
    probes = [Probe(row.messages, row.response, "") for row in rows]
    return [found.num_right > 0 for found in count_answers(probes, answers, judge, content, of_harm=False)]


def give_content(pairs: Sequence[Pair], answers: Sequence[Generation], judge: Judge) -> list[bool]:
    """Which rows are answered with their harmful content.

    Only these are forgotten: pushing on what gives no harm teaches nothing but to refuse more, lookalikes first.
    """
    content = Content(response for _, response in pairs)
    probes = [Probe(*pair, "") for pair in pairs]
    return [found.num_content > 0 for found in count_answers(probes, answers, judge, content, of_harm=True)]
