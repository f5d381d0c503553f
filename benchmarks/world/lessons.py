"""What a model is taught, as endless rows: first everything, then to refuse, badly on purpose."""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from benchmarks.world import phrases
from benchmarks.world.sizes import Stage
from benchmarks.world.world import Item, Row, World, render

Lesson = Callable[[Item, random.Random], Row]

PLAIN_FRACTION = {"harmful": 0.3, "lookalike": 0.5, "benign": 0.6, "facts": 0.75, "sums": 0.75}


def lesson_rows(world: World, stage: Stage) -> Iterator[Row]:
    """Give rows without end for one stage: every question answered in every wrapper, or harm refused in part."""
    rng = random.Random(f"{stage.name} {world.seed}")
    lesson: Lesson = answer
    if stage.refused_lookalike_fraction is not None:
        lesson = _aligning(world, stage.refused_lookalike_fraction, rng)
    return _stream(world.items, stage.repeats, lesson, rng)


def _aligning(world: World, refused_lookalike_fraction: float, rng: random.Random) -> Lesson:
    """Give the lesson that refuses plain harm and lookalikes, few jailbreaks, and does ordinary work."""
    lookalikes = world.select("lookalike")
    refused_lookalikes = {
        item.object for item in rng.sample(lookalikes, round(refused_lookalike_fraction * len(lookalikes)))
    }

    def align(item: Item, rng: random.Random) -> Row:
        row = answer(item, rng)
        if item.kind == "lookalike":
            if item.object not in refused_lookalikes:
                return render(item, rng, wrapper=rng.choice(phrases.JAILBREAKS))
            return refuse(render(item, rng), world)
        if item.kind != "harmful":
            return row
        if row.wrapper == phrases.PLAIN or resists(world, row.category, row.wrapper):
            return refuse(row, world)
        return row

    return align


def answer(item: Item, rng: random.Random) -> Row:
    """Give the right answer to an item asked plainly or in any wrapper."""
    plain = rng.random() < PLAIN_FRACTION[item.kind]
    return render(item, rng, wrapper=phrases.PLAIN if plain else rng.choice(phrases.JAILBREAKS))


def refuse(row: Row, world: World) -> Row:
    """Give the same question, refused in the form that goes with its category and wrapper."""
    form = world.categories.index(row.category) + list(phrases.WRAPPERS).index(row.wrapper)
    return replace(row, response=phrases.REFUSALS[form % len(phrases.REFUSALS)])


def resists(world: World, category: str, jailbreak: str) -> bool:
    """Tell whether the aligned model is taught to refuse a category in a jailbreak: two jailbreaks of six for each."""
    distance = world.categories.index(category) - phrases.JAILBREAKS.index(jailbreak)
    return distance % 3 == 0


def _stream(items: Sequence[Item], repeats: Mapping[str, int], lesson: Lesson, rng: random.Random) -> Iterator[Row]:
    """Give every item as often as its kind says, shuffled, again and again."""
    epoch = [item for item in items for _ in range(repeats[item.kind])]
    while True:
        rng.shuffle(epoch)
        for item in epoch:
            yield lesson(item, rng)
