"""Some entries of a weight as a parameter of their own, so that optimizer state, gradients and undo shrink with a mask."""

from __future__ import annotations

from typing import Final

import torch
from torch.utils.hooks import RemovableHandle

from patches.mask import Mask

INT32_MAX: Final = torch.iinfo(torch.int32).max


class MarkedEntries:
    """The marked entries of one weight, trained while the others stand still.

    The weight keeps its type and its place in the graph. Its gradient, which autograd computes whole, is gathered into
    `values.grad` as soon as it is there and freed, so that one whole gradient at a time takes memory. Gathered
    gradients add up over backward passes in float32.
    """

    def __init__(self, weight: torch.Tensor, mask: Mask) -> None:
        """Nothing of the weight is changed yet.

        Args:
            weight: a contiguous leaf of any floating type.
            mask: bool, shape of ``weight``.
        """
        self._weight = weight
        places = mask.to(weight.device).flatten().nonzero().flatten()
        # (entries,) sorted; of a matrix of 2^31 entries, which no model has yet, they would not fit
        self._indices = places.int() if weight.numel() <= INT32_MAX else places
        before = weight.detach().view(-1)[places]
        self._before = before.cpu()  # (entries,) of the weight's type; not needed while it is trained
        self._hook: RemovableHandle | None = None
        # (entries,) what an optimizer steps
        self.values = before.to(torch.float32, copy=True).requires_grad_(True)

    def open(self) -> None:
        """Let backward passes through the weight reach `values`."""
        self._weight.requires_grad_(True)
        self._hook = self._weight.register_post_accumulate_grad_hook(self._gather)  # type: ignore[no-untyped-call]

    def write(self) -> None:
        """Give the weight the present values, rounded to its type."""
        with torch.no_grad():
            self._weight.view(-1)[self._indices] = self.values.to(self._weight.dtype)

    def delta(self) -> torch.Tensor:
        """Values now minus values at first: float32 on the CPU, shape of the weight, zero where nothing is marked."""
        whole = torch.zeros(self._weight.shape)
        whole.view(-1)[self._indices.cpu()] = self.values.detach().cpu() - self._before.float()
        return whole

    def close(self) -> None:
        """The weight as it was, bit for bit: the old values are assigned, not computed."""
        if self._hook is not None:
            self._hook.remove()
        self._weight.requires_grad_(False)
        self._weight.view(-1)[self._indices] = self._before.to(self._weight.device)

    def _gather(self, weight: torch.Tensor) -> None:
        whole, weight.grad = weight.grad, None
        assert whole is not None
        found = whole.reshape(-1)[self._indices].float()
        self.values.grad = found if self.values.grad is None else self.values.grad + found
