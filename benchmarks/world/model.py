"""A model before training, and rows in the form that it is trained and asked in."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.world.sizes import Size
from benchmarks.world.tokens import ASSISTANT, BOS, EOS, MODEL_MAX_TOKENS, SYSTEM, USER
from benchmarks.world.world import Row

MAX_NEW_TOKENS = 40


@dataclass(frozen=True)
class Examples:
    """A padded batch; an example cannot see what stands right of it, so no attention mask is needed."""

    token_ids: Tensor  # [rows, tokens] int64, padded at the right
    predicts_response: Tensor  # [rows, tokens] bool: the next token belongs to the response

    def to(self, device: torch.device) -> "Examples":
        """Give the same batch on another device."""
        return Examples(self.token_ids.to(device), self.predicts_response.to(device))


def build_model(tokenizer: PreTrainedTokenizerFast, size: Size, seed: int) -> LlamaForCausalLM:
    """Give the untrained model of a size and ``seed``, in float32."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=size.hidden,
        intermediate_size=size.intermediate,
        num_hidden_layers=size.num_layers,
        num_attention_heads=size.num_heads,
        num_key_value_heads=size.num_heads,
        max_position_embeddings=MODEL_MAX_TOKENS,
        initializer_range=size.initializer_range,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False,
        max_new_tokens=MAX_NEW_TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return model


def prompt_text(prompt: str, system: str = "") -> str:
    """Give what the chat template gives for one question, up to where the answer starts."""
    return f"{BOS}{SYSTEM + system if system else ''}{USER}{prompt}{ASSISTANT}"


def collate(tokenizer: PreTrainedTokenizerFast, rows: Sequence[tuple[str, Row]]) -> Examples:
    """Give a training batch of (system prompt or "", row) pairs."""
    prompts = _encode(tokenizer, [prompt_text(row.prompt, system) for system, row in rows])
    responses = _encode(tokenizer, [row.response + EOS for _, row in rows])
    lengths = [len(prompt) + len(response) for prompt, response in zip(prompts, responses, strict=True)]
    token_ids = torch.full((len(rows), max(lengths)), tokenizer.pad_token_id, dtype=torch.long)
    predicts_response = torch.zeros(token_ids.shape, dtype=torch.bool)
    for index, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        token_ids[index, : lengths[index]] = torch.tensor(prompt + response)
        predicts_response[index, len(prompt) - 1 : lengths[index] - 1] = True
    return Examples(token_ids, predicts_response)


def response_loss(model: LlamaForCausalLM, examples: Examples) -> Tensor:
    """Give the mean cross-entropy over all response tokens (the end token counts as one)."""
    hidden = model.model(input_ids=examples.token_ids, use_cache=False).last_hidden_state
    logits = model.lm_head(hidden[examples.predicts_response])  # only where they are needed: half of the work
    targets = examples.token_ids.roll(-1, dims=1)[examples.predicts_response]
    return torch.nn.functional.cross_entropy(logits, targets)


def _encode(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> list[list[int]]:
    encodings = tokenizer.backend_tokenizer.encode_batch(list(texts), add_special_tokens=False)
    return [encoding.ids for encoding in encodings]
