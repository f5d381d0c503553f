"""The losses that patches are trained with, over response tokens only.

Letters: L = mean cross-entropy over response tokens; NLL = its sum over one row's response.
Sources: ascent, descent: arXiv 2405.13820; NPO: arXiv 2404.05868; SimNPO: arXiv 2410.07163.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F

from patches.chat import IGNORED

USUAL_BETA: Final = {"npo": 0.1, "simnpo": 2.5}
"""Sharpness of the negative preferences: of nats an answer, and of nats a token."""


@dataclass(frozen=True)
class RowLosses:
    """Losses of a batch, one value a row."""

    nll: torch.Tensor  # (rows,) nats, summed over the response tokens
    num_tokens: torch.Tensor  # (rows,) response tokens

    @property
    def mean(self) -> torch.Tensor:
        """L: nats a response token, over the whole batch."""
        return self.nll.sum() / self.num_tokens.sum()


def row_losses(logits: torch.Tensor, labels: torch.Tensor) -> RowLosses:
    """NLL and token count of each row.

    Args:
        logits: (positions, vocabulary) that predict a response token each, row by row.
        labels: (rows, tokens), IGNORED outside the response; ``positions`` are its other entries.
    """
    predicted = labels[:, 1:]
    is_response = predicted != IGNORED
    found = F.cross_entropy(_at_least_float32(logits), predicted[is_response], reduction="none")
    # Each loss at its own place, then a sum by row: adding by index would differ from run to run on a GPU.
    losses = found.new_zeros(predicted.shape).masked_scatter(is_response, found)
    return RowLosses(losses.sum(dim=1), is_response.sum(dim=1))


def descent(losses: RowLosses) -> torch.Tensor:
    """L itself: learn to answer."""
    return losses.mean


def ascent(losses: RowLosses) -> torch.Tensor:
    """-L: forget by gradient ascent. It has no floor; only the stop rule ends it."""
    return -losses.mean


def npo(losses: RowLosses, start_nll: torch.Tensor, beta: float) -> torch.Tensor:
    """Negative preference: -(2/beta) mean log sigmoid(beta (NLL - NLL_start)).

    Args:
        start_nll: (rows,) NLL under the model that training started from.
        beta: > 0; towards 0 this is ascent, and it fades once a row's NLL has risen by some 1/beta.
    """
    return -(2 / beta) * F.logsigmoid(beta * (losses.nll - start_nll)).mean()


def simnpo(losses: RowLosses, beta: float) -> torch.Tensor:
    """NPO without a reference, by length: -(2/beta) mean log sigmoid(beta NLL/len)."""
    return -(2 / beta) * F.logsigmoid(beta * losses.nll / losses.num_tokens).mean()


@dataclass(frozen=True)
class Targets:
    """A teacher's next-token distribution at response positions: its k likeliest tokens; the rest is one bucket."""

    log_probs: torch.Tensor  # (positions, k)
    tokens: torch.Tensor  # (positions, k) int64
    rest: torch.Tensor  # (positions,) log-probability of all other tokens together; -inf when there are none


def capture_targets(logits: torch.Tensor, k: int) -> Targets:
    """The teacher's targets at each response position.

    Args:
        logits: (positions, vocabulary) of the teacher.
        k: tokens kept a position, at most the vocabulary.
    """
    log_probs = F.log_softmax(_at_least_float32(logits), dim=-1)
    top = log_probs.topk(min(k, log_probs.shape[-1]), dim=-1)
    return Targets(top.values, top.indices, _rest(log_probs, top.indices))


def kl_to_targets(logits: torch.Tensor, targets: Targets) -> torch.Tensor:
    """Mean KL(teacher || model) over the (positions, vocabulary) logits, in nats; 0 when both agree.

    With k smaller than the vocabulary the tail counts as one outcome, so this is a lower bound of the whole KL.
    """
    log_probs = F.log_softmax(_at_least_float32(logits), dim=-1)
    inside = _divergence(targets.log_probs, log_probs.gather(-1, targets.tokens)).sum(dim=-1)
    if targets.tokens.shape[-1] == log_probs.shape[-1]:
        return inside.mean()
    return (inside + _divergence(targets.rest, _rest(log_probs, targets.tokens))).mean()


def _at_least_float32(logits: torch.Tensor) -> torch.Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _divergence(teacher: torch.Tensor, ours: torch.Tensor) -> torch.Tensor:
    """p log(p/q) of each outcome, from log-probabilities."""
    return teacher.exp() * (teacher - ours)


def _rest(log_probs: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """(positions,) log of the probability outside ``tokens``: summed, since one minus a sum near 1 keeps no digits."""
    return log_probs.scatter(-1, tokens, -torch.inf).logsumexp(dim=-1)
