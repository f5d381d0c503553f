"""Adding patches to weights: θ' = θ + α MS⊙rS⊙δS + β MO⊙rO⊙δO, as sparse edits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import cast

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
    top_count,
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

    @cached_property
    def support(self) -> dict[str, Support]:
        """Per tensor, the entries that either patch changes: only they can be in a merge, so every merge works on them."""
        return {name: _support(self.safety[name], self.over_safety[name]) for name in self.safety}


@dataclass(frozen=True)
class Support:
    """The entries of one tensor that either patch changes, n of them."""

    indices: torch.Tensor  # (n,) int64, sorted, into the flattened tensor
    safety: torch.Tensor  # (n,) float32
    over_safety: torch.Tensor  # (n,) float32
    has_safety: Mask  # (n,) bool, where the safety patch is not zero
    has_over_safety: Mask  # (n,) bool
    shape: torch.Size
    """Of the tensor."""


@dataclass(frozen=True)
class OldValues:
    """What stood at some places of one tensor before a merge."""

    places: torch.Tensor  # (n,) int64, as the merge has them
    indices: torch.Tensor  # (n,) int64, the same on the model's device
    values: torch.Tensor  # (n,) of the model's type


Before = MutableMapping[str, OldValues]
"""By tensor, what the last merge found in a model; of one model only."""


@dataclass(frozen=True)
class SparseDelta:
    """What a merge adds to one tensor."""

    indices: torch.Tensor  # (entries,) int64, sorted, into the flattened tensor
    deltas: torch.Tensor  # (entries,) float32
    kinds: torch.Tensor  # (entries,) uint8: SAFETY, OVER_SAFETY, or both added


SparsePatch = dict[str, SparseDelta]


def masks(patches: Patches, setting: Setting) -> tuple[Masks, Masks]:
    """(MS, MO) of a setting: top sets, difference sets, without what earlier rounds claimed; empty at a coefficient of 0."""
    found: tuple[Masks, Masks] = ({}, {})
    for name, support in patches.support.items():
        for kind, marked in zip(found, _marked(patches, setting, name), strict=True):
            kind[name] = torch.zeros(support.shape, dtype=torch.bool)
            kind[name].view(-1)[support.indices[marked]] = True
    return found


def shortfall(patches: Patches, setting: Setting, floor: float) -> str:
    """Why a set of a merge is too small to be meant; empty when none is.

    A patch that is zero, or has a coefficient of 0, is not meant to fill its set.

    Args:
        floor: share of the entries of all matrices together that a set must hold, in [0, 1].
    """
    pairs = [_marked(patches, setting, name) for name in patches.support]
    num_entries = sum(support.shape.numel() for support in patches.support.values())
    kinds = (("safety", patches.safety, setting.alpha), ("over-safety", patches.over_safety, setting.beta))
    reasons = [
        underfilled(sum(int(pair[at].sum()) for pair in pairs), num_entries, floor, kind)
        for at, (kind, patch, share) in enumerate(kinds)
        if share != 0 and is_something(patch)
    ]
    return "; ".join(filter(None, reasons))


def is_something(patch: TaskVector) -> bool:
    """Whether a patch changes any entry."""
    return any(bool(delta.any()) for delta in patch.values())


def merged_patch(patches: Patches, setting: Setting) -> SparsePatch:
    """α MS⊙rS⊙δS + β MO⊙rO⊙δO, entries that stay zero left out."""
    return {name: _merge_tensor(patches, setting, name) for name in patches.support}


def touched_fraction(patch: SparsePatch, num_entries: int) -> float:
    """Entries that a merged patch writes, as a share of ``num_entries``."""
    return sum(delta.indices.numel() for delta in patch.values()) / num_entries


@contextmanager
def merged(model: PreTrainedModel, patch: SparsePatch, before: Before | None = None) -> Iterator[None]:
    """The model with a sparse patch added; the old values are assigned back at the end, not subtracted.

    Args:
        before: of an earlier merge on this model as it is now; what a merge at the very same index tensor read is not read
            again, anything else is replaced.
    """
    weights = decoder_linears(model)
    undo: list[tuple[torch.Tensor, OldValues]] = []
    with torch.no_grad():
        try:
            for name, delta in patch.items():
                flat = weights[name].data.view(-1)
                old = _old(flat, delta.indices, before, name)
                undo.append((flat, old))
                new = (old.values.float() + delta.deltas.to(flat.device)).to(flat.dtype)
                flat.index_copy_(0, old.indices, new)
            yield
        finally:
            for flat, old in undo:
                flat.index_copy_(0, old.indices, old.values)


def _old(flat: torch.Tensor, places: torch.Tensor, before: Before | None, name: str) -> OldValues:
    if before is not None and name in before and before[name].places is places:
        return before[name]
    indices = places.to(flat.device)
    # a third of the time of flat[indices] on a CPU
    found = OldValues(places, indices, flat.index_select(0, indices))
    if before is not None:
        before[name] = found
    return found


@contextmanager
def shifted(model: PreTrainedModel, task_vector: TaskVector) -> Iterator[None]:
    """The model moved by a whole task vector, and put back bit for bit at the end."""
    weights = decoder_linears(model)
    # off a GPU, whose memory the training between needs
    before = {name: weights[name].data.to("cpu", copy=True) for name in task_vector}
    try:
        for name, delta in task_vector.items():
            data = weights[name].data
            data.copy_(data.float() + delta.to(data.device))
        yield
    finally:
        for name, old in before.items():
            weights[name].data.copy_(old)  # takes no memory there, which may be what has run out


def _support(safety: torch.Tensor, over_safety: torch.Tensor) -> Support:
    flat, flat_over = safety.flatten(), over_safety.flatten()
    indices = ((flat != 0) | (flat_over != 0)).nonzero().flatten()
    own, own_over = flat[indices], flat_over[indices]
    return Support(indices, own, own_over, own != 0, own_over != 0, safety.shape)


def _marked(patches: Patches, setting: Setting, name: str) -> tuple[Mask, Mask]:
    """(MS, MO) of one tensor on its support, (n,) each."""
    support = patches.support[name]
    claimed = patches.claims.get(name)
    on_support = None if claimed is None else tuple(mask.flatten()[support.indices] for mask in claimed)
    tops = _joint_top(support, setting) if patches.joint else _top_differences(patches, setting, name)
    safety, over_safety = exclude_claimed(*tops, cast("tuple[Mask, Mask] | None", on_support), patches.accumulate)
    return (
        safety if setting.alpha else torch.zeros_like(safety),
        over_safety if setting.beta else torch.zeros_like(over_safety),
    )


def _joint_top(support: Support, setting: Setting) -> tuple[Mask, Mask]:
    count = int(setting.safety_fraction * support.shape.numel())
    if count >= len(support.indices):
        return support.has_safety, support.has_over_safety
    together = (setting.alpha * support.safety + setting.beta * support.over_safety).abs()
    mask = top_count(together, count)
    return mask & support.has_safety, mask & support.has_over_safety


def _top_differences(patches: Patches, setting: Setting, name: str) -> tuple[Mask, Mask]:
    """Difference sets; an entry that a patch does not change is not in its top set, so a zero patch claims nothing."""
    support = patches.support[name]
    safety, over_safety = (
        top_mask(score[name], fraction).flatten()[support.indices] & is_changed
        for score, fraction, is_changed in (
            (patches.safety_scores, setting.safety_fraction, support.has_safety),
            (patches.over_safety_scores, setting.over_safety_fraction, support.has_over_safety),
        )
    )
    return difference(safety, over_safety)


def _merge_tensor(patches: Patches, setting: Setting, name: str) -> SparseDelta:
    support = patches.support[name]
    marked, marked_over = _marked(patches, setting, name)
    safety = _kept(patches, setting, name, marked, "safety")
    over_safety = _kept(patches, setting, name, marked_over, "over_safety")
    total = setting.alpha * _where(safety, support.safety, support.has_safety)
    if setting.beta:
        total += setting.beta * _where(over_safety, support.over_safety, support.has_over_safety)
    if patches.rescale and setting.retention_rate > 0:
        total.mul_(1 / setting.retention_rate)
    # as bytes, 0 or 1, which needs no copy
    kinds = SAFETY * safety.view(torch.uint8) + OVER_SAFETY * over_safety.view(torch.uint8)
    if int(total.count_nonzero()) == len(total):
        return SparseDelta(support.indices, total, kinds)
    written = total.nonzero().flatten()
    return SparseDelta(support.indices[written], total[written], kinds[written])


def _where(mask: Mask, values: torch.Tensor, is_changed: Mask) -> torch.Tensor:
    """The marked values, 0 elsewhere; as they are where the mask is that of what is not 0."""
    return values if mask is is_changed else torch.where(mask, values, 0.0)


def _kept(patches: Patches, setting: Setting, name: str, marked: Mask, kind: str) -> Mask:
    if setting.retention_rate >= 1:
        return marked
    support = patches.support[name]
    drawn = retention_mask(support.shape, setting.retention_rate, seed=patches.seed, key=f"{kind}:{name}")
    return marked & drawn.flatten()[support.indices]
