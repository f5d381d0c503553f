"""Which entries of a patch are merged: top sets, difference sets, random retention, and what earlier rounds claimed."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Literal

import torch

Mask = torch.Tensor
Masks = dict[str, Mask]
AccumulateName = Literal["opposed", "protect", "off"]


def top_mask(score: torch.Tensor, fraction: float) -> Mask:
    """Mark the highest-scoring entries of one matrix.

    Exactly ``int(fraction * numel)`` entries are true; of equal scores the ones that stand first win, so equal
    inputs give equal masks.

    Args:
        score: any shape, >= 0.
        fraction: share of entries kept, in [0, 1].
    Returns:
        Bool tensor, shape of ``score``.
    Raises:
        ValueError: ``fraction`` is outside [0, 1].
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction {fraction}; allowed: 0 to 1")
    return top_count(score.flatten(), int(fraction * score.numel())).view(score.shape)


def top_count(score: torch.Tensor, count: int) -> Mask:
    """Mark the ``count`` highest of (n,) scores, all where there are no more; of equal ones those that stand first."""
    if count >= len(score):
        return torch.ones_like(score, dtype=torch.bool)
    if count == 0:
        return torch.zeros_like(score, dtype=torch.bool)
    threshold = score.kthvalue(len(score) - count + 1).values
    mask = score > threshold
    ties = (score == threshold).nonzero().flatten()
    mask[ties[: count - int(mask.sum())]] = True
    return mask


def top_masks(scores: Mapping[str, torch.Tensor], fraction: float) -> Masks:
    """`top_mask` of every matrix by itself."""
    return {name: top_mask(score, fraction) for name, score in scores.items()}


def retention_mask(shape: torch.Size, rate: float, *, seed: int, key: str) -> Mask:
    """Keep each entry with probability ``rate``, drawn in float32 from a generator of its own.

    Args:
        rate: p, in [0, 1].
        seed: the round's.
        key: what is drawn, "safety:<tensor name>"; equal seed and key give equal masks.
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"retention rate {rate}; allowed: 0 to 1")
    generator = torch.Generator().manual_seed(seed ^ zlib.crc32(key.encode()))
    return torch.rand(shape, generator=generator, dtype=torch.float32) < rate


def difference(safety: Mask, over_safety: Mask) -> tuple[Mask, Mask]:
    """(TS \\ TO, TO \\ TS). Source: arXiv 2405.13820."""
    return safety & ~over_safety, over_safety & ~safety


def exclude_claimed(
    safety: Mask, over_safety: Mask, claimed: tuple[Mask, Mask] | None, accumulate: AccumulateName
) -> tuple[Mask, Mask]:
    """The masks without what earlier rounds claimed.

    Args:
        claimed: entries that earlier safety patches, and earlier over-safety patches, wrote; None = no earlier round.
        accumulate: opposed: keep off the *other* kind's; protect: keep off both kinds'; off: keep off nothing.
    """
    if claimed is None or accumulate == "off":
        return safety, over_safety
    by_safety, by_over_safety = claimed
    if accumulate == "protect":
        free = ~(by_safety | by_over_safety)
        return safety & free, over_safety & free
    return safety & ~by_over_safety, over_safety & ~by_safety


def overlap(first: Mapping[str, Mask], second: Mapping[str, Mask]) -> dict[str, float]:
    """Intersection over union of two sets, a matrix at a time: 0 disjoint, 1 identical, 0 where both are empty."""
    return {
        name: float((mask & second[name]).sum()) / max(1.0, float((mask | second[name]).sum()))
        for name, mask in first.items()
    }


def sizes(masks: Mapping[str, Mask]) -> dict[str, float]:
    """Share of each matrix that is marked."""
    return {name: float(mask.float().mean()) for name, mask in masks.items()}


def underfilled(num_marked: int, num_entries: int, floor: float, kind: str) -> str:
    """What is wrong with a set whose share of all entries is under ``floor``; empty when nothing is."""
    if num_marked >= floor * num_entries:
        return ""
    return f"the {kind} set holds {num_marked} of {num_entries} entries, under the floor of {floor:g}"
