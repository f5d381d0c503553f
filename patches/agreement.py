"""How far apart what two models say next is, on the same texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

MAX_POSITIONS = 32
"""Of each text, the last ones: the answer begins after them."""


@dataclass(frozen=True)
class Agreement:
    """How well a model follows a reference."""

    num_positions: int
    mean_kl: float
    """KL(reference || model), nats a token."""
    max_kl: float
    same_top_rate: float
    """Share of positions where both hold the same token for the likeliest."""
    max_abs_logit_difference: float


@torch.no_grad()
def next_logits(model: nn.Module, texts: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Logits at the last `MAX_POSITIONS` positions of each text, one after the other: (positions, vocabulary), float32."""
    found = []
    for text in texts:
        logits = model(input_ids=torch.tensor([list(text)], device=device)).logits[0, -MAX_POSITIONS:]
        found.append(logits.float().cpu())
    return torch.cat(found)


def agreement(reference: Tensor, logits: Tensor) -> Agreement:
    """How well `logits` follow `reference`; both (positions, vocabulary), float32, at least one position."""
    if reference.shape != logits.shape or not len(reference):
        raise ValueError(f"logits of shape {tuple(logits.shape)} against {tuple(reference.shape)}")
    of_reference, of_model = reference.log_softmax(-1), logits.log_softmax(-1)
    kl = (of_reference.exp() * (of_reference - of_model)).sum(-1).clamp(min=0)
    return Agreement(
        num_positions=len(kl),
        mean_kl=float(kl.mean()),
        max_kl=float(kl.max()),
        same_top_rate=float((reference.argmax(-1) == logits.argmax(-1)).float().mean()),
        max_abs_logit_difference=float((reference - logits).abs().max()),
    )
