"""The change of one matrix as a product of two thin ones, as a LoRA adapter holds it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

EXACT_UP_TO = 2048
"""Matrices whose smaller side is longer are decomposed by a randomised method: the exact one takes minutes each."""
_ITERATIONS, _EXTRA = 4, 16


@dataclass(frozen=True, eq=False)
class LowRank:
    """The nearest matrix of a rank to a change, `up @ down`."""

    up: Tensor
    """(out, rank), float32."""
    down: Tensor
    """(rank, in), float32."""
    squared_norm: float
    """Of the change: the sum of its squared entries."""
    squared_error: float
    """Of the change minus `up @ down`."""
    spectrum: tuple[float, ...] | None
    """Squared singular values of the change, falling; None where only the largest are known."""

    @property
    def relative_error(self) -> float:
        """Frobenius norm of what is lost over that of the change; 0 for no change."""
        return math.sqrt(self.squared_error / self.squared_norm) if self.squared_norm else 0.0


def truncate(change: Tensor, rank: int) -> LowRank:
    """The nearest matrix of rank `rank` (or of the change's own, if that is smaller), its error measured, not estimated.

    Equal arguments give equal results. Missing ranks are filled with zeros, so that every matrix gets the same.

    Args:
        change: (out, in), float32.
        rank: 1 or more.
    Source: arXiv 2106.09685 (LoRA); Eckart-Young-Mirsky; arXiv 0909.4061 (randomised decomposition).
    """
    if rank < 1:
        raise ValueError(f"rank {rank}; it must be 1 or more")
    kept = min(rank, *change.shape)
    left, singular, right, is_exact = _decompose(change, kept)
    root = singular[:kept].sqrt()
    up, down = left[:, :kept] * root, root[:, None] * right[:kept]
    return LowRank(
        up=_padded(up, (change.shape[0], rank)),
        down=_padded(down, (rank, change.shape[1])),
        squared_norm=_squared(change),
        squared_error=_squared(change - up @ down),
        spectrum=tuple((singular.double() ** 2).tolist()) if is_exact else None,
    )


def least_rank(parts: list[LowRank], max_error: float) -> int | None:
    """The least common rank at which the relative error of all parts together is at most `max_error`.

    None where a spectrum is not known whole, or no rank is enough.
    """
    spectra = [part.spectrum for part in parts]
    total = sum(part.squared_norm for part in parts)
    longest = max((len(spectrum) for spectrum in spectra if spectrum), default=0)
    if any(spectrum is None for spectrum in spectra):
        return None
    for rank in range(1, longest + 1):
        lost = sum(sum(spectrum[rank:]) for spectrum in spectra if spectrum)
        if lost <= max_error**2 * total:
            return rank
    return None


def _decompose(change: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor, bool]:
    """Left vectors (out, k), singular values (k,), right vectors (k, in), and whether these are all of them."""
    if min(change.shape) <= EXACT_UP_TO:
        left, singular, right = torch.linalg.svd(change, full_matrices=False)
        return left, singular, right, True
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        columns = min(rank + _EXTRA, *change.shape)
        left, singular, vectors = torch.svd_lowrank(change, q=columns, niter=_ITERATIONS)
    return left, singular, vectors.T, False


def _squared(matrix: Tensor) -> float:
    return float(matrix.double().square().sum())


def _padded(matrix: Tensor, shape: tuple[int, int]) -> Tensor:
    padded = matrix.new_zeros(shape)
    padded[: matrix.shape[0], : matrix.shape[1]] = matrix
    return padded
