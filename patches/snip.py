"""How important each weight is for a patch: SNIP scores.

I(w) = sum over rows of |w * dL_row/dw|, the absolute value inside the sum, float32, loss on response tokens.
Sources: SNIP, arXiv 1810.02340; its use for safety-critical weights, arXiv 2402.05162.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch

from patches.backends import TaskVector
from patches.chat import Encoded
from patches.errors import NonFiniteError
from patches.merge import shifted
from patches.model import decoder_linears
from patches.objectives import descent, row_losses
from patches.terms import Runner

ScoreName = Literal["base", "tuned", "delta", "magnitude"]
Scores = dict[str, torch.Tensor]


def scores(
    runner: Runner,
    rows: Sequence[Encoded],
    patch: TaskVector,
    *,
    kind: ScoreName,
    progress: Callable[[float], None],
) -> Scores:
    """The score of every entry of a patch, float32, >= 0, on the CPU, shaped like the patch.

    Args:
        rows: the batch's rows; unused by ``magnitude``.
        patch: the task vector from the runner's model.
        kind: base: |w g| at the model itself (both patches then rank alike); tuned: |w g| at the tuned model;
            delta: |patch g| at the tuned model; magnitude: |patch|.
    Raises:
        NonFiniteError: a score is NaN or infinite.
    """
    if kind == "magnitude":
        return {name: delta.abs() for name, delta in patch.items()}
    if kind == "base":
        return _weight_scores(runner, rows, progress, None)
    with shifted(runner.model, patch):
        return _weight_scores(runner, rows, progress, patch if kind == "delta" else None)


def _weight_scores(
    runner: Runner, rows: Sequence[Encoded], progress: Callable[[float], None], factor: TaskVector | None
) -> Scores:
    """|factor * gradient| summed over rows, the weight itself being the factor by default."""
    weights = decoder_linears(runner.model)
    sums = {name: torch.zeros_like(weight, dtype=torch.float32) for name, weight in weights.items()}
    for weight in weights.values():
        weight.requires_grad_(True)
    try:
        for number, row in enumerate(rows):
            logits, padded = runner.forward([row])
            loss = descent(row_losses(logits, padded.labels))
            gradients = torch.autograd.grad(loss, list(weights.values()))
            for total, gradient in zip(sums.values(), gradients, strict=True):
                total += gradient.float().abs()
            progress((number + 1) / len(rows))
    finally:
        for weight in weights.values():
            weight.requires_grad_(False)
    return {name: _finite(name, _times(total, weights[name], factor, name)) for name, total in sums.items()}


def _times(total: torch.Tensor, weight: torch.Tensor, factor: TaskVector | None, name: str) -> torch.Tensor:
    """sum |f g| = |f| sum |g|, since the factor is the same for every row."""
    size = weight.detach().float().abs() if factor is None else factor[name].to(total.device).abs()
    return (total * size).cpu()


def _finite(name: str, score: torch.Tensor) -> torch.Tensor:
    if not bool(torch.isfinite(score).all()):
        raise NonFiniteError(f"SNIP scores of {name} are not finite; the tuned model has collapsed")
    return score
