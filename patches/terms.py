"""The terms of a patch's training loss: forget or learn the batch, prefer refusals, hold what must stay.

Each term knows its rows and turns one forward pass over some of them into a *sum* and the number of units summed over,
so that a step may be split into micro-batches of any size without changing its gradient.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from transformers import PreTrainedModel

from patches import objectives
from patches.chat import Encoded, Padded, pad
from patches.memory import in_pieces

ObjectiveName = Literal["ascent", "descent", "npo", "simnpo"]


@dataclass(frozen=True)
class Runner:
    """A model with what a forward pass over rows needs."""

    model: PreTrainedModel
    pad_id: int
    max_tokens: int
    """Padded tokens of one forward pass; bounds memory."""

    def forward(self, rows: Sequence[Encoded]) -> tuple[torch.Tensor, Padded]:
        """Logits (positions, vocabulary) that predict a response token each, row by row; and the padded rows."""
        padded = pad(rows, pad_id=self.pad_id, device=self.model.device)
        with _head_only_at(self.model, padded.predicts_response):
            output = self.model(input_ids=padded.ids, attention_mask=padded.attention, use_cache=False)
        return output.logits[0], padded

    def micro_batches(self, rows: Sequence[Encoded]) -> Iterator[list[int]]:
        """Positions of ``rows`` in groups of at most ``max_tokens`` padded tokens, in order; a group is never empty."""
        group: list[int] = []
        width = 0
        for i, row in enumerate(rows):
            wider = max(width, len(row.ids))
            if group and wider * (len(group) + 1) > self.max_tokens:
                yield group
                group, wider = [], len(row.ids)
            group.append(i)
            width = wider
        if group:
            yield group


@contextmanager
def _head_only_at(model: PreTrainedModel, wanted: torch.Tensor) -> Iterator[None]:
    """The model's logits only where ``wanted`` (rows, tokens) says: half of the work with short answers.

    The head gets the wanted positions as one row, so that whatever a model does to its logits afterwards it still does.
    """

    def gather(head: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor]:
        return (inputs[0][wanted].unsqueeze(0),)

    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    handle = head.register_forward_pre_hook(gather)
    try:
        yield
    finally:
        handle.remove()


class Term(Protocol):
    """One summand of the loss."""

    @property
    def name(self) -> str:
        """What reports call it."""

    @property
    def rows(self) -> Sequence[Encoded]:
        """What it is computed on."""

    @property
    def weight(self) -> float:
        """Its factor in the loss."""

    def units(self, picked: Sequence[int]) -> int:
        """What the sum over these rows is divided by: tokens or rows."""

    def loss_sum(self, logits: torch.Tensor, padded: Padded, picked: Sequence[int]) -> torch.Tensor:
        """The term summed over these rows' units."""


@dataclass(frozen=True)
class BatchTerm:
    """The batch itself under one of the four objectives."""

    rows: Sequence[Encoded]
    objective: ObjectiveName
    start_nll: torch.Tensor  # (rows,) NLL under the model that training starts from
    beta: float
    weight: float = 1.0
    name: str = "batch"

    def units(self, picked: Sequence[int]) -> int:
        if self.objective in ("npo", "simnpo"):
            return len(picked)
        return sum(self.rows[i].num_response_tokens for i in picked)

    def loss_sum(self, logits: torch.Tensor, padded: Padded, picked: Sequence[int]) -> torch.Tensor:
        losses = objectives.row_losses(logits, padded.labels)
        return self._mean(losses, picked) * self.units(picked)

    def _mean(self, losses: objectives.RowLosses, picked: Sequence[int]) -> torch.Tensor:
        match self.objective:
            case "descent":
                return objectives.descent(losses)
            case "ascent":
                return objectives.ascent(losses)
            case "simnpo":
                return objectives.simnpo(losses, self.beta)
            case "npo":
                start = self.start_nll[list(picked)].to(losses.nll.device)
                return objectives.npo(losses, start, self.beta)


@dataclass(frozen=True)
class AnswerTerm:
    """Cross-entropy on given answers: refusals, references, or a refusal in the middle of a begun answer."""

    rows: Sequence[Encoded]
    weight: float
    name: str = "refusals"

    def units(self, picked: Sequence[int]) -> int:
        return sum(self.rows[i].num_response_tokens for i in picked)

    def loss_sum(self, logits: torch.Tensor, padded: Padded, picked: Sequence[int]) -> torch.Tensor:
        return objectives.row_losses(logits, padded.labels).nll.sum()


@dataclass(frozen=True)
class HoldTerm:
    """KL to a teacher's recorded distributions: what must not move."""

    rows: Sequence[Encoded]
    targets: Sequence[objectives.Targets]
    weight: float
    name: str

    def units(self, picked: Sequence[int]) -> int:
        return sum(self.rows[i].num_response_tokens for i in picked)

    def loss_sum(self, logits: torch.Tensor, padded: Padded, picked: Sequence[int]) -> torch.Tensor:
        device = logits.device
        targets = objectives.Targets(
            torch.cat([self.targets[i].log_probs for i in picked]).to(device).float(),
            torch.cat([self.targets[i].tokens for i in picked]).to(device).long(),
            torch.cat([self.targets[i].rest for i in picked]).to(device).float(),
        )
        return objectives.kl_to_targets(logits, targets) * self.units(picked)


@torch.no_grad()
def row_nll(runner: Runner, rows: Sequence[Encoded]) -> torch.Tensor:
    """(rows,) NLL of each response under the model as it is, on the CPU."""

    def measure(group: Sequence[int]) -> torch.Tensor:
        logits, padded = runner.forward([rows[i] for i in group])
        return objectives.row_losses(logits, padded.labels).nll.cpu()

    values = torch.empty(len(rows))
    for group in runner.micro_batches(rows):
        for piece, found in in_pieces(measure, group, "measure rows"):
            values[list(piece)] = found
    return values


@torch.no_grad()
def hold(runner: Runner, rows: Sequence[Encoded], *, weight: float, name: str, num_kept_tokens: int = 128) -> HoldTerm:
    """A term that keeps the model's present answers on ``rows``; the model now is the teacher.

    Args:
        num_kept_tokens: likeliest tokens recorded a position; the rest is one bucket.
    """

    def capture(group: Sequence[int]) -> list[objectives.Targets]:
        picked = [rows[i] for i in group]
        logits, _ = runner.forward(picked)
        together = objectives.capture_targets(logits, num_kept_tokens)
        sizes = [row.num_response_tokens for row in picked]
        parts = (together.log_probs.cpu(), together.tokens.int().cpu(), together.rest.cpu())
        return list(map(objectives.Targets, *(torch.split(part, sizes) for part in parts)))

    targets: list[objectives.Targets] = []
    for group in runner.micro_batches(rows):
        for _, found in in_pieces(capture, group, "record held answers"):
            targets.extend(found)
    return HoldTerm(rows, targets, weight, name)
