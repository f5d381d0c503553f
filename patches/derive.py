"""Deriving one patch: a bounded training run, with a stop rule, whose outcome is a task vector."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from patches.backends import BackendName, TaskVector, Training, open_training
from patches.errors import NonFiniteError, NothingTrainedError
from patches.mask import Masks
from patches.memory import in_smaller_passes
from patches.objectives import row_losses
from patches.terms import BatchTerm, ObjectiveName, Runner, Term

FORGETTING = frozenset({"ascent", "npo", "simnpo"})
WARM_UP_FRACTION = 0.4
DECAY_FRACTION = 0.3
SMOOTHING = 0.7
Progress = Callable[[float, float], None]
"""Called after every step with (fraction in [0, 1], batch loss in nats a token)."""


@dataclass(frozen=True)
class Recipe:
    """How a patch is trained."""

    objective: ObjectiveName
    learning_rate: float
    max_steps: int
    batch_rows: int
    hold_rows: int
    stop_loss: float | None
    max_grad_norm: float
    backend: BackendName
    lora_rank: int
    seed: int


@dataclass(frozen=True)
class DeriveReport:
    """What happened while a patch was trained; losses in nats a response token.

    ``start_loss`` and ``end_loss`` are of the first and of the last step's rows, each before its step.
    """

    steps: int
    stop_reason: str
    start_loss: float
    end_loss: float
    losses: tuple[float, ...]
    terms: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for the ledger; the loss curve thinned to at most 100 points."""
        stride = max(1, math.ceil(len(self.losses) / 100))
        return asdict(self) | {"losses": [round(loss, 4) for loss in self.losses[::stride]]}


@dataclass(frozen=True)
class Derivation:
    """A patch and how it came about."""

    task_vector: TaskVector
    report: DeriveReport


class StopRule:
    """Ends training once the smoothed batch loss has passed a bound.

    The loss watched is always the plain mean cross-entropy L, never a negated or transformed one: forgetting stops
    above the bound, learning below it.
    """

    def __init__(self, objective: ObjectiveName, bound: float | None) -> None:
        self._forgetting = objective in FORGETTING
        self._bound = bound
        self.smoothed: float | None = None

    def reached(self, loss: float) -> bool:
        """Whether training should stop now that one step's loss was ``loss``."""
        previous = loss if self.smoothed is None else self.smoothed
        self.smoothed = SMOOTHING * previous + (1 - SMOOTHING) * loss
        if self._bound is None:
            return False
        return self.smoothed > self._bound if self._forgetting else self.smoothed < self._bound


def rate_factor(step: int, max_steps: int) -> float:
    """Share of the learning rate at a step, in (0, 1]: a long linear rise, a plateau, a linear fall.

    Held answers have no gradient until they have moved, while forgetting pushes hardest at first and Adam makes every
    first step a full one. Without the long rise the loosened model's answers are lost before they are held.
    """
    rise = (step + 1) / max(1.0, WARM_UP_FRACTION * max_steps)
    fall = (max_steps - step) / max(1.0, DECAY_FRACTION * max_steps)
    return min(1.0, rise, max(fall, 0.02))


def term_seed(seed: int, name: str) -> int:
    """The seed of one term's shuffles; of two trainings with seeds close by no two terms share one."""
    return int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:8], "big") >> 1


class RowSampler:
    """Rows in epochs, each a new shuffle from one seed."""

    def __init__(self, num_rows: int, seed: int) -> None:
        self._num_rows = num_rows
        self._generator = torch.Generator().manual_seed(seed)
        self._left: list[int] = []

    def next(self, count: int) -> list[int]:
        """The next ``count`` row numbers, fewer when there are fewer rows."""
        count = min(count, self._num_rows)
        while len(self._left) < count:
            self._left += torch.randperm(self._num_rows, generator=self._generator).tolist()
        picked, self._left = self._left[:count], self._left[count:]
        return picked


def derive(
    runner: Runner,
    batch: BatchTerm,
    others: Sequence[Term],
    *,
    recipe: Recipe,
    progress: Progress,
    masks: Masks | None = None,
) -> Derivation:
    """The task vector that the recipe trains from the runner's model, which is left unchanged.

    Args:
        batch: the rows to forget or to learn, with their objective.
        others: what else counts in every step: preferred refusals and held answers.
        masks: the entries that the ``sparse`` back end trains.
    Raises:
        NothingTrainedError: no rows, no response tokens, no gradient, or no weight changed.
        NonFiniteError: a loss or a gradient is NaN or infinite.
        MemoryError: there is not enough even for one row at a time.
    """
    if not batch.rows:
        raise NothingTrainedError("no rows to train on")
    opening = open_training(runner.model, recipe.backend, lora_rank=recipe.lora_rank, seed=recipe.seed, masks=masks)
    with opening as training:
        report = _train(runner, training, [batch, *others], recipe=recipe, progress=progress)
    return Derivation(training.task_vector, report)


def _train(
    runner: Runner, training: Training, terms: Sequence[Term], *, recipe: Recipe, progress: Progress
) -> DeriveReport:
    terms = [term for term in terms if term.rows and term.weight > 0]
    samplers = [RowSampler(len(term.rows), term_seed(recipe.seed, term.name)) for term in terms]
    # by default a GPU works on all parameters at once, which takes as much memory again as they do
    fused = True if runner.model.device.type == "cuda" else None
    optimizer = torch.optim.AdamW(training.parameters, lr=recipe.learning_rate, weight_decay=0.0, fused=fused)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_factor(step, recipe.max_steps))
    rule = StopRule(recipe.objective, recipe.stop_loss)
    losses: list[float] = []
    values: dict[str, float] = {}
    reason = f"all {recipe.max_steps} steps done"
    for step in range(recipe.max_steps):
        counts = [recipe.batch_rows] + [recipe.hold_rows] * (len(terms) - 1)
        picks = [sampler.next(count) for sampler, count in zip(samplers, counts, strict=True)]
        results, runner = _gradients(runner, terms, picks, optimizer)
        values = {term.name: value for term, (value, _) in zip(terms, results, strict=True)}
        if not _step(optimizer, training.parameters, recipe.max_grad_norm):
            reason = _vanished(step)
            break
        losses.append(results[0][1])
        training.after_step()
        schedule.step()
        progress((step + 1) / recipe.max_steps, losses[-1])
        if rule.reached(losses[-1]):
            reason = f"stop_loss {recipe.stop_loss} passed at {rule.smoothed:.3f}"
            break
    return DeriveReport(len(losses), reason, losses[0], losses[-1], tuple(losses), values)


def _gradients(
    runner: Runner, terms: Sequence[Term], picks: Sequence[Sequence[int]], optimizer: torch.optim.Optimizer
) -> tuple[list[tuple[float, float]], Runner]:
    """Accumulate all terms' gradients, what `_backward` returns of each; and the runner that there was memory for.

    A step that runs out of memory is done again in forward passes of half as many tokens, which add up to the same
    gradient, down to one row at a time.
    """
    lengths = [len(term.rows[i].ids) for term, picked in zip(terms, picks, strict=True) for i in picked]

    def step(max_tokens: int) -> list[tuple[float, float]]:
        optimizer.zero_grad(set_to_none=True)  # of what a try that failed has added
        smaller = replace(runner, max_tokens=max_tokens)
        return [_backward(smaller, term, picked) for term, picked in zip(terms, picks, strict=True)]

    values, max_tokens = in_smaller_passes(step, runner.max_tokens, lengths, "train on")
    return values, replace(runner, max_tokens=max_tokens)


def _backward(runner: Runner, term: Term, picked: Sequence[int]) -> tuple[float, float]:
    """Accumulate one term's gradient; returns its mean value, and the plain mean cross-entropy L of its rows."""
    picked = sorted(picked, key=lambda i: len(term.rows[i].ids))
    units, num_tokens = term.units(picked), sum(term.rows[i].num_response_tokens for i in picked)
    if num_tokens == 0:
        raise NothingTrainedError(f"term {term.name!r}: its rows have no response tokens")
    total = nll = 0.0
    for group in runner.micro_batches([term.rows[i] for i in picked]):
        chosen = [picked[i] for i in group]
        logits, padded = runner.forward([term.rows[i] for i in chosen])
        loss_sum = term.loss_sum(logits, padded, chosen)
        (loss_sum * (term.weight / units)).backward()  # type: ignore[no-untyped-call]
        total += float(loss_sum.detach())
        nll += float(row_losses(logits.detach(), padded.labels).nll.sum())
    if not math.isfinite(total):
        raise NonFiniteError(f"term {term.name!r}: the loss is {total}; lower learning_rate")
    return total / units, nll / num_tokens


def _vanished(step: int) -> str:
    """Why training ends without a gradient; before the first step it never had one, which is an error."""
    if step == 0:
        raise NothingTrainedError("the gradient is zero: the loss does not depend on the trained weights")
    return f"no gradient is left after {step} steps"


def _step(optimizer: torch.optim.Optimizer, parameters: Sequence[torch.Tensor], max_grad_norm: float) -> bool:
    """Move the parameters; False, and nothing moved, where the gradient is exactly zero."""
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm))
    if not math.isfinite(norm):
        raise NonFiniteError(f"the gradient's norm is {norm}; lower learning_rate")
    if norm == 0:
        return False
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return True
