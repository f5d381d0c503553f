"""What can go wrong while patches are made. The current version stays; the round fails with the message."""

from __future__ import annotations


class PatchError(Exception):
    """Root: the round cannot go on. Messages hold names and numbers, never prompt or response text."""


class NonFiniteError(PatchError):
    """A loss, a gradient or a score is NaN or infinite."""


class NothingTrainedError(PatchError):
    """Training would be, or was, without effect: no response tokens, zero gradient, or unchanged weights."""


class EmptyDifferenceSetError(PatchError):
    """A difference set is smaller than the policy's floor: both patches claim the same entries."""


class ModelUnsuitableError(PatchError):
    """The model or its tokenizer cannot be worked with: no chat template, no decoder linear layers, …"""


class JudgeError(PatchError):
    """The judge cannot be asked or read: its model, its server, its settings. No batch is to blame; it is tried again."""
