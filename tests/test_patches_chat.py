"""Where the response begins, what carries loss, and what is cut."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from patches.chat import IGNORED, Encoded, broken_off, encode_prompt, encode_row, end_ids, pad, pad_id, prompt_text
from patches.errors import ModelUnsuitableError
from tests.tiny_model import END, PAIRS, asked, encode_pairs

TEXT = st.text(alphabet=st.characters(exclude_characters="<>", codec="utf-8"), min_size=1, max_size=30)


def text_of(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids)))


def row_of(tokenizer: PreTrainedTokenizerBase, prompt: str, response: str, max_length: int = 256) -> Encoded:
    row = encode_row(tokenizer, asked(prompt), response, max_length=max_length)
    assert row is not None
    return row


@pytest.mark.parametrize(("prompt", "response"), PAIRS)
def test_response_tokens_are_exactly_the_responses_own_and_the_end_of_turn(
    tokenizer: PreTrainedTokenizerBase, prompt: str, response: str
) -> None:
    row = row_of(tokenizer, prompt, response)
    own = tokenizer(response, add_special_tokens=False)["input_ids"]
    assert list(row.ids[row.prompt_length :]) == [*own, tokenizer.eos_token_id]
    assert list(row.ids[: row.prompt_length]) == encode_prompt(tokenizer, asked(prompt))
    assert row.num_response_tokens == len(own) + 1


@given(prompt=TEXT, response=TEXT)
def test_any_text_comes_back_from_its_labels_and_the_prompt_never_carries_loss(
    tokenizer: PreTrainedTokenizerBase, prompt: str, response: str
) -> None:
    row = row_of(tokenizer, prompt, response, max_length=10_000)
    whole = prompt_text(tokenizer, asked(prompt)) + response + END
    labelled = text_of(tokenizer, row.ids[row.prompt_length :])
    assert text_of(tokenizer, row.ids) == whole
    assert (response + END).endswith(labelled)
    assert response.strip() in labelled  # at most blank space at the seam joins the prompt's last token


def test_a_token_that_joins_prompt_and_response_counts_as_prompt(tokenizer: PreTrainedTokenizerBase) -> None:
    row = row_of(tokenizer, "florp it", "\n\n\n c")
    seam = text_of(tokenizer, [row.ids[row.prompt_length - 1]])
    assert seam.startswith("\n")
    assert len(seam) > 1
    assert text_of(tokenizer, row.ids[row.prompt_length :]).endswith("c" + END)


def test_an_empty_response_is_the_end_of_turn_alone(tokenizer: PreTrainedTokenizerBase) -> None:
    row = row_of(tokenizer, "florp it", "")
    assert list(row.ids[row.prompt_length :]) == [tokenizer.eos_token_id]


def test_a_response_is_cut_at_max_length_and_then_has_no_end_of_turn(tokenizer: PreTrainedTokenizerBase) -> None:
    prompt, response = PAIRS[0]
    whole = row_of(tokenizer, prompt, response)
    for left in (1, 2, whole.num_response_tokens - 1):
        cut = row_of(tokenizer, prompt, response, max_length=whole.prompt_length + left)
        assert cut.ids == whole.ids[: whole.prompt_length + left]
        assert cut.prompt_length == whole.prompt_length
        assert cut.ids[-1] != tokenizer.eos_token_id
    assert row_of(tokenizer, prompt, response, max_length=len(whole.ids)) == whole


def test_a_prompt_that_leaves_no_room_for_a_response_gives_none(tokenizer: PreTrainedTokenizerBase) -> None:
    prompt, response = PAIRS[0]
    length = row_of(tokenizer, prompt, response).prompt_length
    for max_length in (length, length - 1, 1):
        assert encode_row(tokenizer, asked(prompt), response, max_length=max_length) is None


def test_several_turns_and_a_system_prompt_are_all_prompt(tokenizer: PreTrainedTokenizerBase) -> None:
    turns = [
        {"role": "system", "content": "be a vask"},
        {"role": "user", "content": "florp"},
        {"role": "assistant", "content": "zim"},
        {"role": "user", "content": "again"},
    ]
    row = encode_row(tokenizer, turns, "grolt", max_length=256)
    assert row is not None
    assert text_of(tokenizer, row.ids[row.prompt_length :]) == "grolt" + END


def test_special_tokens_written_by_the_template_are_not_doubled(tokenizer: PreTrainedTokenizerBase) -> None:
    ids = row_of(tokenizer, *PAIRS[0]).ids
    assert ids.count(tokenizer.bos_token_id) == 1
    assert encode_prompt(tokenizer, asked("zim")).count(tokenizer.bos_token_id) == 1


def test_a_template_that_hides_the_answer_is_refused_without_its_text(tokenizer: PreTrainedTokenizerBase) -> None:
    odd = copy.deepcopy(tokenizer)
    odd.chat_template = "{% if add_generation_prompt %}go:{% else %}done{% endif %}"
    with pytest.raises(ModelUnsuitableError) as caught:
        encode_row(odd, asked("florp secret"), "zim secret", max_length=64)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("num_kept", "max_length", "ids", "prompt_length"),
    [
        (0, 99, (1, 2, 7, 8, 9), 2),
        (2, 99, (1, 2, 3, 4, 7, 8, 9), 4),
        (2, 6, (1, 2, 3, 4, 7, 8), 4),
        (2, 4, None, None),
        (4, 4, None, None),
    ],
)
def test_a_response_breaks_off_and_another_one_carries_the_loss_from_there(
    num_kept: int, max_length: int, ids: tuple[int, ...] | None, prompt_length: int | None
) -> None:
    made = broken_off(Encoded((1, 2, 3, 4, 5, 6), 2), Encoded((1, 2, 7, 8, 9), 2), num_kept, max_length=max_length)
    assert (None if made is None else (made.ids, made.prompt_length)) == (ids and (ids, prompt_length))


def test_padding_puts_loss_on_response_tokens_only(tokenizer: PreTrainedTokenizerBase) -> None:
    rows = encode_pairs(tokenizer)
    padded = pad(rows, pad_id=pad_id(tokenizer), device=torch.device("cpu"))
    width = max(len(row.ids) for row in rows)
    for i, row in enumerate(rows):
        length, filler = len(row.ids), width - len(row.ids)
        assert padded.ids[i].tolist() == [*row.ids, *[tokenizer.pad_token_id] * filler]
        assert padded.attention[i].tolist() == [1] * length + [0] * filler
        answer = list(row.ids[row.prompt_length :])
        assert padded.labels[i].tolist() == [IGNORED] * row.prompt_length + answer + [IGNORED] * filler


def test_end_tokens_are_the_tokenizers_and_the_generation_configs(tokenizer: PreTrainedTokenizerBase) -> None:
    assert end_ids(tokenizer) == {tokenizer.eos_token_id}
    assert end_ids(tokenizer, 9) == {tokenizer.eos_token_id, 9}
    assert end_ids(tokenizer, [9, 11]) == {tokenizer.eos_token_id, 9, 11}
    bare = copy.deepcopy(tokenizer)
    bare.eos_token = None
    assert end_ids(bare, 9) == {9}
    with pytest.raises(ModelUnsuitableError, match="end-of-turn"):
        end_ids(bare)


def test_padding_falls_back_to_the_end_token(tokenizer: PreTrainedTokenizerBase) -> None:
    bare = copy.deepcopy(tokenizer)
    bare.pad_token = None
    assert pad_id(bare) == tokenizer.eos_token_id
