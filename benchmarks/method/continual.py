"""Many rounds after one another: ten categories, one taken out again, one repeated, one poisoned, one too small."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from benchmarks.method.axes import Axes, measure_axes
from benchmarks.method.ground import Ground
from benchmarks.method.play import Task, play_consolidation, play_round
from daemon.config import Config
from daemon.intake import TakenIn, UnusableBatchError, join, together
from patches.merge import OVER_SAFETY, SAFETY, SparsePatch, merged
from patches.model import decoder_linears, load_model, load_tokenizer, pick_device
from policies.consolidation import is_due

NUM_ROUNDS = 10
ROWS = 200
TOO_FEW_ROWS = 20
TOGETHER = "all together"
"""In place of a category: the patch of a consolidation."""


@dataclass(frozen=True)
class Drop:
    """One batch of the story."""

    name: str
    category: str
    num_rows: int = ROWS
    num_benign: int = 0


@dataclass
class Line:
    """The line of versions so far."""

    current: Path
    batches: dict[str, TakenIn] = field(default_factory=dict)
    claims: dict[str, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)
    """Categories that a round was played for, published or not."""
    patches: list[tuple[str, SparsePatch]] = field(default_factory=list)
    """What was published, with the category of its batch, oldest first; a consolidation stands in place of all before it."""
    num_alone: int = 0
    """Batches learnt since all were learnt together, or since that was last tried."""


def drops(ground: Ground, seed: int) -> list[Drop]:
    """The batches of a seed: which category comes first differs from seed to seed, two are never dropped."""
    names = ground.world.categories
    order = [names[(seed * 5 + i) % len(names)] for i in range(len(names))]
    story = [Drop(f"category {number}", name) for number, name in enumerate(order[:NUM_ROUNDS], 1)]
    return [
        *story,
        Drop("category 1 again", order[0]),
        Drop("a third benign", order[1], num_benign=ROWS // 3),
        Drop("20 rows", order[NUM_ROUNDS], num_rows=TOO_FEW_ROWS),
    ]


def play_continual(
    ground: Ground,
    config: Config,
    seed: int,
    *,
    num_rounds: int | None = None,
    on_round: Callable[[dict[str, Any]], None] = lambda entry: None,
) -> dict[str, Any]:
    """The story of one seed.

    Returns:
        "story": one entry for v0 and one for each round: what was dropped, what was decided, and the axes of what is
        served then, after the consolidation that the round made due. "reverted": the version of round 10, or of the last
        one where fewer are played, before a consolidation, without its first patch and without its last one that changes
        anything; of a consolidation's patch nothing is taken out.
    """
    reverted: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        line = Line(ground.base)
        axes = measure_start(ground)
        story = [_entry("v0", "", axes, published=True, dropped=())]
        for number, drop in enumerate(drops(ground, seed)[:num_rounds], 1):
            own_seed = seed * 1000 + number
            entry = _play(ground, config, line, drop, seed=own_seed, folder=Path(folder), before=axes)
            if number == min(NUM_ROUNDS, num_rounds or NUM_ROUNDS):
                taken = [_revert(ground, line, index) for index in taken_out(line.patches)]
                reverted = [one | {"after": number} for one in taken]
            entry |= play_due(ground, config, line, seed=own_seed, folder=Path(folder), entry=entry)
            story.append(entry)
            on_round(entry)
            axes = Axes(**entry["axes"])
        return {"story": story, "reverted": reverted}


def taken_out(patches: Sequence[tuple[str, SparsePatch]]) -> list[int]:
    """Which patches are taken out again by themselves: the first and the last that change anything."""
    changing = [
        i
        for i, (category, patch) in enumerate(patches)
        if category != TOGETHER and any(delta.indices.numel() for delta in patch.values())
    ]
    return sorted({changing[0], changing[-1]}) if changing else []


def _revert(ground: Ground, line: Line, index: int) -> dict[str, Any]:
    """The base with every published patch but one, as `alignd revert` merges it, without its gates."""
    category = line.patches[index][0]
    model = _load(ground.base)
    with ExitStack() as stack:
        for number, (_, patch) in enumerate(line.patches):
            if number != index:
                stack.enter_context(merged(model, patch))
        axes = measure_axes(model, load_tokenizer(ground.base), ground.world)
    others = [name for name in line.dropped if name != category]
    return {"category": category, "others": others, "axes": vars(axes)}


def play_due(
    ground: Ground, config: Config, line: Line, *, seed: int, folder: Path, entry: Mapping[str, Any]
) -> dict[str, Any]:
    """What an entry of the story is to say of the consolidation that its round made due; nothing where it made none due.

    Returns:
        "axes" of what is served after it, and "consolidated": what was decided, with the axes before and of the candidate.
    """
    if not is_due(line.num_alone, config.derive.consolidate_every).accepted:
        return {}
    before = entry["axes"]
    batch = together(line.batches, config.derive.max_rows)
    ours = {name: by_safety | by_over for name, (by_safety, by_over) in line.claims.items()}
    task = Task(ground, batch, seed, line.current, written=ours)
    candidate = folder / f"together-{seed}"
    played = play_consolidation(task, config, dict(line.batches), candidate)
    assert played.decision is not None
    written = changed_fraction(_load(line.current), _load(candidate))
    line.num_alone = 0
    if played.decision.accepted:
        line.current, line.patches, line.claims = candidate, [(TOGETHER, played.patch)], {}
        _claim(line.claims, played.patch, candidate)
    told = {
        "published": played.decision.accepted,
        "reasons": list(played.decision.reasons),
        "before": before,
        "candidate": vars(played.axes),
        "touched": written,
        "train_s": played.train_s,
    }
    return {"axes": vars(played.axes) if played.decision.accepted else before, "consolidated": told}


def changed_fraction(before: PreTrainedModel, after: PreTrainedModel) -> float:
    """Share of the decoder's linear weights that differ between two models, in [0, 1]: what a version costs."""
    pairs = zip(decoder_linears(before).values(), decoder_linears(after).values(), strict=True)
    changed = [(int((old != new).sum()), old.numel()) for old, new in pairs]
    return sum(count for count, _ in changed) / sum(numel for _, numel in changed)


def _play(
    ground: Ground, config: Config, line: Line, drop: Drop, *, seed: int, folder: Path, before: Axes
) -> dict[str, Any]:
    try:
        drawn = ground.batch([drop.category], drop.num_rows, seed=seed, num_benign=drop.num_benign)
        batch = join(line.batches, drop.name, drawn)[drop.name]
    except UnusableBatchError as err:
        entry = _entry(drop.name, drop.category, before, published=False, dropped=line.dropped)
        return entry | {"reasons": list(err.reasons)}
    task = Task(ground, batch, seed, line.current, dict(line.batches), line.claims)
    candidate = folder / f"round-{seed}"
    played = play_round(task, config, with_gates=True, keep_at=candidate)
    assert played.decision is not None
    published = played.decision.accepted
    line.dropped = sorted({*line.dropped, drop.category})
    if published:
        line.current = candidate
        line.batches[drop.name] = batch
        line.num_alone += 1
        line.patches.append((drop.category, played.patch))
        _claim(line.claims, played.patch, candidate)
    served = played.axes if published else before
    entry = _entry(drop.name, drop.category, served, published=published, dropped=line.dropped)
    return entry | {
        "reasons": list(played.decision.reasons),
        "touched": played.touched if published else 0.0,
        "candidate": vars(played.axes),
        "train_s": played.train_s,
        "loosened": played.steps["over_safety"]["steps"] > 0,
        "winner": played.steps["search"]["winner"]["point"],
    }


def _entry(name: str, category: str, axes: Axes, *, published: bool, dropped: Sequence[str]) -> dict[str, Any]:
    return {
        "drop": name, "category": category, "published": published, "dropped": list(dropped), "axes": vars(axes),
    }  # fmt: skip


def _claim(claims: dict[str, tuple[torch.Tensor, torch.Tensor]], patch: SparsePatch, candidate: Path) -> None:
    """Remember which entries a published patch wrote, by kind, as the store does."""
    shapes = {name: weight.shape for name, weight in decoder_linears(_load(candidate)).items()}
    for name, delta in patch.items():
        empty = (torch.zeros(shapes[name], dtype=torch.bool), torch.zeros(shapes[name], dtype=torch.bool))
        by_safety, by_over = claims.setdefault(name, empty)
        by_safety.view(-1)[delta.indices] |= (delta.kinds & SAFETY) > 0
        by_over.view(-1)[delta.indices] |= (delta.kinds & OVER_SAFETY) > 0


@cache
def measure_start(ground: Ground) -> Axes:
    """The axes of v0; measured once a process."""
    return _axes_of(ground, ground.base)


def _axes_of(ground: Ground, folder: Path) -> Axes:
    return measure_axes(_load(folder), load_tokenizer(folder), ground.world)


def _load(folder: Path) -> Any:
    return load_model(folder, dtype="float32", device=pick_device("auto"))
