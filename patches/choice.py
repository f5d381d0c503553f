"""Which entries of a model a round may change, by SNIP scores of several sets of rows together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch

from patches.chat import Encoded
from patches.errors import NothingTrainedError
from patches.mask import Mask, Masks, top_count
from patches.snip import CPU, Scores, scores
from patches.terms import Runner


def choose_entries(
    runner: Runner,
    sets: Sequence[Sequence[Encoded]],
    *,
    fraction: float,
    progress: Callable[[float], None],
    taken: Mapping[str, Mask] | None = None,
    first: Mapping[str, Mask] | None = None,
) -> Masks:
    """Of every decoder matrix the entries that bear most on all sets: |w dL/dw|, each set's scores scaled to sum 1.

    Ranked over all matrices together most entries lie in the first layer, and what every answer is made from goes wrong
    with it.

    Args:
        sets: of rows; at least one set, each with a row.
        fraction: share of a matrix's entries, in [0, 1].
        taken: entries that are not to be chosen.
        first: entries that are chosen before all others, however these score.
    Returns:
        Bool masks on the CPU, shaped like the weights; exactly ``int(fraction * numel)`` entries, or fewer where the free
        ones are fewer.
    Raises:
        ValueError: no set, or one without a row; ``fraction`` is outside [0, 1].
        NothingTrainedError: no entry has a gradient on one of the sets.
    """
    if not sets or not all(sets):
        raise ValueError(f"{len(sets)} sets of {[len(rows) for rows in sets]} rows: at least one set, each with a row")
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction {fraction}; allowed: 0 to 1")
    device = runner.model.device  # where a GPU ranks in seconds what takes a CPU minutes
    parts: list[tuple[Scores, float]] = []
    for number, rows in enumerate(sets):
        is_last = number == len(sets) - 1  # the others wait where there is room for them
        score = scores(
            runner,
            rows,
            {},
            kind="base",
            progress=_part(progress, number, len(sets)),
            device=device if is_last else CPU,
        )
        whole = sum(float(each.sum()) for each in score.values())
        if whole == 0:
            raise NothingTrainedError(f"no entry has a gradient on {len(rows)} rows: nothing to choose from")
        parts.append((score, whole))
    ranked = partial(_ranked, parts, fraction=fraction, taken=taken or {}, first=first or {}, device=device)
    return {name: ranked(name) for name in list(parts[0][0])}


def _ranked(
    parts: Sequence[tuple[Scores, float]],
    name: str,
    *,
    fraction: float,
    taken: Mapping[str, Mask],
    first: Mapping[str, Mask],
    device: torch.device,
) -> Mask:
    """The entries of one matrix, whose scores are let go of."""
    total = sum(score.pop(name).to(device).div_(whole) for score, whole in parts)
    assert isinstance(total, torch.Tensor)
    free = ~taken[name].to(device) if name in taken else None
    early = first[name].to(device) if name in first else None
    return _highest(total, int(fraction * total.numel()), free, early).cpu()


def _highest(score: torch.Tensor, count: int, free: Mask | None, early: Mask | None) -> Mask:
    """The ``count`` highest of the free entries, those that come early before others; None: all are free, or none is early."""
    if early is None:
        return _of(score, count, free)
    others = ~early if free is None else free & ~early
    chosen = _of(score, count, early if free is None else free & early)
    return chosen | _of(score, count - int(chosen.sum()), others)


def _of(score: torch.Tensor, count: int, among: Mask | None) -> Mask:
    """The highest of some entries, all of them where there are no more than ``count``; None: of all entries."""
    if among is None:
        return top_count(score.flatten(), count).view(score.shape)
    found = among.clone()
    found[among] = top_count(score[among], count)
    return found


def _part(progress: Callable[[float], None], number: int, count: int) -> Callable[[float], None]:
    """Progress of one of several parts of equal length."""
    return lambda done: progress((number + done) / count)
