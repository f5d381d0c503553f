"""Greedy answers to many prompts at once; the one generation setting that every number is measured with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, cast

import torch
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from patches.chat import Messages, encode_prompt, end_ids, pad_id
from patches.guess import agreed
from patches.memory import in_pieces
from patches.terms import Runner

Said = MutableMapping[tuple[int, ...], list[int]]
"""By the token ids of a text, those of the answer, the end token included where one came."""
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
    said: Said | None = None
    """What was last said to each text by whatever model: guessed first, and replaced. None: nothing is guessed.

    Changes how long answers take and not what they are, but for the rounding of equally likely tokens."""

    def answer(
        self, prompts: Sequence[Messages], progress: Callable[[float], None] = lambda fraction: None
    ) -> list[Generation]:
        """One answer a prompt, in order. The same prompts in the same order give the same answers."""
        return self.go_on([encode_prompt(self.tokenizer, prompt) for prompt in prompts], progress)

    def go_on(
        self, coded: Sequence[list[int]], progress: Callable[[float], None] = lambda fraction: None
    ) -> list[Generation]:
        """How each text goes on, given as token ids; in order."""
        answers = self._guessed(coded)
        begun = {i: [*coded[i], *tokens] for i, tokens in enumerate(answers) if not self._is_whole(tokens)}
        if len(begun) < len(coded):
            progress(1 - len(begun) / len(coded))
        num_left = len(begun)
        for group in self._groups(begun):
            num_new = self.max_new_tokens - min(len(answers[i]) for i in group)
            for piece, generated in in_pieces(
                partial(self._greedy_of, begun, num_new=num_new), group, "answer prompts"
            ):
                for i, more in zip(piece, generated, strict=True):
                    answers[i] = [*answers[i], *more][: self.max_new_tokens]
                num_left -= len(piece)
                progress(1 - num_left / len(coded))
        if self.said is not None:
            self.said.update(zip(map(tuple, coded), answers, strict=True))
        return list(map(self._decode, answers))

    def _guessed(self, coded: Sequence[list[int]]) -> list[list[int]]:
        """How each answer begins, as far as what was said before tells; nothing where nothing was."""
        said, begun = self.said or {}, [list[int]() for _ in coded]
        known = [i for i, text in enumerate(coded) if said.get(tuple(text))]
        if known:
            guesses = [said[tuple(coded[i])][: self.max_new_tokens] for i in known]
            runner = Runner(self.model, pad_id(self.tokenizer), 0)
            for i, tokens in zip(known, agreed(runner, [coded[i] for i in known], guesses), strict=True):
                begun[i] = self._until_end(tokens)
        return begun

    def _is_whole(self, tokens: Sequence[int]) -> bool:
        return len(tokens) >= self.max_new_tokens or (bool(tokens) and tokens[-1] in self._ends())

    def _groups(self, texts: Mapping[int, Sequence[int]]) -> list[list[int]]:
        """Texts of similar length together, so that padding stays small."""
        most = BATCH_TOKENS[self.model.device.type]
        groups: list[list[int]] = []
        for i in sorted(texts, key=lambda i: (len(texts[i]), i)):
            width = len(texts[i]) + self.max_new_tokens
            if not groups or width * (len(groups[-1]) + 1) > most:
                groups.append([])
            groups[-1].append(i)
        return groups

    def _greedy_of(self, texts: Mapping[int, list[int]], picked: Sequence[int], *, num_new: int) -> list[list[int]]:
        return self._greedy([texts[i] for i in picked], num_new)

    @torch.no_grad()
    def _greedy(self, prompts: Sequence[list[int]], num_new: int) -> list[list[int]]:
        """New token ids of each prompt, so many at most, the end token included where one came.

        Answers that have ended leave the batch as soon as they are half of it.
        """
        ids, attention = self._left_padded(prompts)
        ends = torch.tensor(sorted(self._ends()), device=ids.device)
        cache = DynamicCache(config=self.model.config)
        positions = (attention.cumsum(dim=1) - 1).clamp_min(0)
        picked = ids.new_full((len(prompts), num_new), int(ends[0]))
        asked = torch.arange(len(prompts), device=ids.device)  # the prompt of each row that is still in the batch
        going_on = torch.ones_like(asked, dtype=torch.bool)
        for step in range(num_new):
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
