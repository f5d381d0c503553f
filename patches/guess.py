"""Answers that are guessed first: one forward pass tells how much of a guess a model would have said itself.

A round asks several models the same: merges of the search, the candidate, the current version, v0. Most of what one says the
next says too, and a pass over a whole answer costs about as much as one over a single token.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Final

import torch

from patches.chat import Encoded
from patches.memory import in_smaller_passes
from patches.terms import Runner

PASS_TOKENS: Final = 8192
"""Padded tokens of one pass; bounds memory as training's does."""


def agreed(runner: Runner, texts: Sequence[Sequence[int]], guesses: Sequence[Sequence[int]]) -> list[list[int]]:
    """How each answer of greedy decoding begins: as far as its guess is right, and the token that is said instead.

    Args:
        runner: of the model that answers; its `max_tokens` is not used.
        texts: token ids to go on from; at least one.
        guesses: token ids of each answer; at least one token each.
    Returns:
        Token ids, at least one a text: the whole guess where it is right, though the answer may go on behind it.
    """
    rows = [Encoded((*text, *guess), len(text)) for text, guess in zip(texts, guesses, strict=True)]
    order = sorted(range(len(rows)), key=lambda i: (len(rows[i].ids), i))
    lengths = [len(rows[i].ids) for i in order]
    found, _ = in_smaller_passes(
        lambda tokens: _checked(Runner(runner.model, runner.pad_id, tokens), [rows[i] for i in order]),
        max(PASS_TOKENS, max(lengths)),
        lengths,
        "check guessed answers",
    )
    return [begun for _, begun in sorted(zip(order, found, strict=True))]


@torch.no_grad()
def _checked(runner: Runner, rows: Sequence[Encoded]) -> list[list[int]]:
    found: list[list[int]] = []
    for picked in runner.micro_batches(rows):
        part = [rows[i] for i in picked]
        logits, _ = runner.forward(part)
        said = iter(logits.argmax(dim=-1).tolist())
        found += [_begun(row.ids[row.prompt_length :], list(islice(said, row.num_response_tokens))) for row in part]
    return found


def _begun(guess: Sequence[int], said: Sequence[int]) -> list[int]:
    """The tokens that are said, up to the first one that was not guessed: what is said behind that is said of the guess."""
    right = next((i for i, (one, other) in enumerate(zip(guess, said, strict=True)) if one != other), len(guess))
    return list(said[: right + 1])
