"""`alignd bisect`: tries versions on a probe, one at a time, until the one that broke it is known.

Versions are read, never published; a collected one is rebuilt for the time it takes to load it. No text is kept or told,
only counts.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Final

import torch

from daemon import judging, probes
from daemon.config import Config
from daemon.lineage import earlier_batches, lineage_of
from daemon.probes import ProbeFiles
from daemon.rebuilt import model_folder
from daemon.workbench import Workbench
from patches.evaluate import Axis, Probe, ProbeSet, Tally, rates, tally
from patches.generate import Generator
from patches.model import load_model
from policies.bisect import Found, Try, next_step
from policies.gates import Share, wilson
from state.rows import VersionRow
from state.store import Store

METRICS: Final[Mapping[Axis, str]] = {"harm": "harm_rate", "over_safety": "over_refusal_rate", "utility": "utility"}
_LEAST_GAIN: Final = 0.002
"""Rates that differ by less cannot be told apart by a bound of three digits."""


@dataclass(frozen=True)
class Step:
    """One version on the probe."""

    version: str
    passes: bool
    rate: float
    """Harm rate, over-refusal rate or utility, by the probe's axis."""
    low: float
    high: float
    counts: Tally
    reason: str
    """Why it was tried."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        plain = asdict(self)
        counts: dict[str, int] = plain.pop("counts")
        return plain | counts


@dataclass(frozen=True)
class Question:
    """What is asked of every version."""

    axis: Axis
    rows: Sequence[probes.ProbeRow]
    bound: float
    """Share in [0, 1]: utility must reach it, the other rates must not exceed it."""

    @property
    def probe_set(self) -> ProbeSet:
        """The rows as one set without groups."""
        return ProbeSet("bisect", self.axis, tuple(Probe(row.messages, row.response, "") for row in self.rows))

    def step(self, version: str, counts: Tally, reason: str) -> Step:
        """The verdict on a version's counts."""
        rate = rates(self.probe_set, counts)[METRICS[self.axis]]
        passes = rate >= self.bound if self.axis == "utility" else rate <= self.bound
        low, high = wilson(Share(round(rate * counts.num_prompts), counts.num_prompts))
        return Step(version, passes, rate, low, high, counts, reason)


@dataclass
class Examiner:
    """Answers of versions to one question, all judged alike: as the newest version's own round judges."""

    store: Store
    config: Config
    files: ProbeFiles
    question: Question
    newest: VersionRow

    @cached_property
    def bench(self) -> Workbench:
        """Tokenizer and judge; the judge has listened to v0."""
        if self.config.model.num_threads:
            torch.set_num_threads(self.config.model.num_threads)
        base = self.store.model_path(0)
        batches = earlier_batches(self.store, self.config, lineage_of(self.store, self.newest.id), self.files)
        harmful = [row.response for taken in batches.values() for row in taken.rows]
        harmful += [row.response for row in self.question.rows if row.response]
        files = judging.noted(self.files, self.config.judge, self.store.home)
        scorer = judging.scorer_of(self.config, self.store.home, files)
        bench = Workbench.open(self.config, base, base, files, harmful=harmful, scorer=scorer)
        bench.learn_judge()
        return bench

    def counts(self, row: VersionRow) -> Tally:
        """One version's answers, judged and counted."""
        asked, bench = self.question.probe_set, self.bench
        if row.id == 0:
            model = bench.model
        else:
            with model_folder(self.store, row) as folder:
                model = load_model(folder, dtype=self.config.model.dtype, device=bench.device)
        generator = Generator(model, bench.tokenizer, self.config.judge.max_new_tokens)
        found = tally(asked, generator.answer([probe.messages for probe in asked.probes]), bench.judge)[""]
        del model, generator
        gc.collect()  # the next version needs the room
        return found


def search(
    line: Sequence[VersionRow],
    question: Question,
    count: Callable[[VersionRow], Tally],
    *,
    is_good_given: bool,
    tell: Callable[[Step], None] = lambda step: None,
) -> tuple[Found, list[Step]]:
    """Try versions until it is known which one broke it.

    Args:
        line: each version after its parent, oldest first.
        count: answers of a version to the question, counted.
        tell: called after every version that was tried.
    """
    steps: dict[int, Step] = {}
    while isinstance(
        todo := next_step(len(line), {at: step.passes for at, step in steps.items()}, is_good_given=is_good_given), Try
    ):
        row = line[todo.at]
        steps[todo.at] = question.step(row.name, count(row), todo.reason)
        tell(steps[todo.at])
    return todo, list(steps.values())


def dividing_bound(axis: Axis, steps: Sequence[Step]) -> float | None:
    """A bound that the newest version fails and the best one tried passes; None where none is better.

    Args:
        steps: the newest version's first, as `search` tries them.
    """
    newest, *others = (step.rate for step in steps)
    best = (max if axis == "utility" else min)(others, default=newest)
    gained = best - newest if axis == "utility" else newest - best
    return round((best + newest) / 2, 3) if gained > _LEAST_GAIN else None


def overlap_notes(broken_at: int | None, line: Sequence[VersionRow], steps: Sequence[Step]) -> list[str]:
    """A warning where the probe is too small to tell the version that broke it from its parent, as a sample."""
    if broken_at is None:
        return []
    tried = {step.version: step for step in steps}
    parent, child = tried[line[broken_at - 1].name], tried[line[broken_at].name]
    if parent.low > child.high or child.low > parent.high:
        return []
    return [f"the intervals of both overlap: {child.counts.num_prompts} prompts are too few to say so of other prompts"]
