"""A whole round of the service on the demo model, beside a notebook that does its parts with the usual tools.

By hand there are as many optimiser steps on the batch's rows, as many merges are tried, and as many prompts asked as the round
says it had. What the round does beside that is in its time only: it holds what must not change, keeps every step and its
version on disk, and starts two processes that load torch.
"""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from dataclasses import dataclass
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
from state.store import Store
from tests.product import ROOT, Home, made_home

NUM_BATCH_ROWS = 300
STEP_ROWS = Config().derive.safety.batch_rows
"""Of the batch in an optimiser step, as the service has it."""
SCORED_ROWS = Config().merge.score_rows
TRIED_ON, JUDGED_ON = 160, 144
"""Prompts that a tried merge and a version are asked, about as many as the round has in its development and gate parts."""
PRESETS = {"alignd": "whole round", "safepatching": "whole round, as published"}


@dataclass(frozen=True)
class Played:
    """What a round did, by its own account."""

    steps: tuple[int, int]
    """Of the over-safety and of the safety patch."""
    num_trials: int


def whole_round(folder: Path) -> list[Row]:
    """From a drop to its version with the default settings, and with those of the paper."""
    return [_row(folder / preset, preset, name) for preset, name in PRESETS.items()]


def _row(folder: Path, preset: str, name: str) -> Row:
    world = World.generate(0)
    home = made_home(folder / "home", world)
    settings = home.path / "service.toml"
    settings.write_text(f'preset = "{preset}"\n{settings.read_text()}')
    home.drop(world, 0, "batch.jsonl", NUM_BATCH_ROWS)
    ours = seconds(lambda: _round(home))
    played = _played(home)
    model, tokenizer, rows, asked = method.bench()
    prompts = [*method.probe_prompts(world), *asked[:60]]
    peer = seconds(lambda: _by_hand(model, tokenizer, rows, prompts, folder, played))
    note = f"{NUM_BATCH_ROWS} rows, preset {preset}; {sum(played.steps)} steps of {STEP_ROWS} rows, {played.num_trials} merges"
    against = "HF Trainer twice, SNIP row by row, dense merges of copies, generate"
    return Row(name, ours, "s", against, peer, 1 / 3, "at most", note)


def _round(home: Home) -> None:
    command = [sys.executable, "-m", "daemon", "-c", str(home.path), "run", "--once"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=True)


def _played(home: Home) -> Played:
    with Store.open(home.path) as store:
        (row,) = store.ledger.rounds("published")
    steps = tuple(int(row.artefacts[step]["steps"]) for step in ("over_safety", "safety"))
    return Played((steps[0], steps[1]), int(row.artefacts["search"]["num_trials"]))


def _by_hand(
    model: PreTrainedModel,
    tokenizer: Any,
    rows: list[Encoded],
    prompts: list[method.Messages],
    folder: Path,
    played: Played,
) -> None:
    tuned = [
        method.train_by_trainer(model, rows, tokenizer, folder, num_steps=steps, batch_rows=STEP_ROWS)
        for steps in played.steps
    ]
    weights = decoder_linears(model)
    patches, scores = [], []
    for one in tuned:
        moved = decoder_linears(one)
        patches.append({name: moved[name].detach() - weight.detach() for name, weight in weights.items()})
        runner = Runner(one, pad_id(tokenizer), 8192)
        scores.append(snip._row_by_row(runner, rows[:SCORED_ROWS], moved, lambda done: None))
    for _ in range(played.num_trials):
        merged = copy.deepcopy(model)
        with torch.no_grad():
            for name, weight in decoder_linears(merged).items():
                tops = [score[name] >= _threshold(score[name]) for score in scores]
                weight += patches[0][name] * (tops[0] & ~tops[1]) + patches[1][name] * (tops[1] & ~tops[0])
        method.by_generate(merged, tokenizer, _some(prompts, TRIED_ON))
    for one in (model, merged):
        method.by_generate(one, tokenizer, _some(prompts, JUDGED_ON))


def _threshold(score: torch.Tensor) -> torch.Tensor:
    """What the highest tenth lies above."""
    return score.flatten().kthvalue(int(0.9 * score.numel())).values


def _some(prompts: list[method.Messages], num: int) -> list[method.Messages]:
    """So many of all kinds."""
    return [prompts[at * len(prompts) // num] for at in range(num)]
