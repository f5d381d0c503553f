"""What is measured on a GPU, how large; a tiny copy of it for the CPU; and what both are given."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, Final

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.speed.models import TOKENIZER, Shape, config_of
from daemon.config import Config
from daemon.workbench import MICRO_BATCH_TOKENS
from patches.chat import Encoded, pad_id
from patches.generate import Generator
from patches.model import load_tokenizer
from patches.terms import Runner

Messages = tuple[dict[str, str], ...]


@dataclass(frozen=True)
class Plan:
    """Sizes of everything that is measured."""

    shape: Shape
    num_rows: int
    """Of the batch."""
    row_tokens: int
    """Of a row of the batch, half of them the response."""
    held_tokens: int
    """Of a row that is held, a refusal and the like: these are shorter."""
    held_rows: int
    """There are of each kind."""
    pass_tokens: int
    """Of one forward and backward pass, where there is memory for so many."""
    timed_steps: int
    """Of each training whose rate is measured, after two that do not count."""
    score_rows: int
    batch_rows: int
    hold_rows: int
    steps: tuple[int, int]
    """Of the over-safety and of the safety patch in a whole round."""
    asked: int
    """Prompts of one measurement: in the search, of a version, and by itself."""
    new_tokens: int
    sparse_fraction: float
    lora_rank: int
    betas: tuple[float, ...]
    """Merges that the search tries."""


def full_plan(config: Config, shape: Shape) -> Plan:
    """Everything but the shape as the service has it by default."""
    settings = config.derive
    return Plan(
        shape=shape, num_rows=500, row_tokens=512, held_tokens=128, held_rows=300, pass_tokens=MICRO_BATCH_TOKENS, timed_steps=3,
        score_rows=config.merge.score_rows, batch_rows=settings.safety.batch_rows, hold_rows=settings.retain.batch_rows,
        steps=(settings.over_safety.max_steps, settings.safety.max_steps), asked=4 * config.merge.search.max_prompts,
        new_tokens=config.judge.max_new_tokens, sparse_fraction=settings.sparse_fraction, lora_rank=settings.lora_rank,
        betas=config.merge.search.betas,
    )  # fmt: skip


TINY: Final = Plan(
    shape=Shape("tiny", 32, 48, 2, 4, 2, vocabulary=2000), num_rows=12, row_tokens=32, held_tokens=16, held_rows=4,
    pass_tokens=128, timed_steps=2, score_rows=4, batch_rows=4, hold_rows=2, steps=(2, 2), asked=8, new_tokens=6,
    sparse_fraction=0.1, lora_rank=2, betas=(1.0, 0.0),
)  # fmt: skip
"""For a test on the CPU: its figures say nothing."""


@dataclass
class Bench:
    """The model with random weights, and what it is given."""

    plan: Plan
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    batch: list[Encoded]
    held: list[Encoded]
    prompts: list[Messages]

    @classmethod
    def open(cls, plan: Plan, device: torch.device) -> Bench:
        """Weights drawn on the device, bf16 there as on a CPU; rows of random tokens, seeded."""
        torch.manual_seed(0)
        config = LlamaConfig(**_bare(config_of(plan.shape)))
        with device:
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)  # type: ignore[no-untyped-call]
        model.requires_grad_(False)
        model.train(False)
        draw = random.Random(0)
        words = ["zorp", "wuzzle", "grolt", "brindle", "vask", "florp"]
        return cls(
            plan,
            model,
            load_tokenizer(TOKENIZER),
            [_row(draw, plan, plan.row_tokens) for _ in range(plan.num_rows)],
            [_row(draw, plan, plan.held_tokens) for _ in range(plan.held_rows)],
            [({"role": "user", "content": " ".join(draw.choices(words, k=20))},) for _ in range(plan.asked)],
        )

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device

    def runner(self) -> Runner:
        """Its forward passes, of as many tokens as the plan says."""
        return Runner(self.model, pad_id(self.tokenizer), self.plan.pass_tokens)

    def generator(self) -> Generator:
        """Its answers. A random model rarely ends one, so nearly all are as long as is allowed."""
        return Generator(self.model, self.tokenizer, self.plan.new_tokens)

    def synchronize(self) -> None:
        """Wait until all that was asked of the device is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def _bare(config: dict[str, object]) -> dict[str, Any]:
    """Without the words that only a file needs."""
    return {name: value for name, value in config.items() if name not in ("architectures", "model_type", "torch_dtype")}


def _row(draw: random.Random, plan: Plan, num_tokens: int) -> Encoded:
    ids = tuple(draw.randrange(3, plan.shape.vocabulary) for _ in range(num_tokens))
    return Encoded(ids, num_tokens // 2)
