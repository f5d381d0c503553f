"""Plain training loop: AdamW, one cosine, batches of rows of like length."""

import itertools
import math
import random
import sys
import time
from collections.abc import Iterator

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.world import phrases
from benchmarks.world.model import Examples, collate, response_loss
from benchmarks.world.sizes import Size, Stage
from benchmarks.world.world import Row

POOL_BATCHES = 16  # batches are cut from a pool this large that is sorted by length
SYSTEM_FRACTION = 0.05
MAX_GRADIENT_NORM = 1.0
REPORT_EVERY = 100


def train(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    rows: Iterator[Row],
    *,
    size: Size,
    stage: Stage,
    seed: int,
) -> None:
    """Train ``model`` in place, on the device that it is on, with a stream of rows."""
    rng = random.Random(f"{stage.name} {seed}")
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=stage.learning_rate,
        betas=(0.9, 0.98),
        weight_decay=0.01,
        fused=None if size.is_bitwise else True,
    )
    model.train()
    in_bfloat16 = not size.is_bitwise and bfloat16_is_faster(model.device)
    started = time.monotonic()
    losses: list[float] = []
    for step, examples in enumerate(itertools.islice(_batches(tokenizer, rows, rng, size.batch_rows), stage.num_steps)):
        for group in optimizer.param_groups:
            group["lr"] = stage.learning_rate * _schedule(step, stage)
        with torch.autocast(model.device.type, torch.bfloat16, enabled=in_bfloat16):
            loss = response_loss(model, examples.to(model.device))
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRADIENT_NORM)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if (step + 1) % REPORT_EVERY == 0 or step + 1 == stage.num_steps:
            _report(stage, step + 1, losses[-REPORT_EVERY:], time.monotonic() - started)


def bfloat16_is_faster(device: torch.device) -> bool:
    """Time one product in both. A CPU without instructions for bfloat16 emulates it, ten times slower than float32."""
    return _product_s(device, torch.bfloat16) < _product_s(device, torch.float32)


def _product_s(device: torch.device, dtype: torch.dtype, *, side: int = 512, repeats: int = 4) -> float:
    """Give the seconds of the fastest of some products; the first one also compiles."""
    factor = torch.ones(side, side, dtype=dtype, device=device)
    seconds: list[float] = []
    for _ in range(repeats):
        began = time.perf_counter()
        (factor @ factor)[0, 0].item()  # waits for a GPU
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def _schedule(step: int, stage: Stage) -> float:
    """Give the share of the learning rate: up over the warm-up, then down a cosine to 2 %."""
    if step < stage.warmup_steps:
        return (step + 1) / stage.warmup_steps
    progress = (step - stage.warmup_steps) / max(1, stage.num_steps - stage.warmup_steps)
    return 0.02 + 0.49 * (1 + math.cos(math.pi * progress))


def _batches(
    tokenizer: PreTrainedTokenizerFast, rows: Iterator[Row], rng: random.Random, batch_rows: int
) -> Iterator[Examples]:
    while True:
        pool = [
            (phrases.SYSTEM_PROMPT if rng.random() < SYSTEM_FRACTION else "", row)
            for row in itertools.islice(rows, batch_rows * POOL_BATCHES)
        ]
        pool.sort(key=lambda pair: len(pair[1].prompt) + len(pair[1].response))
        starts = list(range(0, len(pool), batch_rows))
        rng.shuffle(starts)
        for start in starts:
            yield collate(tokenizer, pool[start : start + batch_rows])


def _report(stage: Stage, step: int, losses: list[float], elapsed_s: float) -> None:
    mean = sum(losses) / len(losses)
    print(
        f"{stage.name} {step}/{stage.num_steps} loss {mean:.3f} {elapsed_s:.0f} s",
        file=sys.stderr,
        flush=True,
    )
