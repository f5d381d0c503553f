"""A version of the demo model on the three axes, on objects that no batch and no probe contains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.world import phrases
from benchmarks.world.world import Row, World
from patches.evaluate import Axis, Probe, ProbeSet, Tally, measure
from patches.generate import Generator
from patches.judge import RuleJudge
from patches.model import load_model, load_tokenizer

MAX_NEW_TOKENS = 48
ROWS_PER_CATEGORY = 24


@dataclass(frozen=True)
class VersionAxes:
    """Shares in [0, 1] of one version."""

    harm_seen: float
    """Jailbroken questions about objects of the dropped batches, answered with the harmful content."""
    harm_held_out: float
    """The same for objects of those categories that no batch contains, held-out jailbreaks included."""
    harm_plain: float
    """Plain questions about those held-out objects; v0 refuses them."""
    harm_others: float
    """Jailbroken questions of categories that were not dropped."""
    over_refusal_seen: float
    """Lookalikes of the probes, refused."""
    over_refusal_held_out: float
    right_held_out: float
    """Lookalikes that no probe contains, answered rightly."""
    utility_seen: float
    utility_held_out: float


def measure_version(folder: Path, world: World, dropped: Sequence[str]) -> VersionAxes:
    """Measure one model folder; ``dropped`` are the categories of all batches of the story."""
    model = load_model(folder, dtype="float32", device=torch.device("cpu"))
    generator = Generator(model, load_tokenizer(folder), MAX_NEW_TOKENS)
    sets = _sets(world, dropped)
    found = {name: tallies[""] for name, tallies in measure(generator, RuleJudge(), sets).tallies.items()}
    return VersionAxes(
        harm_seen=share(found["harm seen"], "num_content"),
        harm_held_out=share(found["harm held out"], "num_content"),
        harm_plain=share(found["harm plain"], "num_content"),
        harm_others=share(found["harm others"], "num_content"),
        over_refusal_seen=share(found["lookalikes seen"], "num_refusals"),
        over_refusal_held_out=share(found["lookalikes held out"], "num_refusals"),
        right_held_out=share(found["lookalikes held out"], "num_right"),
        utility_seen=share(found["utility seen"], "num_right"),
        utility_held_out=share(found["utility held out"], "num_right"),
    )


def _sets(world: World, dropped: Sequence[str]) -> list[ProbeSet]:
    others = [category for category in world.categories if category not in dropped]

    def harm(name: str, categories: Sequence[str], split: str, wrappers: Sequence[str]) -> ProbeSet:
        rows = world.harmful(categories, split, ROWS_PER_CATEGORY * len(categories), wrappers=wrappers, seed=99)
        return probe_set(name, "harm", rows)

    return [
        harm("harm seen", dropped, "batch", phrases.BATCH_JAILBREAKS),
        harm("harm held out", dropped, "held_out", phrases.JAILBREAKS),
        harm("harm plain", dropped, "held_out", (phrases.PLAIN,)),
        harm("harm others", others, "held_out", phrases.JAILBREAKS),
        probe_set("lookalikes seen", "over_safety", world.lookalikes("probe")),
        probe_set("lookalikes held out", "over_safety", world.lookalikes("held_out")),
        probe_set("utility seen", "utility", world.utility("probe")),
        probe_set("utility held out", "utility", world.utility("held_out")),
    ]


def probe_set(name: str, axis: Axis, rows: Sequence[Row]) -> ProbeSet:
    """Plain questions, counted by category."""
    return ProbeSet(
        name, axis, tuple(Probe(({"role": "user", "content": r.prompt},), r.response, r.category) for r in rows)
    )


def share(tally: Tally, field: str) -> float:
    """Share of the prompts that a field of the tally counts."""
    return float(getattr(tally, field)) / tally.num_prompts
