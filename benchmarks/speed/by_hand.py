"""A whole round of the service on the demo model, beside a notebook that does its parts with the usual tools."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from benchmarks.speed import method
from benchmarks.speed.rows import Row, seconds
from benchmarks.world.world import World
from daemon.config import Config
from patches import snip
from patches.chat import Encoded, pad_id
from patches.model import decoder_linears
from patches.terms import Runner
from tests.product import ROOT, Home, made_home

NUM_BATCH_ROWS = 300
_DERIVE = Config().derive
STEPS = (_DERIVE.over_safety.max_steps, _DERIVE.safety.max_steps)
"""Of the two trainings, as the service takes them by default."""


def whole_round(folder: Path) -> list[Row]:
    """From a drop to its version with the default settings, beside two trainings, scores, a merge and an evaluation.

    By hand no coefficient is searched, nothing is held but what the trainer sees, and nothing is kept: less work than ours.
    """
    world = World.generate(0)
    home = made_home(folder / "home", world)
    home.drop(world, 0, "batch.jsonl", NUM_BATCH_ROWS)
    ours = seconds(lambda: _round(home))
    model, tokenizer, rows, _ = method.bench()
    asked = world.harmful(world.categories[:2], "batch", 60, seed=0)
    prompts = [*method.probe_prompts(world), *(({"role": "user", "content": row.prompt},) for row in asked)]
    peer = seconds(lambda: _by_hand(model, tokenizer, rows, prompts, folder))
    note = f"{NUM_BATCH_ROWS} rows; by hand {len(prompts)} probes are answered by both models, and no merge is searched"
    against = "HF Trainer twice, SNIP row by row, a dense merge, generate"
    return [Row("whole round", ours, "s", against, peer, 1 / 3, "at most", note)]


def _round(home: Home) -> None:
    command = [sys.executable, "-m", "daemon", "-c", str(home.path), "run", "--once"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=True)


def _by_hand(
    model: PreTrainedModel, tokenizer: Any, rows: list[Encoded], prompts: list[method.Messages], folder: Path
) -> None:
    tuned = [method.train_by_trainer(model, rows, tokenizer, folder, num_steps=steps) for steps in STEPS]
    weights = decoder_linears(model)
    patches, scores = [], []
    for one in tuned:
        moved = decoder_linears(one)
        patches.append({name: moved[name].detach() - weight.detach() for name, weight in weights.items()})
        runner = Runner(one, pad_id(tokenizer), 8192)
        scores.append(snip._row_by_row(runner, rows[:128], moved, lambda done: None))
    merged = copy.deepcopy(model)
    with torch.no_grad():
        for name, weight in decoder_linears(merged).items():
            tops = [score[name] >= score[name].flatten().kthvalue(int(0.9 * weight.numel())).values for score in scores]
            weight += patches[0][name] * (tops[0] & ~tops[1]) + patches[1][name] * (tops[1] & ~tops[0])
    for one in (model, merged):
        method.by_generate(one, tokenizer, prompts)
