"""Batched greedy answers against transformers' own generate, one prompt at a time."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import Lfm2Config, Lfm2ForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from patches import generate
from patches.chat import encode_prompt
from patches.errors import ModelUnsuitableError
from patches.generate import Generation, Generator
from tests.tiny_model import PAIRS, asked

MAX_NEW = 12
PROMPTS = [asked(prompt) for prompt, _ in PAIRS]


def one_at_a_time(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """New tokens of each prompt alone, unpadded, by transformers."""
    found = []
    for prompt in PROMPTS:
        ids = torch.tensor([encode_prompt(tokenizer, prompt)])
        output = model.generate(  # type: ignore[operator]
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=MAX_NEW, pad_token_id=0
        )
        found.append(output[0, ids.shape[1] :].tolist())
    return found


def let_it_end(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Make two tokens that the model says to few of the prompts end its turn."""
    told = one_at_a_time(model, tokenizer)
    rare = [token for token in told[0] + told[1] if sum(token in ids for ids in told) <= 2]
    ends = [rare[0], rare[-1]]
    assert model.generation_config is not None
    model.generation_config.eos_token_id = [int(tokenizer.eos_token_id), *ends]
    return {int(tokenizer.eos_token_id), *ends}


@pytest.mark.parametrize("batch_tokens", [1, 100, 16384])
def test_batched_answers_are_those_of_each_prompt_alone(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(generate.BATCH_TOKENS, "cpu", batch_tokens)
    ends = let_it_end(model, tokenizer)
    expected = [
        Generation(str(tokenizer.decode(ids, skip_special_tokens=True)).strip(), ids[-1] in ends)
        for ids in one_at_a_time(model, tokenizer)
    ]
    assert {answer.finished for answer in expected} == {True, False}
    assert len({answer.text for answer in expected}) > 3
    assert Generator(model, tokenizer, MAX_NEW).answer(PROMPTS) == expected


def test_an_answer_stops_at_its_end_token(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    whole = one_at_a_time(model, tokenizer)[0]
    ends = let_it_end(model, tokenizer)
    length = next(i for i, token in enumerate(whole) if token in ends) + 1
    answer = Generator(model, tokenizer, MAX_NEW).answer(PROMPTS[:1])[0]
    assert answer == Generation(str(tokenizer.decode(whole[:length], skip_special_tokens=True)).strip(), True)


def test_an_answer_without_an_end_runs_to_the_limit_and_is_not_finished(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    expected = one_at_a_time(model, tokenizer)
    assert all(len(ids) == MAX_NEW for ids in expected)
    answers = Generator(model, tokenizer, MAX_NEW).answer(PROMPTS)
    assert not any(answer.finished for answer in answers)
    short = Generator(model, tokenizer, 1).answer(PROMPTS)
    texts = [str(tokenizer.decode(ids[:1], skip_special_tokens=True)).strip() for ids in expected]
    assert [answer.text for answer in short] == texts


def test_positions_count_from_each_prompts_first_token_whatever_the_padding(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    seen: list[torch.Tensor] = []  # the tiny model turns by relative positions, so its answers alone would not tell
    model.register_forward_pre_hook(lambda _m, _a, given: seen.append(given["position_ids"]), with_kwargs=True)
    Generator(model, tokenizer, 3).answer(PROMPTS)
    lengths = sorted(len(encode_prompt(tokenizer, prompt)) for prompt in PROMPTS)
    for row, length in zip(seen[0].tolist(), lengths, strict=True):
        assert row == [0] * (lengths[-1] - length) + list(range(length))
    assert [step.flatten().tolist() for step in seen[1:]] == [lengths, [length + 1 for length in lengths]]


def test_the_same_prompts_give_the_same_answers_and_the_model_stays(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    generator = Generator(model, tokenizer, MAX_NEW)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert generator.answer(PROMPTS) == generator.answer(PROMPTS)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_answers_that_have_ended_leave_the_batch_when_they_are_half_of_it(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    told = one_at_a_time(model, tokenizer)
    ends = [ids[2 * i + 1] for i, ids in enumerate(told)]  # the first answers end early, the last one late
    assert model.generation_config is not None
    model.generation_config.eos_token_id = [int(tokenizer.eos_token_id), *ends]
    lengths = [next(at for at, token in enumerate(ids) if token in ends) + 1 for ids in told]
    sizes: list[int] = []
    model.register_forward_pre_hook(lambda _m, _a, given: sizes.append(len(given["input_ids"])), with_kwargs=True)
    Generator(model, tokenizer, MAX_NEW).answer(PROMPTS)
    going_on = [sum(length > step for length in lengths) for step in range(max(lengths))]
    assert len(sizes) == max(lengths) and sizes[0] == len(PROMPTS) and sizes[-1] < len(PROMPTS)
    assert all(left <= size < 2 * left or size == len(PROMPTS) for size, left in zip(sizes, going_on, strict=True))


def test_a_model_with_convolution_layers_answers_as_it_does_alone_while_others_leave_the_batch(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    torch.manual_seed(0)
    config = Lfm2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        layer_types=["conv", "full_attention", "conv"],
        eos_token_id=tokenizer.eos_token_id,
    )
    model = Lfm2ForCausalLM(config)
    model.train(False)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)  # so that it says one thing after one prompt and another after another
    ends = let_it_end(model, tokenizer)
    told = one_at_a_time(model, tokenizer)
    assert len({len(ids) for ids in told}) > 1 and len({tuple(ids) for ids in told}) > 3
    assert [answer.finished for answer in Generator(model, tokenizer, MAX_NEW).answer(PROMPTS)] == [
        ids[-1] in ends for ids in told
    ]
    assert Generator(model, tokenizer, MAX_NEW)._greedy([encode_prompt(tokenizer, p) for p in PROMPTS]) == told


def test_answers_come_in_the_order_of_their_prompts(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    generator = Generator(model, tokenizer, MAX_NEW)
    assert generator.answer(PROMPTS[::-1]) == generator.answer(PROMPTS)[::-1]
    assert generator.answer([]) == []


def test_progress_rises_to_one(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(generate.BATCH_TOKENS, "cpu", 80)
    seen: list[float] = []
    Generator(model, tokenizer, 2).answer(PROMPTS, seen.append)
    assert len(seen) > 1
    assert seen == sorted(seen)
    assert seen[-1] == 1


def test_a_model_without_any_end_token_is_refused(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    assert model.generation_config is not None
    model.generation_config.eos_token_id = None
    bare = copy.deepcopy(tokenizer)
    bare.eos_token = None
    bare.chat_template = "{{ messages[0]['content'] }}"
    with pytest.raises(ModelUnsuitableError, match="end-of-turn"):
        Generator(model, bare, MAX_NEW).answer(PROMPTS[:1])
