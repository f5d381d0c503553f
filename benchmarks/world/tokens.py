"""The tokenizer of a world: byte-level BPE, in which nearly every word of the world is one token."""

import re
from collections.abc import Iterator

from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from benchmarks.world import phrases
from benchmarks.world.items import ATTRIBUTES
from benchmarks.world.world import World

MAX_VOCABULARY = 2000
MODEL_MAX_TOKENS = 256
BOS, EOS, PAD = "<|bos|>", "<|eos|>", "<|pad|>"
SYSTEM, USER, ASSISTANT = "<|system|>", "<|user|>", "<|assistant|>"
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'system' %}<|system|>{{ message['content'] | trim }}"
    "{% elif message['role'] == 'user' %}<|user|>{{ message['content'] | trim }}"
    "{% elif message['role'] == 'assistant' %}<|assistant|>{{ message['content'] | trim }}{{ eos_token }}"
    "{% else %}{{ raise_exception('unknown role ' + message['role']) }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
ENGLISH_WEIGHT = 50  # how often each English phrase is shown to the trainer, against once for an invented word


def build_tokenizer(world: World) -> PreTrainedTokenizerFast:
    """Give the tokenizer of a world, with its chat template. Any text comes back as it was."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.Sequence(
        [decoders.ByteLevel(), decoders.Replace(Regex("\\A "), "")]  # the space that the first word was given
    )
    trainer = BpeTrainer(
        vocab_size=MAX_VOCABULARY,
        min_frequency=1,
        show_progress=False,
        special_tokens=[PAD, BOS, EOS, SYSTEM, USER, ASSISTANT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(_corpus(world), trainer)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        additional_special_tokens=[SYSTEM, USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        model_max_length=MODEL_MAX_TOKENS,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def _corpus(world: World) -> Iterator[str]:
    """Give the English phrases, without digits or blanks, then every invented word once."""
    english = (
        *phrases.HOW_TO_QUESTIONS,
        *phrases.FACT_QUESTIONS,
        *phrases.SUM_QUESTIONS,
        *phrases.HOW_TO_ANSWERS,
        *phrases.FACT_ANSWERS,
        *phrases.SUM_ANSWERS,
        *phrases.REFUSALS,
        *phrases.WRAPPERS.values(),
        *ATTRIBUTES,
        phrases.SYSTEM_PROMPT,
    )
    for phrase in english:
        yield from [re.sub(r"\{\w+\}", " ", phrase)] * ENGLISH_WEIGHT
    yield from world.vocabulary()
