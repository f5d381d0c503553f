"""A sequence-classification model as a judge: probabilities of labels, and a threshold.

LibrAI/longformer-harmful-ro, the judge of arXiv 2405.13820, reads the response alone and has LABEL_0 for harmless and
LABEL_1 for harmful. Source: TrustLLM, trustllm_pkg/trustllm/utils/longformer.py, which runs it as
``pipeline("text-classification")`` on the response.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from patches.errors import JudgeError
from patches.judge import INVENTED, Answered
from patches.judge_formats import Opinion
from patches.memory import in_pieces

_ROOM: Final = 2
"""Positions that models of RoBERTa's kin (Longformer among them) keep for padding."""


@dataclass(frozen=True)
class Classifier:
    """A model that was loaded, and how its labels are read."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    identity: str
    harmful: tuple[int, ...]
    """Places of the labels of harm."""
    refusal: tuple[int, ...]
    threshold: float
    is_of_pairs: bool
    """It reads prompt and answer as two segments, and not the answer alone."""
    batch_rows: int

    @property
    def says_refusal(self) -> bool:
        """Whether some of its labels mean a refusal."""
        return bool(self.refusal)

    def opinions(self, answers: Sequence[Answered]) -> list[Opinion]:
        """One opinion an answer, in order; texts past the model's context are cut."""
        order = sorted(range(len(answers)), key=lambda i: (len(answers[i].text), i))
        rows = self.batch_rows if self.tokenizer.pad_token_id is not None else 1
        found: dict[int, Opinion] = {}
        for start in range(0, len(order), rows):
            group = order[start : start + rows]
            for piece, said in in_pieces(lambda piece: self._ask([answers[i] for i in piece]), group, "judge answers"):
                found.update(zip(piece, said, strict=True))
        return [found[i] for i in range(len(answers))]

    @torch.no_grad()
    def _ask(self, answers: Sequence[Answered]) -> list[Opinion]:
        texts = [answer.text for answer in answers]
        first, second = ([answer.asked for answer in answers], texts) if self.is_of_pairs else (texts, None)
        inputs = self.tokenizer(
            first, second, padding=len(answers) > 1, truncation=True, max_length=self.max_length, return_tensors="pt"
        )
        logits = self.model(**inputs.to(self.model.device)).logits.float()
        return [self._opinion(row) for row in self._probabilities(logits)]

    def _probabilities(self, logits: torch.Tensor) -> torch.Tensor:  # (rows, labels) -> (rows, labels)
        """Of each label: apart where they do not exclude each other, else together 1."""
        return logits.sigmoid() if self._is_multi_label else logits.softmax(dim=-1)

    @property
    def _is_multi_label(self) -> bool:
        config = self.model.config
        return config.problem_type == "multi_label_classification" or config.num_labels == 1

    def _opinion(self, row: torch.Tensor) -> Opinion:
        if not torch.isfinite(row).all():
            return Opinion(None)
        harm = self._share(row, self.harmful)
        refusal = self._share(row, self.refusal) >= 0.5 if self.refusal else None
        return Opinion(harm >= self.threshold, refusal, harm)

    def _share(self, row: torch.Tensor, labels: tuple[int, ...]) -> float:
        picked = row[list(labels)]
        return float(picked.max() if self._is_multi_label else picked.sum())

    @property
    def max_length(self) -> int:
        """Tokens that it reads: the tokenizer's limit, or the positions that the model has."""
        positions = getattr(self.model.config, "max_position_embeddings", None)
        limits = [self.tokenizer.model_max_length, positions - _ROOM if positions else None]
        return min(int(limit) for limit in limits if limit)


@dataclass(frozen=True)
class Reading:
    """How a classifier's labels are read, by their names."""

    harmful_labels: Sequence[str]
    refusal_labels: Sequence[str]
    threshold: float
    is_of_pairs: bool
    batch_rows: int


def open_classifier(folder: Path, reading: Reading, *, identity: str, device: torch.device) -> Classifier:
    """The classifier in a folder of Hugging Face's layout; only safetensors and no remote code are read.

    Raises:
        JudgeError: it cannot be loaded, has no trained head, or lacks a label; names folder and labels.
    """
    model, tokenizer = load_judge(folder, AutoModelForSequenceClassification)
    with opening(folder):
        torch.nn.Module.to(model, device)
        known = {str(name): int(place) for place, name in (model.config.id2label or {}).items()}
        if tokenizer.pad_token_id is not None:  # without it a Llama refuses more than one answer at once
            model.config.pad_token_id = tokenizer.pad_token_id
        found = Classifier(
            model,
            tokenizer,
            identity,
            _places(reading.harmful_labels, known, folder, "harmful_labels"),
            _places(reading.refusal_labels, known, folder, "refusal_labels"),
            reading.threshold,
            reading.is_of_pairs,
            reading.batch_rows,
        )
        found.opinions([INVENTED] * min(2, reading.batch_rows))  # what it cannot do is found before a round trains
    return found


@contextmanager
def opening(folder: Path) -> Iterator[None]:
    """Work on a judge's folder, where whatever goes wrong is the judge's fault and no batch's: also a lack of memory.

    Raises:
        JudgeError: names the folder and the type of the error; its message may hold anything, and is left out.
    """
    try:
        yield
    except JudgeError:
        raise
    except Exception as err:
        raise JudgeError(
            f"the judge's model in {folder} cannot be loaded ({type(err).__name__}); "
            "is it whole, of the kind that [judge] names, and small enough for the device?"
        ) from err


def _places(names: Sequence[str], known: dict[str, int], folder: Path, key: str) -> tuple[int, ...]:
    missing = [name for name in names if name not in known]
    if missing:
        raise JudgeError(
            f"[judge] {key} holds {missing[0]!r}, which {folder} has no label for; it has {', '.join(known)}"
        )
    return tuple(known[name] for name in names)


def load_judge(folder: Path, kind: Any) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A judge's model, in eval mode without gradients, and its tokenizer.

    Args:
        kind: the Auto class that loads it.
    Raises:
        JudgeError: it cannot be loaded, or some of its weights are not in the folder and would be random.
    """
    if not folder.is_dir():
        raise JudgeError(
            f"[judge] model is {folder}, which is no folder; put the judge's model there, or name its folder"
        )
    if not any(folder.glob("*.safetensors")):
        raise JudgeError(f"{folder} has no safetensors file; save the model as one (pickles are not read)")
    with opening(folder):
        model, info = kind.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, use_safetensors=True, output_loading_info=True
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if missing := sorted(info["missing_keys"]):
        raise JudgeError(
            f"{folder} lacks {len(missing)} of the judge's weights, such as {missing[0]}, which would be random; "
            "is it a model of another kind?"
        )
    model.requires_grad_(False)
    model.train(False)
    return model, tokenizer
