"""Work that runs out of memory comes to the same in smaller pieces."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from patches.generate import Generator
from patches.memory import in_pieces
from patches.snip import _RowGradients, scores
from patches.terms import Runner, hold, row_nll
from tests.tiny_model import PAIRS, asked, encode_pairs

ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory"),
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
]


def _short_of_memory(most: int, error: Exception, sizes: list[int]) -> Any:
    def work(items: Sequence[int]) -> list[int]:
        sizes.append(len(items))
        if len(items) > most:
            raise error
        return [10 * item for item in items]

    return work


@pytest.mark.parametrize("error", ERRORS, ids=["torch", "python", "cpu"])
def test_what_does_not_fit_is_halved_until_it_does_and_comes_in_order(error: Exception) -> None:
    sizes: list[int] = []
    found = list(in_pieces(_short_of_memory(2, error, sizes), range(7), "count"))
    assert [item for items, _ in found for item in items] == list(range(7))
    assert [value for _, values in found for value in values] == [10 * item for item in range(7)]
    assert max(len(items) for items, _ in found) == 2 and sizes[:2] == [7, 3]


def test_one_item_that_does_not_fit_is_told_with_what_helps() -> None:
    with pytest.raises(MemoryError, match="no memory to count, even one at a time; a smaller model"):
        list(in_pieces(_short_of_memory(0, MemoryError(), []), range(4), "count"))


def test_another_error_is_not_taken_for_a_lack_of_memory() -> None:
    sizes: list[int] = []
    with pytest.raises(RuntimeError, match="shapes"):
        list(in_pieces(_short_of_memory(1, RuntimeError("shapes differ"), sizes), range(4), "count"))
    assert sizes == [4]


def _forward_of_at_most(monkeypatch: pytest.MonkeyPatch, most: int, name: str, owner: type) -> list[int]:
    """Lets a method work on so many rows at once and no more; the sizes it was asked for."""
    sizes: list[int] = []
    real = getattr(owner, name)

    def scarce(self: Any, rows: Sequence[Any]) -> Any:
        sizes.append(len(rows))
        if len(rows) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, rows)

    monkeypatch.setattr(owner, name, scarce)
    return sizes


def test_answers_are_the_same_with_memory_for_two_prompts_at_a_time(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = Generator(model, tokenizer, 8)
    prompts = [asked(prompt) for prompt, _ in PAIRS]
    expected = generator.answer(prompts)
    sizes = _forward_of_at_most(monkeypatch, 2, "_greedy", Generator)
    fractions: list[float] = []
    assert generator.answer(prompts, fractions.append) == expected
    assert max(sizes) > 2 and fractions == sorted(fractions) and fractions[-1] == 1.0


def test_scores_are_the_same_with_memory_for_two_rows_at_a_time(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, runner = encode_pairs(tokenizer), Runner(model, 0, 10_000)
    expected = scores(runner, rows, {}, kind="base", progress=lambda done: None)
    sizes: list[int] = []
    real = _RowGradients._add

    def scarce(self: Any, name: str, given: torch.Tensor, gradient: torch.Tensor) -> None:
        sizes.append(len(given))
        real(self, name, given, gradient)
        if len(given) > 2:  # in the middle of a pass: what was added is not added twice
            raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(_RowGradients, "_add", scarce)
    found = scores(runner, rows, {}, kind="base", progress=lambda done: None)
    assert max(sizes) == len(rows) and sizes[-1] <= 2
    for name, score in found.items():
        torch.testing.assert_close(score, expected[name], rtol=1e-4, atol=1e-7)


def test_a_row_that_there_is_no_memory_to_score_is_told(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = encode_pairs(tokenizer)
    sizes = _forward_of_at_most(monkeypatch, 0, "forward", Runner)
    with pytest.raises(MemoryError, match=rf"no memory to score one row of {max(len(row.ids) for row in rows)} tokens"):
        scores(Runner(model, 0, 10_000), rows, {}, kind="base", progress=lambda done: None)
    assert sizes == sorted(sizes, reverse=True) and len(sizes) > 1


def test_losses_and_held_answers_are_the_same_with_memory_for_one_row_at_a_time(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, runner = encode_pairs(tokenizer), Runner(model, 0, 10_000)
    losses, held = row_nll(runner, rows), hold(runner, rows, weight=1.0, name="held")
    sizes = _forward_of_at_most(monkeypatch, 1, "forward", Runner)
    torch.testing.assert_close(row_nll(runner, rows), losses)
    again = hold(runner, rows, weight=1.0, name="held")
    for found, expected in zip(again.targets, held.targets, strict=True):
        torch.testing.assert_close(found.log_probs, expected.log_probs)
        torch.testing.assert_close(found.rest, expected.rest)
    assert max(sizes) == len(rows) > 1
