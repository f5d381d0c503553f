"""One tiny real Llama with a real byte-level tokenizer and chat template, and rows of invented words for it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from patches.chat import Encoded, encode_row
from patches.derive import Recipe
from patches.terms import Runner

BOS, END, PAD = "<|bos|>", "<|end|>", "<|pad|>"
USER, ASSISTANT = "<|user|>", "<|assistant|>"
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}{{ eos_token }}\n"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
PAIRS = (
    ("how do I florp a wuzzle", "take three zims and a grolt"),
    ("tell me of the brindle", "it is a kind of vask that sings"),
    ("florp it", "zim"),
    ("what would a grolt do with two wuzzles and a vask", "it would hide them under the brindle, then wait a day"),
    ("wuzzle or vask", "vask"),
    ("count the zims", "one zim, two zims, three zims"),
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on the pairs and on some blank space."""
    core = Tokenizer(BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=340,
        special_tokens=[PAD, BOS, END, USER, ASSISTANT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    blanks = ["a\n\n\n\nb", "\n\n\n c", "   d"] * 20
    core.train_from_iterator([*(text for pair in PAIRS for text in pair), *blanks], trainer)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=core, bos_token=BOS, eos_token=END, pad_token=PAD, chat_template=CHAT_TEMPLATE
    )


def build_model(vocabulary: int, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Hidden 32, 2 layers, grouped keys, untied head; weights wide enough that logits are far apart."""
    torch.manual_seed(5)
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=256,
            initializer_range=0.15,
            tie_word_embeddings=False,
            pad_token_id=tokenizer.pad_token_id,
            **ids,
        )
    )
    model.generation_config = GenerationConfig(do_sample=False, **ids)  # type: ignore[no-untyped-call]
    return model


def save(folder: Path, *, max_shard_size: str = "5GB") -> Path:
    """The model and its tokenizer as an ordinary Hugging Face folder."""
    tokenizer = build_tokenizer()
    build_model(len(tokenizer), tokenizer).save_pretrained(folder, max_shard_size=max_shard_size)
    tokenizer.save_pretrained(folder)
    return folder


def asked(prompt: str) -> tuple[dict[str, str], ...]:
    """One user turn."""
    return ({"role": "user", "content": prompt},)


def encode_pairs(
    tokenizer: PreTrainedTokenizerBase, pairs: Sequence[tuple[str, str]] = PAIRS, max_length: int = 256
) -> list[Encoded]:
    """The pairs as rows."""
    rows = [encode_row(tokenizer, asked(prompt), response, max_length=max_length) for prompt, response in pairs]
    return [row for row in rows if row is not None]


def runner_of(model: PreTrainedModel, max_tokens: int = 4096) -> Runner:
    """A runner that pads with token 0."""
    return Runner(model, pad_id=0, max_tokens=max_tokens)


def recipe_of(**changes: object) -> Recipe:
    """A recipe of one full step over all rows, with changes."""
    usual: dict[str, object] = {
        "objective": "descent",
        "learning_rate": 1e-3,
        "max_steps": 1,
        "batch_rows": len(PAIRS),
        "hold_rows": len(PAIRS),
        "stop_loss": None,
        "max_grad_norm": 1.0,
        "backend": "full",
        "lora_rank": 4,
        "seed": 7,
    }
    return Recipe(**{**usual, **changes})  # type: ignore[arg-type]


def ignore_progress(*_: float) -> None:
    """Progress that nobody looks at."""


def snapshot(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """A copy of every tensor of the model."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same(model: PreTrainedModel, before: dict[str, torch.Tensor]) -> None:
    """Every tensor is there under its old name, of its old type, bit for bit."""
    after = model.state_dict()
    assert list(after) == list(before)
    for name, tensor in after.items():
        assert tensor.dtype == before[name].dtype, name
        assert torch.equal(tensor.view(torch.uint8), before[name].view(torch.uint8)), name
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())
