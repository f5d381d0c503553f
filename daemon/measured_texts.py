"""What an adapter is measured on: the probes' prompts where there are any, else random tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch

from daemon import probes
from daemon.command import Context
from daemon.config import Config, ConfigError
from daemon.probes import ProbeRow, thin
from patches.chat import encode_prompt
from patches.errors import ModelUnsuitableError
from patches.model import load_tokenizer, pick_device
from state.tensors import read_object

MAX_PROMPTS: Final = 32
_MAX_TOKENS, _NUM_RANDOM, _RANDOM_TOKENS = 512, 16, 32


def device(context: Context) -> torch.device:
    """The device of the settings; the CPU where these cannot be read, or name one that is not there."""
    config = _config(context)
    try:
        return pick_device(config.model.device if config else "cpu")
    except ModelUnsuitableError:
        return torch.device("cpu")


def texts(context: Context, base: Path) -> tuple[list[list[int]], dict[str, Any]]:
    """Token ids of each text, and what they are: `prompts` and `num_prompts`."""
    found = _encoded(base, _rows(context))
    if found:
        return found, {"prompts": "prompts of the probes", "num_prompts": len(found)}
    vocabulary = int(read_object(base / "config.json").get("vocab_size") or 256)
    drawn = torch.randint(vocabulary, (_NUM_RANDOM, _RANDOM_TOKENS), generator=torch.Generator().manual_seed(0))
    return drawn.tolist(), {"prompts": "texts of random tokens", "num_prompts": _NUM_RANDOM}


def _encoded(base: Path, rows: Sequence[ProbeRow]) -> list[list[int]]:
    try:
        tokenizer = load_tokenizer(base)
        return [encode_prompt(tokenizer, row.messages)[-_MAX_TOKENS:] for row in rows]
    except ModelUnsuitableError:
        return []


def _rows(context: Context) -> tuple[ProbeRow, ...]:
    """Harmful prompts, lookalikes and ordinary questions in equal parts."""
    config = _config(context)
    try:
        files = probes.load(context.home, config) if config else None
    except ConfigError:
        files = None
    if files is None:
        return ()
    kinds = [rows for rows in (files.harm, files.over_safety, files.utility) if rows]
    return tuple(row for rows in kinds for row in thin(rows, MAX_PROMPTS // len(kinds)))


def _config(context: Context) -> Config | None:
    try:
        return context.config()
    except ConfigError:
        return None
