"""Conversations as token ids, through the model's own chat template.

Prompt and response are tokenised once, together; the boundary comes from character offsets. So the response's tokens
are the ones that the model would produce, whatever the tokenizer does at the seam.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from patches.errors import ModelUnsuitableError

Messages = Sequence[dict[str, str]]
IGNORED = -100


@dataclass(frozen=True)
class Encoded:
    """One conversation: ``ids[prompt_length:]`` are the response's tokens, its end of turn included."""

    ids: tuple[int, ...]
    prompt_length: int

    @property
    def num_response_tokens(self) -> int:
        """Tokens that carry loss."""
        return len(self.ids) - self.prompt_length


@dataclass(frozen=True)
class Padded:
    """A right-padded batch of conversations."""

    ids: torch.Tensor  # (rows, tokens) int64
    attention: torch.Tensor  # (rows, tokens) int64, 1 where there is a token
    labels: torch.Tensor  # (rows, tokens) int64, IGNORED outside the response

    @property
    def predicts_response(self) -> torch.Tensor:
        """(rows, tokens) bool: whether the next token belongs to the response."""
        following = self.labels.new_full(self.labels.shape, IGNORED)
        following[:, :-1] = self.labels[:, 1:]
        return following != IGNORED


def prompt_text(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> str:
    """The rendered prompt, ending where the assistant's answer begins."""
    return str(tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True))


def encode_prompt(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> list[int]:
    """Token ids to generate from."""
    return list(tokenizer(prompt_text(tokenizer, messages), add_special_tokens=False)["input_ids"])


def encode_row(
    tokenizer: PreTrainedTokenizerBase, messages: Messages, response: str, *, max_length: int
) -> Encoded | None:
    """Prompt and response as one sequence, the response cut at ``max_length`` tokens.

    Returns:
        None when the prompt leaves no room for a single response token.
    Raises:
        ModelUnsuitableError: the chat template does not render the response behind the prompt.
    """
    prompt = prompt_text(tokenizer, messages)
    text = _whole_text(tokenizer, messages, response)
    if not text.startswith(prompt):
        raise ModelUnsuitableError("the chat template does not put the answer right behind the generation prompt")
    coded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids: list[int] = coded["input_ids"]
    boundary = next((i for i, (start, _) in enumerate(coded["offset_mapping"]) if start >= len(prompt)), len(ids))
    ids = _cut_after_turn(tokenizer, ids, boundary)[:max_length]
    return Encoded(tuple(ids), boundary) if len(ids) > boundary else None


def broken_off(row: Encoded, other: Encoded, num_kept: int, *, max_length: int) -> Encoded | None:
    """The first ``num_kept`` tokens of a response, which are prompt then, and from there on the response of ``other``.

    Args:
        max_length: tokens of the whole at most; the rest is cut.
    Returns:
        None when that leaves no room for a single token of ``other``'s response.
    """
    start = row.prompt_length + num_kept
    ids = (*row.ids[:start], *other.ids[other.prompt_length :])[:max_length]
    return Encoded(ids, start) if len(ids) > start else None


def pad(rows: Sequence[Encoded], *, pad_id: int, device: torch.device) -> Padded:
    """The rows as one right-padded batch; loss falls on response tokens only."""
    width = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), width), pad_id, dtype=torch.int64)
    attention = torch.zeros((len(rows), width), dtype=torch.int64)
    labels = torch.full((len(rows), width), IGNORED, dtype=torch.int64)
    for i, row in enumerate(rows):
        tokens = torch.tensor(row.ids)
        ids[i, : len(tokens)] = tokens
        attention[i, : len(tokens)] = 1
        labels[i, row.prompt_length : len(tokens)] = tokens[row.prompt_length :]
    return Padded(ids.to(device), attention.to(device), labels.to(device))


def end_ids(tokenizer: PreTrainedTokenizerBase, extra: int | Sequence[int] | None = None) -> frozenset[int]:
    """Token ids that end an assistant's turn: the tokenizer's eos and what the generation config adds."""
    more = [extra] if isinstance(extra, int) else list(extra or ())
    found = {int(token) for token in [tokenizer.eos_token_id, *more] if token is not None}
    if not found:
        raise ModelUnsuitableError("neither the tokenizer nor the generation config names an end-of-turn token")
    return frozenset(found)


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """A token id to pad with; padding is masked, so any will do."""
    return int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (tokenizer.eos_token_id or 0))


def _whole_text(tokenizer: PreTrainedTokenizerBase, messages: Messages, response: str) -> str:
    whole = [*messages, {"role": "assistant", "content": response}]
    return str(tokenizer.apply_chat_template(whole, tokenize=False))


def _cut_after_turn(tokenizer: PreTrainedTokenizerBase, ids: list[int], boundary: int) -> list[int]:
    """Drop what the template writes behind the assistant's end of turn (a newline, usually)."""
    ends = end_ids(tokenizer) if tokenizer.eos_token_id is not None else frozenset()
    for position in range(boundary, len(ids)):
        if ids[position] in ends:
            return ids[: position + 1]
    return ids
