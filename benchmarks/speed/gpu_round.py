"""The steps of a whole round on random rows, in the service's order and by its functions, timed one by one.

What needs a judge is not there, since random weights neither answer nor refuse: all rows count as to be learnt and to be
forgotten, and what would be the model's own answers are rows of random tokens. Patches stay in memory between steps, where
the service also writes them to its scratch folder.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.speed.gpu_plan import Bench
from daemon.candidate import MergedEdits, sparse_entries, write_candidate
from patches.backends import BackendName, TaskVector, usual_learning_rate
from patches.choice import choose_entries
from patches.derive import Progress, Recipe, derive
from patches.mask import Masks
from patches.merge import Before, Patches, Setting, SparsePatch, merged, merged_patch, shifted
from patches.terms import AnswerTerm, BatchTerm, HoldTerm, ObjectiveName, Term, hold, row_nll
from state.store import Store
from state.tensors import ModelFolder

OVER_SAFETY_HOLDS = ("retain", "wrapped", "standing_refusals")
SAFETY_HOLDS = (*OVER_SAFETY_HOLDS, "batch_refusals", "own_answers")


class OutOfTimeError(Exception):
    """The time that was given is over."""


@dataclass
class Steps:
    """Seconds and peak memory of each step that has ended, and the one in which time ran out."""

    bench: Bench
    deadline: float
    """On the monotonic clock."""
    seconds: dict[str, float] = field(default_factory=dict)
    peak_gib: dict[str, float | None] = field(default_factory=dict)
    stopped_in: str | None = None

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """One step."""
        self.check()
        reset_peak(self.bench)
        began = time.perf_counter()
        try:
            yield
            self.bench.synchronize()
        except OutOfTimeError:
            self.stopped_in = name
            raise
        self.seconds[name] = time.perf_counter() - began
        self.peak_gib[name] = peak_gib(self.bench)

    def check(self, *_: float) -> None:
        """Raise OutOfTimeError past the deadline; also a progress callback."""
        if time.monotonic() > self.deadline:
            raise OutOfTimeError


def reset_peak(bench: Bench) -> None:
    """Count peak memory from now on."""
    if bench.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()


def peak_gib(bench: Bench) -> float | None:
    """The most memory of the device that was taken since; None on a CPU."""
    return torch.cuda.max_memory_allocated() / 2**30 if bench.device.type == "cuda" else None


def whole_round(bench: Bench, steps: Steps, home: Path | None) -> dict[str, Any]:
    """From rows to a measured candidate, back end `sparse`, sequential; what there was time for.

    Args:
        home: of a store whose v0 is the model; without it no version is written.
    """
    began = time.perf_counter()
    try:
        _round(bench, steps, home)
    except OutOfTimeError:
        steps.stopped_in = steps.stopped_in or "between two steps"
    return {
        "is_complete": steps.stopped_in is None,
        "stopped_in": steps.stopped_in,
        "seconds": time.perf_counter() - began,
        "step_seconds": steps.seconds,
        "step_peak_gib": steps.peak_gib,
        "writes_a_version": home is not None,
    }


def _round(bench: Bench, steps: Steps, home: Path | None) -> None:
    plan = bench.plan
    with steps.timed("teach"):
        holds = {name: hold(bench.runner(), bench.held, weight=1.0, name=name) for name in SAFETY_HOLDS[:4]}
    with steps.timed("choose"):
        sets = [rows[: plan.score_rows] for rows in (bench.batch, bench.held)]
        entries = choose_entries(bench.runner(), sets, fraction=plan.sparse_fraction, progress=steps.check)
    with steps.timed("over_safety"):
        batch = BatchTerm(bench.batch, "descent", torch.zeros(len(bench.batch)), 0.1)
        terms: list[Term] = [
            *(holds[name] for name in OVER_SAFETY_HOLDS),
            AnswerTerm(bench.held, 1.0, name="lookalikes"),
        ]
        over_safety = trained(bench, batch, terms, plan.steps[0], masks=entries, progress=steps.check)
    with steps.timed("safety"):
        safety = _safety(bench, over_safety, holds, entries, steps)
    patches = Patches(safety, over_safety, {}, {}, joint=True, accumulate="off", rescale=False, claims={}, seed=0)
    with steps.timed("search"):
        patch = search(bench, patches, steps.check)
    with steps.timed("merge"):
        if home is not None:
            write(home, patch)
    with steps.timed("evaluate"):
        bench.generator().answer(bench.prompts, steps.check)
        with merged(bench.model, patch):
            bench.generator().answer(bench.prompts, steps.check)


def _safety(
    bench: Bench, over_safety: TaskVector, holds: dict[str, HoldTerm], entries: Masks, steps: Steps
) -> TaskVector:
    with shifted(bench.model, over_safety):
        runner = bench.runner()
        own = hold(runner, bench.held, weight=1.0, name="own_answers")
        batch = BatchTerm(bench.batch, "npo", row_nll(runner, bench.batch), 0.1)
        recoveries = AnswerTerm(bench.batch, 1.0, name="recoveries")  # as long as the rows that break off
        terms: list[Term] = [AnswerTerm(bench.held, 1.0), recoveries, *holds.values(), own]
        return trained(bench, batch, terms, bench.plan.steps[1], masks=entries, progress=steps.check)


def trained(
    bench: Bench, batch: BatchTerm, terms: list[Term], num_steps: int, *, masks: Masks | None, progress: Progress,
    backend: BackendName = "sparse",
) -> TaskVector:  # fmt: skip
    """A patch of so many steps."""
    recipe = recipe_of(bench, batch.objective, backend, num_steps)
    return derive(bench.runner(), batch, terms, recipe=recipe, progress=progress, masks=masks).task_vector


def recipe_of(bench: Bench, objective: ObjectiveName, backend: BackendName, num_steps: int) -> Recipe:
    """As the service trains by default."""
    return Recipe(
        objective=objective, learning_rate=usual_learning_rate(backend, bench.plan.shape.hidden), max_steps=num_steps,
        batch_rows=bench.plan.batch_rows, hold_rows=bench.plan.hold_rows, stop_loss=None, max_grad_norm=1.0,
        backend=backend, lora_rank=bench.plan.lora_rank, seed=0,
    )  # fmt: skip


def search(bench: Bench, patches: Patches, progress: Callable[[float], None]) -> SparsePatch:
    """Every merge put on, asked and taken off; the first of them."""
    found = []
    before: Before = {}
    for beta in bench.plan.betas:
        found.append(merged_patch(patches, Setting(1.0, 1.0, 1.0, 1.0, beta)))
        with merged(bench.model, found[-1], before):
            bench.generator().answer(bench.prompts, progress)
        del found[1:]
    return found[0]


def write(home: Path, patch: SparsePatch) -> None:
    """The candidate: a complete model folder and its overlay."""
    with Store.open(home) as store:
        scratch = store.home / "scratch"
        scratch.mkdir(exist_ok=True)
        edits = MergedEdits(ModelFolder.open(store.model_path(0)), sparse_entries(patch))
        write_candidate(store, 0, scratch, edits=edits, patch=None)
