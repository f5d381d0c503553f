"""How important each weight is for a patch: SNIP scores.

I(w) = sum over rows of |w * dL_row/dw|, the absolute value inside the sum, float32, loss on response tokens.
Sources: SNIP, arXiv 1810.02340; its use for safety-critical weights, arXiv 2402.05162.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Final, Literal

import torch
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from patches.backends import TaskVector
from patches.chat import Encoded
from patches.errors import NonFiniteError
from patches.memory import in_smaller_passes
from patches.merge import shifted
from patches.model import decoder_linears
from patches.objectives import descent, row_losses
from patches.terms import Runner

ScoreName = Literal["base", "tuned", "delta", "magnitude"]
Scores = dict[str, torch.Tensor]
CPU: Final = torch.device("cpu")
Weights = Mapping[str, torch.Tensor]
TOKENS_AT_ONCE: Final = {"cpu": 1 << 11, "cuda": 1 << 12}
"""Padded tokens of one backward pass: beside it what goes into every layer is kept."""
ENTRIES_AT_ONCE: Final = {"cpu": 1 << 18, "cuda": 1 << 29}
"""Of single rows' gradients of one layer, which are held at the same time; at least one row's. A CPU's cache has few."""


def scores(
    runner: Runner,
    rows: Sequence[Encoded],
    patch: TaskVector,
    *,
    kind: ScoreName,
    progress: Callable[[float], None],
    device: torch.device = CPU,
) -> Scores:
    """The score of every entry of a patch, float32, >= 0, shaped like the patch.

    Args:
        rows: the batch's rows; unused by ``magnitude``.
        patch: the task vector from the runner's model.
        kind: base: |w g| at the model itself (both patches then rank alike); tuned: |w g| at the tuned model;
            delta: |patch g| at the tuned model; magnitude: |patch|.
        device: where the scores go, the CPU by default; they take twice as much memory as a model in bfloat16.
    Raises:
        NonFiniteError: a score is NaN or infinite.
    """
    if kind == "magnitude":
        return {name: delta.abs().to(device) for name, delta in patch.items()}
    if kind == "base":
        return _weight_scores(runner, rows, progress, None, device)
    with shifted(runner.model, patch):
        return _weight_scores(runner, rows, progress, patch if kind == "delta" else None, device)


def _weight_scores(
    runner: Runner,
    rows: Sequence[Encoded],
    progress: Callable[[float], None],
    factor: TaskVector | None,
    device: torch.device,
) -> Scores:
    """|factor * gradient| summed over rows, the weight itself being the factor by default."""
    weights = decoder_linears(runner.model)
    sums, _ = in_smaller_passes(
        # from the start each time, since a pass that failed has added the part of some layers
        lambda tokens: _many_rows_at_once(replace(runner, max_tokens=tokens), rows, weights, progress),
        min(runner.max_tokens, TOKENS_AT_ONCE[runner.model.device.type]),
        [len(row.ids) for row in rows],
        "score",
    )
    if sums is None:
        sums = _row_by_row(runner, rows, weights, progress)
    # a matrix at a time, so that its sum goes when its score has come to where it is wanted
    return {name: _finite(name, _times(sums.pop(name), weights[name], factor, name)).to(device) for name in list(sums)}


def _many_rows_at_once(
    runner: Runner, rows: Sequence[Encoded], weights: Weights, progress: Callable[[float], None]
) -> Scores | None:
    """Sums of |gradient| of each row's loss, many rows to a backward pass; None for a model whose layers mix the rows.

    A linear layer's gradient is, row by row, the product of what goes in and of what comes back: both are there at once
    for all rows of a pass, so the absolute value can be taken by row all the same. The weights' own gradients, summed over
    rows, are never made.
    """
    sums = {name: torch.zeros_like(weight, dtype=torch.float32) for name, weight in weights.items()}
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].ids))
    done = 0
    for group in runner.micro_batches([rows[i] for i in order]):
        picked = [rows[order[i]] for i in group]
        with _RowGradients(runner.model, sums, len(picked)) as watch:
            logits, padded = runner.forward(picked)
            losses = row_losses(logits, padded.labels)
            if watch.is_mixed:
                return None
            torch.autograd.grad((losses.nll / losses.num_tokens).sum(), watch.source)
        done += len(picked)
        progress(done / len(rows))
    return sums


def _row_by_row(runner: Runner, rows: Sequence[Encoded], weights: Weights, progress: Callable[[float], None]) -> Scores:
    sums = {name: torch.zeros_like(weight, dtype=torch.float32) for name, weight in weights.items()}
    for weight in weights.values():
        weight.requires_grad_(True)
    try:
        for number, row in enumerate(rows):
            logits, padded = runner.forward([row])
            loss = descent(row_losses(logits, padded.labels))
            gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
            for total, gradient in zip(sums.values(), gradients, strict=True):
                if gradient is not None:  # of an expert that no token of this row goes to
                    total += gradient.float().abs()
            progress((number + 1) / len(rows))
    finally:
        for weight in weights.values():
            weight.requires_grad_(False)
    return sums


class _RowGradients:
    """Watches the linear layers during a forward and a backward pass, and adds each row's |gradient| to the sums."""

    def __init__(self, model: PreTrainedModel, sums: Scores, num_rows: int) -> None:
        self._model = model
        self._sums = sums
        self._num_rows = num_rows
        self._handles: list[RemovableHandle] = []
        self._seen: set[str] = set()
        self.is_mixed = False
        """A layer takes other things than rows of tokens, as experts do, or is used more than once."""
        self.source = torch.empty(0)
        """What the first layer gets; a backward pass to here passes all others."""

    def __enter__(self) -> _RowGradients:
        self._handles.append(self._model.get_input_embeddings().register_forward_hook(self._start))
        for name in self._sums:
            module = self._model.get_submodule(name.removesuffix(".weight"))
            self._handles.append(module.register_forward_hook(partial(self._pass, name)))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _start(self, module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        self.source = output.requires_grad_(True)

    def _pass(self, name: str, module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        (given,) = inputs
        if given.dim() != 3 or len(given) != self._num_rows or name in self._seen:
            self.is_mixed = True
            return
        self._seen.add(name)
        output.register_hook(partial(self._add, name, given.detach()))  # type: ignore[no-untyped-call]

    def _add(self, name: str, given: torch.Tensor, gradient: torch.Tensor) -> None:
        total = self._sums[name]
        summed = _sum_of_sizes if total.device.type == "cpu" else _sum_of_sizes_in_one_pass
        num = max(1, ENTRIES_AT_ONCE[total.device.type] // total.numel())
        for came, back in zip(torch.split(given, num), torch.split(gradient, num), strict=True):
            total += summed(torch.bmm(back.transpose(1, 2), came))


def _sum_of_sizes(gradients: torch.Tensor) -> torch.Tensor:
    """(rows, out, in) to (out, in): the sum of absolute values over rows, in float32."""
    return gradients.float().abs_().sum(dim=0)


def _sum_of_sizes_in_one_pass(gradients: torch.Tensor) -> torch.Tensor:
    """The same without a copy of them: half as fast on a CPU, but a GPU waits for its memory."""
    sums: torch.Tensor = torch.linalg.vector_norm(gradients, ord=1, dim=0, dtype=torch.float32)
    return sums


def _times(total: torch.Tensor, weight: torch.Tensor, factor: TaskVector | None, name: str) -> torch.Tensor:
    """sum |f g| = |f| sum |g|, since the factor is the same for every row."""
    size = weight.detach().float().abs() if factor is None else factor[name].to(total.device).abs()
    return total.mul_(size)


def _finite(name: str, score: torch.Tensor) -> torch.Tensor:
    if not bool(torch.isfinite(score).all()):
        raise NonFiniteError(f"SNIP scores of {name} are not finite; the tuned model has collapsed")
    return score
