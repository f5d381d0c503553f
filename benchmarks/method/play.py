"""One round of the product's own steps, in memory: no store, no service, the same code."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.method.axes import Axes, measure_axes
from benchmarks.method.ground import Ground
from daemon.config import Config
from daemon.intake import TakenIn
from daemon.making import make_patch
from daemon.measuring import ProbeSets, counts, gate_results, gate_sets, measure_sets, metrics
from daemon.patching import Patching, Shapes
from daemon.probes import ProbeFiles
from daemon.searching import keeps_all
from daemon.workbench import Workbench
from patches.evaluate import Measurement
from patches.mask import Masks
from patches.merge import Claims, SparsePatch, merged, touched_fraction
from patches.model import count_entries, decoder_linears, load_model
from policies.decision import Decision
from policies.gates import decide

NEW = "new"


@dataclass(frozen=True)
class Task:
    """What a round is asked to do."""

    ground: Ground
    batch: TakenIn
    seed: int
    current: Path
    """Model folder that it starts from."""
    earlier: Mapping[str, TakenIn] = field(default_factory=dict)
    claims: Claims = field(default_factory=dict)
    written: Masks = field(default_factory=dict)
    """What the patches write that this one is to stand in place of."""


@dataclass(frozen=True)
class Played:
    """What a round came to."""

    axes: Axes
    touched: float
    """Share of the decoder's linear weights that the patch writes, in [0, 1]."""
    train_s: float
    patch: SparsePatch
    steps: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What each step reported."""
    decision: Decision | None = None
    """The gates' decision, where they were asked."""


def play_round(task: Task, config: Config, *, with_gates: bool = False, keep_at: Path | None = None) -> Played:
    """Both patches, search and merge as the service does them, measured on held-out rows.

    Args:
        keep_at: folder to write the candidate to.
    """
    began = time.monotonic()
    files = task.ground.files()
    harmful = [row.response for taken in (*task.earlier.values(), task.batch) for row in taken.rows]
    bench = Workbench.open(config, task.current, task.ground.base, files, harmful=harmful)
    bench.learn_judge()
    with tempfile.TemporaryDirectory() as scratch:
        patch, steps = _make_patch(bench, task, Path(scratch))
    train_s = time.monotonic() - began
    decision = None
    if with_gates:
        decision = _judge(bench, patch, {**task.earlier, NEW: task.batch}, files)
    with merged(bench.model, patch):
        axes = measure_axes(bench.model, bench.tokenizer, task.ground.world)
        if keep_at is not None:
            bench.model.save_pretrained(keep_at)
            bench.tokenizer.save_pretrained(keep_at)
    share = touched_fraction(patch, count_entries(decoder_linears(bench.model).values()))
    return Played(axes, share, train_s, patch, steps, decision)


def play_consolidation(task: Task, config: Config, batches: Mapping[str, TakenIn], keep_at: Path) -> Played:
    """All batches learnt anew together, from where the line began, in place of the current version.

    Args:
        task: its batch is all of them together; `current` is what the candidate is compared with.
        keep_at: folder to write the candidate to.
    """
    start = replace(task, current=task.ground.base)
    candidate = play_round(start, config, keep_at=keep_at)
    files = task.ground.files()
    harmful = [row.response for row in task.batch.rows]
    bench = Workbench.open(config, task.current, task.ground.base, files, harmful=harmful)
    bench.learn_judge()
    sets = _gate_sets(bench, batches, files)
    measured = measure_sets(bench, sets, model=load_model(keep_at, dtype="float32", device=bench.device))
    numbers = _numbers(bench, measured, sets)
    decision = decide(gate_results(counts(measured), numbers, config.gates))
    if decision.accepted:
        decision = keeps_all(config, numbers)
    return replace(candidate, decision=decision)


def _make_patch(bench: Workbench, task: Task, scratch: Path) -> tuple[SparsePatch, dict[str, dict[str, Any]]]:
    work = Patching(
        bench, scratch, taken=task.batch, earlier=task.earlier, seed=task.seed, written=lambda shapes: task.written
    )
    steps: dict[str, dict[str, Any]] = {}

    def done(step: str, make: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        steps[step] = dict(make())
        return steps[step]

    return make_patch(work, partial(_claims_of, task), done=done, progress=lambda _: _quiet), steps


def _judge(bench: Workbench, patch: SparsePatch, batches: Mapping[str, TakenIn], files: ProbeFiles) -> Decision:
    """The decision of the configured gates on a candidate."""
    sets = _gate_sets(bench, batches, files)
    with merged(bench.model, patch):
        candidate = measure_sets(bench, sets)
    return decide(gate_results(counts(candidate, NEW), _numbers(bench, candidate, sets), bench.config.gates))


def _gate_sets(bench: Workbench, batches: Mapping[str, TakenIn], files: ProbeFiles) -> ProbeSets:
    return gate_sets({name: taken.gate() for name, taken in batches.items()}, files, bench.config)


def _numbers(bench: Workbench, candidate: Measurement, sets: ProbeSets) -> dict[str, dict[str, Any]]:
    """What candidate, current version and v0 measure."""
    current = measure_sets(bench, sets)
    with bench.base_model() as model:
        base = current if model is bench.model else measure_sets(bench, sets, model=model)
    return {"candidate": metrics(candidate), "current": metrics(current), "base": metrics(base)}


def _claims_of(task: Task, shapes: Shapes) -> Claims:
    return {name: pair for name, pair in task.claims.items() if name in shapes}


def _quiet(*_: float) -> None:
    """Nobody watches."""
