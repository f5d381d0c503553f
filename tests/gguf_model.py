"""A tiny Llama with a tokenizer of a kind that llama.cpp knows: BPE over pieces of SentencePiece, with bytes to fall back on."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer, decoders, normalizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from tests.tiny_model import CHAT_TEMPLATE, build_model

SPECIAL = ["<unk>", "<s>", "</s>", "<|user|>", "<|assistant|>"]
LETTERS = "▁abcdefghijklmnopqrstuvwxyz"
MERGES = [("▁", "w"), ("▁w", "u"), ("z", "z"), ("▁wu", "zz"), ("▁wuzz", "l"), ("▁wuzzl", "e"), ("▁", "z"), ("▁z", "i")]


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Its vocabulary is the special tokens, all bytes, some letters and a few words."""
    pieces = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *LETTERS, *("".join(pair) for pair in MERGES)]
    core = Tokenizer(
        BPE(
            vocab={piece: number for number, piece in enumerate(pieces)},
            merges=MERGES,
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    core.add_special_tokens(SPECIAL)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="</s>",
        chat_template=CHAT_TEMPLATE,
    )


def save(folder: Path) -> Path:
    """Model and tokenizer as a Hugging Face folder."""
    tokenizer = build_tokenizer()
    build_model(len(tokenizer), tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
