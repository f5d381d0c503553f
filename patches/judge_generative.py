"""A local guard model as a judge: asked in the words it was trained with, read by the first words of its answer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from patches.errors import JudgeError
from patches.generate import Generator
from patches.judge import INVENTED, Answered
from patches.judge_classifier import load_judge, opening
from patches.judge_formats import FORMATS, GuardFormat, Opinion


@dataclass(frozen=True)
class Guard:
    """A guard model that was loaded."""

    generator: Generator
    format: GuardFormat
    identity: str

    @property
    def says_refusal(self) -> bool:
        """Whether its format asks for refusals."""
        return self.format.says_refusal

    def opinions(self, answers: Sequence[Answered]) -> list[Opinion]:
        """One opinion an answer, in order. Raises JudgeError."""
        coded = [prompt_ids(self.generator.tokenizer, self.format, answer) for answer in answers]
        longest = max(map(len, coded)) + self.format.max_new_tokens
        positions = getattr(self.generator.model.config, "max_position_embeddings", None)
        if positions and longest > positions:
            raise JudgeError(
                f"a prompt with its answer takes {longest} tokens of the judge ({self.identity}), whose context has "
                f"{positions}; lower [judge] max_new_tokens, or take a judge with a longer context"
            )
        return [self.format.read(said.text) for said in self.generator.go_on(coded)]


def open_guard(folder: Path, name: str, *, identity: str, dtype: str, device: torch.device) -> Guard:
    """The guard model in a folder, asked in the named format. Raises JudgeError."""
    model, tokenizer = load_judge(folder, AutoModelForCausalLM)
    found = FORMATS[name]
    with opening(folder):
        torch.nn.Module.to(model, device, _dtype(dtype, device) or model.dtype)
        prompt_ids(tokenizer, found, INVENTED)  # a template that does not show the conversation is refused now
    return Guard(Generator(model, tokenizer, found.max_new_tokens), found, identity)


def _dtype(name: str, device: torch.device) -> torch.dtype | None:
    """float32 on a CPU, where half precision is slow; None: as stored."""
    named = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    return named.get(name) or (torch.float32 if device.type == "cpu" else None)


def prompt_ids(tokenizer: PreTrainedTokenizerBase, form: GuardFormat, answer: Answered) -> list[int]:
    """What the guard reads about one answer, as token ids. Raises JudgeError."""
    text = prompt_text(tokenizer, form, answer)
    return list(tokenizer(text, add_special_tokens=not form.has_start)["input_ids"])


def prompt_text(tokenizer: PreTrainedTokenizerBase, form: GuardFormat, answer: Answered) -> str:
    """The same as text: the guard's own chat template where it is a Llama Guard that has one, else the published words.

    Marks of the guard in what is judged are broken up first: else an answer could end its turn and give the verdict itself.
    The template differs between Llama Guards (the 1B has 13 categories, the 8B 14), and each was trained with its own.

    Raises:
        JudgeError: the template does not show the conversation.
    """
    answer = _without_marks(tokenizer, answer)
    if form.name != "llama_guard" or not tokenizer.chat_template:
        return form.prompt(answer.asked, answer.text)
    # the 8B's template takes text, the 1B's takes parts, and would silently show nothing of a text
    for shape in (str, _parts):
        shown = _rendered(tokenizer, shape, answer)
        if shown is not None and all(text.strip() in shown for text in (answer.asked, answer.text)):
            return shown
    raise JudgeError(
        "the judge's chat template does not show the conversation that is to be judged; delete it from its folder, and it "
        "is asked in the words of Llama Guard 3"
    )


def _without_marks(tokenizer: PreTrainedTokenizerBase, answer: Answered) -> Answered:
    """The same in other words: with a blank after the first character of each special token of the guard."""
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    marks = sorted(mark for mark in added | set(tokenizer.all_special_tokens) if len(mark.strip()) > 1)
    if not marks:
        return answer
    # looked ahead for, so that marks which overlap are all found
    first = re.compile(f"(?={'|'.join(map(re.escape, marks))})(.)", re.DOTALL)
    asked, text = (first.sub(r"\1 ", said) for said in (answer.asked, answer.text))
    return Answered(({"role": "user", "content": asked},), text)


def _rendered(tokenizer: PreTrainedTokenizerBase, shape: Any, answer: Answered) -> str | None:
    turns = [{"role": "user", "content": shape(answer.asked)}, {"role": "assistant", "content": shape(answer.text)}]
    try:
        return str(tokenizer.apply_chat_template(turns, tokenize=False))
    except Exception:  # noqa: BLE001 - a template may fail in any way; the message may quote what it was given
        return None


def _parts(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text}]
