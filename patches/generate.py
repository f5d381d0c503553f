"""Greedy answers to many prompts at once; the one generation setting that every number is measured with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, cast

import torch
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from patches.chat import Messages, encode_prompt, end_ids, pad_id
from patches.memory import in_pieces

BATCH_TOKENS: Final = {"cpu": 1 << 14, "cuda": 1 << 16}
"""Prompt and answer tokens of one batch together, by device; bounds memory. A batch that has too little is answered in halves."""


@dataclass(frozen=True)
class Generation:
    """One answer."""

    text: str
    finished: bool
    """Ended by itself, not by the token limit."""


@dataclass(frozen=True)
class Generator:
    """A model that answers prompts greedily."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    max_new_tokens: int

    def answer(
        self, prompts: Sequence[Messages], progress: Callable[[float], None] = lambda fraction: None
    ) -> list[Generation]:
        """One answer a prompt, in order. The same prompts in the same order give the same answers."""
        return self.go_on([encode_prompt(self.tokenizer, prompt) for prompt in prompts], progress)

    def go_on(
        self, coded: Sequence[list[int]], progress: Callable[[float], None] = lambda fraction: None
    ) -> list[Generation]:
        """How each text goes on, given as token ids; in order."""
        order = sorted(range(len(coded)), key=lambda i: (len(coded[i]), i))
        answers: dict[int, Generation] = {}
        for group in self._groups(coded, order):
            for piece, generated in in_pieces(
                lambda piece: self._greedy([coded[i] for i in piece]), group, "answer prompts"
            ):
                answers.update(zip(piece, map(self._decode, generated), strict=True))
                progress(len(answers) / len(coded))
        return [answers[i] for i in range(len(coded))]

    def _groups(self, coded: Sequence[list[int]], order: Sequence[int]) -> list[list[int]]:
        """Prompts of similar length together, so that padding stays small."""
        most = BATCH_TOKENS[self.model.device.type]
        groups: list[list[int]] = []
        for i in order:
            width = len(coded[i]) + self.max_new_tokens
            if not groups or width * (len(groups[-1]) + 1) > most:
                groups.append([])
            groups[-1].append(i)
        return groups

    @torch.no_grad()
    def _greedy(self, prompts: Sequence[list[int]]) -> list[list[int]]:
        """New token ids of each prompt, the end token included where one came.

        Answers that have ended leave the batch as soon as they are half of it.
        """
        ids, attention = self._left_padded(prompts)
        ends = torch.tensor(sorted(self._ends()), device=ids.device)
        cache = DynamicCache(config=self.model.config)
        positions = (attention.cumsum(dim=1) - 1).clamp_min(0)
        picked = ids.new_full((len(prompts), self.max_new_tokens), int(ends[0]))
        asked = torch.arange(len(prompts), device=ids.device)  # the prompt of each row that is still in the batch
        going_on = torch.ones_like(asked, dtype=torch.bool)
        for step in range(self.max_new_tokens):
            output = self.model(
                input_ids=ids, attention_mask=attention, position_ids=positions, past_key_values=cache, use_cache=True,
                logits_to_keep=1,
            )  # fmt: skip
            token = output.logits[:, -1].argmax(dim=-1)
            picked[asked, step] = token
            going_on &= ~torch.isin(token, ends)
            num_left = int(going_on.sum())
            if num_left == 0:
                break
            ids, positions = token[:, None], positions[:, -1:] + 1
            attention = torch.cat([attention, attention.new_ones(len(attention), 1)], dim=1)
            if 2 * num_left <= len(asked):
                left = going_on.nonzero().flatten()
                # batch_select_indices would leave the states of linear attention as they are
                cache.reorder_cache(cast(torch.LongTensor, left))
                ids, positions, attention, asked, going_on = (
                    part[left] for part in (ids, positions, attention, asked, going_on)
                )
        return [self._until_end(row) for row in picked.tolist()]

    def _left_padded(self, prompts: Sequence[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        width = max(map(len, prompts))
        filler = pad_id(self.tokenizer)
        ids = torch.tensor([[filler] * (width - len(p)) + p for p in prompts], device=self.model.device)
        mask = [[0] * (width - len(p)) + [1] * len(p) for p in prompts]
        return ids, torch.tensor(mask, device=self.model.device)

    def _ends(self) -> frozenset[int]:
        config = self.model.generation_config
        return end_ids(self.tokenizer, config.eos_token_id if config is not None else None)

    def _until_end(self, tokens: list[int]) -> list[int]:
        ends = self._ends()
        stop = next((i for i, token in enumerate(tokens) if token in ends), None)
        return tokens if stop is None else tokens[: stop + 1]

    def _decode(self, tokens: list[int]) -> Generation:
        finished = bool(tokens) and tokens[-1] in self._ends()
        return Generation(str(self.tokenizer.decode(tokens, skip_special_tokens=True)).strip(), finished)
