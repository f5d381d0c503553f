"""Adding patches to weights: θ' = θ + α MS⊙rS⊙δS + β MO⊙rO⊙δO, as sparse edits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from patches.backends import TaskVector
from patches.mask import (
    AccumulateName,
    Mask,
    Masks,
    difference,
    exclude_claimed,
    retention_mask,
    top_mask,
    underfilled,
)
from patches.model import decoder_linears

SAFETY, OVER_SAFETY = 1, 2
Claims = Mapping[str, tuple[Mask, Mask]]
"""Per tensor: entries that earlier safety patches, and earlier over-safety patches, wrote."""


@dataclass(frozen=True)
class Setting:
    """One point of the coefficient search."""

    retention_rate: float
    safety_fraction: float
    over_safety_fraction: float
    alpha: float
    beta: float


@dataclass(frozen=True)
class Patches:
    """Both patches of a round with their scores; everything a merge needs beside a setting."""

    safety: TaskVector
    over_safety: TaskVector
    safety_scores: TaskVector
    over_safety_scores: TaskVector
    joint: bool
    """One mask over the sum of both, for sequential patches; else difference sets."""
    accumulate: AccumulateName
    rescale: bool
    claims: Claims
    seed: int


@dataclass(frozen=True)
class SparseDelta:
    """What a merge adds to one tensor."""

    indices: torch.Tensor  # (entries,) int64, sorted, into the flattened tensor
    deltas: torch.Tensor  # (entries,) float32
    kinds: torch.Tensor  # (entries,) uint8: SAFETY, OVER_SAFETY, or both added


SparsePatch = dict[str, SparseDelta]


def masks(patches: Patches, setting: Setting) -> tuple[Masks, Masks]:
    """(MS, MO) of a setting: top sets, difference sets, without what earlier rounds claimed; empty at a coefficient of 0."""
    safety: Masks = {}
    over_safety: Masks = {}
    for name in patches.safety:
        pair = _tensor_masks(patches, setting, name)
        marked, marked_over = exclude_claimed(*pair, patches.claims.get(name), patches.accumulate)
        safety[name], over_safety[name] = marked & (setting.alpha != 0), marked_over & (setting.beta != 0)
    return safety, over_safety


def shortfall(patches: Patches, setting: Setting, floor: float) -> str:
    """Why a set of a merge is too small to be meant; empty when none is.

    A patch that is zero, or has a coefficient of 0, is not meant to fill its set.

    Args:
        floor: share of the entries of all matrices together that a set must hold, in [0, 1].
    """
    marked, marked_over = masks(patches, setting)
    kinds = (
        ("safety", marked, patches.safety, setting.alpha),
        ("over-safety", marked_over, patches.over_safety, setting.beta),
    )
    meant = [(kind, found) for kind, found, patch, share in kinds if share != 0 and is_something(patch)]
    return "; ".join(reason for kind, found in meant if (reason := underfilled(found, floor, kind)))


def is_something(patch: TaskVector) -> bool:
    """Whether a patch changes any entry."""
    return any(bool(delta.any()) for delta in patch.values())


def merged_patch(patches: Patches, setting: Setting) -> SparsePatch:
    """α MS⊙rS⊙δS + β MO⊙rO⊙δO, entries that stay zero left out."""
    marked_safety, marked_over = masks(patches, setting)
    return {
        name: _merge_tensor(patches, setting, name, marked_safety[name], marked_over[name]) for name in patches.safety
    }


def touched_fraction(patch: SparsePatch, num_entries: int) -> float:
    """Entries that a merged patch writes, as a share of ``num_entries``."""
    return sum(delta.indices.numel() for delta in patch.values()) / num_entries


@contextmanager
def merged(model: PreTrainedModel, patch: SparsePatch) -> Iterator[None]:
    """The model with a sparse patch added; the old values are assigned back at the end, not subtracted."""
    weights = decoder_linears(model)
    undo: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    with torch.no_grad():
        try:
            for name, delta in patch.items():
                flat = weights[name].data.view(-1)
                indices = delta.indices.to(flat.device)
                old = flat[indices]
                undo.append((flat, indices, old))
                flat[indices] = (old.float() + delta.deltas.to(flat.device)).to(flat.dtype)
            yield
        finally:
            for flat, indices, old in undo:
                flat[indices] = old


@contextmanager
def shifted(model: PreTrainedModel, task_vector: TaskVector) -> Iterator[None]:
    """The model moved by a whole task vector, and put back bit for bit at the end."""
    weights = decoder_linears(model)
    before = {name: weights[name].data.clone() for name in task_vector}
    try:
        for name, delta in task_vector.items():
            data = weights[name].data
            weights[name].data = (data.float() + delta.to(data.device)).to(data.dtype)
        yield
    finally:
        for name, data in before.items():
            weights[name].data = data


def _tensor_masks(patches: Patches, setting: Setting, name: str) -> tuple[Mask, Mask]:
    if patches.joint:
        together = (setting.alpha * patches.safety[name] + setting.beta * patches.over_safety[name]).abs()
        mask = top_mask(together, setting.safety_fraction)
        return mask & (patches.safety[name] != 0), mask & (patches.over_safety[name] != 0)
    return difference(
        _top(patches.safety_scores[name], patches.safety[name], setting.safety_fraction),
        _top(patches.over_safety_scores[name], patches.over_safety[name], setting.over_safety_fraction),
    )


def _top(score: torch.Tensor, delta: torch.Tensor, fraction: float) -> Mask:
    """The top set of a patch; an entry that the patch does not change is in none, so a zero patch claims nothing."""
    return top_mask(score, fraction) & (delta != 0)


def _merge_tensor(patches: Patches, setting: Setting, name: str, marked_safety: Mask, marked_over: Mask) -> SparseDelta:
    safety = _kept(patches, setting, name, marked_safety, "safety")
    over_safety = _kept(patches, setting, name, marked_over, "over_safety")
    scale = 1 / setting.retention_rate if patches.rescale and setting.retention_rate > 0 else 1.0
    total = scale * (
        setting.alpha * patches.safety[name] * safety + setting.beta * patches.over_safety[name] * over_safety
    )
    flat = total.flatten()
    indices = flat.nonzero().flatten()
    kinds = (safety.flatten()[indices] * SAFETY + over_safety.flatten()[indices] * OVER_SAFETY).to(torch.uint8)
    return SparseDelta(indices, flat[indices], kinds)


def _kept(patches: Patches, setting: Setting, name: str, marked: Mask, kind: str) -> Mask:
    if setting.retention_rate >= 1:
        return marked
    drawn = retention_mask(marked.shape, setting.retention_rate, seed=patches.seed, key=f"{kind}:{name}")
    return marked & drawn
