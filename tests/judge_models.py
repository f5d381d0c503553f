"""Tiny judges made on the spot: a Longformer of LibrAI/longformer-harmful-ro's shape, and guards that know one answer."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, pre_tokenizers, processors
from tokenizers.models import WordLevel
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LongformerConfig,
    LongformerForSequenceClassification,
    PreTrainedTokenizerFast,
)

from patches.judge_formats import FORMATS

WORDS = ("how", "do", "i", "florp", "a", "wuzzle", "take", "three", "zims", "and", "grolt", "vask", "plim", "sorry")
HARMFUL_WORD = "grolt"
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")


def roberta_tokenizer(max_length: int = 62) -> PreTrainedTokenizerFast:
    """Whole words, between the marks that RoBERTa and Longformer put around one text or two."""
    ids = {word: place for place, word in enumerate((*SPECIAL, *WORDS))}
    core = Tokenizer(WordLevel(ids, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", cls_token="<s>", sep_token="</s>", pad_token="<pad>",
        unk_token="<unk>", model_max_length=max_length,
    )  # fmt: skip


def save_longformer(folder: Path, *, num_labels: int = 2, max_length: int = 62, **config: Any) -> Path:
    """A Longformer whose label 1 is likely where the harmful word stands in its text; it was trained to, for a moment."""
    torch.manual_seed(3)
    tokenizer = roberta_tokenizer(max_length)
    model = LongformerForSequenceClassification(
        LongformerConfig(
            vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
            attention_window=[8, 8], max_position_embeddings=64, pad_token_id=1, bos_token_id=0, eos_token_id=2,
            sep_token_id=2, type_vocab_size=1, hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0, **(config | {"num_labels": num_labels}),
        )
    )  # fmt: skip
    if num_labels == 2:
        _teach(model, tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _teach(model: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    draw = torch.Generator().manual_seed(1)
    plain = [word for word in WORDS if word != HARMFUL_WORD]
    texts, labels = [], []
    for number in range(64):
        words = [plain[int(i)] for i in torch.randint(len(plain), (6,), generator=draw)]
        if number % 2:
            words[int(torch.randint(6, (1,), generator=draw))] = HARMFUL_WORD
        texts.append(" ".join(words))
        labels.append(number % 2)
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(25):
        optimizer.zero_grad()
        model(**inputs, labels=torch.tensor(labels)).loss.backward()
        optimizer.step()


def guard_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """The words of one format and of the answers to it, apart at blanks and signs."""
    said = "yes no safe unsafe S1 Harmful request : Response refusal Harmful response"
    words = re.findall(r"\w+|[^\w\s]+", " ".join([FORMATS[name].prompt(" ".join(WORDS), ""), said]))
    ids = {word: place for place, word in enumerate(dict.fromkeys([*SPECIAL, *words]))}
    core = Tokenizer(WordLevel(ids, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )


def save_guard(folder: Path, name: str, yes: str, no: str, *, context: int = 1024) -> Path:
    """A Llama that answers in one word, as it was taught for a moment: whether the harmful word stands in the prompt."""
    torch.manual_seed(4)
    tokenizer = guard_tokenizer(name)
    ids: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": 2}
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=2, max_position_embeddings=context, pad_token_id=1, **ids,
        )
    )  # fmt: skip
    model.generation_config = GenerationConfig(do_sample=False, **ids)  # type: ignore[no-untyped-call]
    _teach_guard(model, tokenizer, FORMATS[name], (no, yes))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _teach_guard(model: Any, tokenizer: PreTrainedTokenizerFast, form: Any, answers: tuple[str, str]) -> None:
    texts = [f"take three {word}" for word in ("zims", HARMFUL_WORD)]
    rows = [
        tokenizer(form.prompt("florp it", text) + " " + answer + " </s>")["input_ids"]
        for text, answer in zip(texts, answers, strict=True)
    ]
    inputs = torch.tensor(rows)
    labels = inputs.clone()
    labels[:, :-2] = -100
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        model(input_ids=inputs, labels=labels).loss.backward()
        optimizer.step()
