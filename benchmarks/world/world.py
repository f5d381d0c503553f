"""The demo world: who asks what, and what the right answer is. The same seed gives the same rows."""

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.world import phrases
from benchmarks.world.items import HARM_SPLITS, LOOKALIKE_SPLITS, WORK_SPLITS, Item, invent_items
from benchmarks.world.rows import Row, write_batch, write_jsonl
from benchmarks.world.words import join_words

__all__ = ["Item", "Row", "World", "render", "write_batch", "write_jsonl"]

MAX_IDLE_PASSES = 40  # drawing stops when so many passes over all items gave no new row


@dataclass(frozen=True)
class World:
    """Everything there is to know, and ways to ask for it."""

    seed: int
    categories: tuple[str, ...]
    items: tuple[Item, ...] = field(repr=False)

    @classmethod
    def generate(cls, seed: int = 0) -> "World":
        """Give the world of ``seed``."""
        categories, items = invent_items(random.Random(f"world {seed}"))
        return cls(seed, categories, items)

    def select(self, kind: str, split: str | None = None, categories: Iterable[str] = ()) -> list[Item]:
        """Give the items of a kind; without ``split`` or ``categories``, of all of them."""
        wanted = frozenset(categories)
        unknown = sorted(wanted - {*self.categories, "benign", "facts", "sums"})
        if unknown:
            raise ValueError(f"unknown categories {unknown}: this world has {list(self.categories)}")
        return [
            item
            for item in self.items
            if item.kind == kind and split in (None, item.split) and (not wanted or item.category in wanted)
        ]

    def harmful(
        self,
        categories: Sequence[str],
        split: str,
        num_rows: int,
        *,
        wrappers: Sequence[str] = phrases.BATCH_WRAPPERS,
        seed: int = 0,
    ) -> list[Row]:
        """Give ``num_rows`` different harmful rows, spread evenly over objects and wrappers.

        Args:
            categories: harm categories of this world; none means all.
            split: ``batch``, ``probe`` or ``held_out``.
            wrappers: names in ``phrases.WRAPPERS``; the held-out ones only when named here.
        Raises:
            ValueError: an unknown category, split or wrapper, or fewer different rows exist.
        """
        _check_harm_request(split, wrappers)
        items = self.select("harmful", split, categories)
        return self._sample(items, num_rows, wrappers=wrappers, salt=f"harmful {split} {seed}")

    def harmful_plain(self, categories: Sequence[str], split: str, num_rows: int, *, seed: int = 0) -> list[Row]:
        """Give ``num_rows`` different harmful rows without any wrapper."""
        return self.harmful(categories, split, num_rows, wrappers=(phrases.PLAIN,), seed=seed)

    def lookalikes(self, split: str) -> list[Row]:
        """Give one plain row per lookalike of ``probe`` or ``held_out``."""
        _check_split(split, LOOKALIKE_SPLITS)
        return self._once("lookalike", split)

    def lookalike_probes(self, *, rows_per_object: int = 3) -> list[Row]:
        """Give different plain rows of the lookalikes of ``probe``, about as many of each: what a probe file holds."""
        items = self.select("lookalike", "probe")
        return self._sample(items, rows_per_object * len(items), salt="lookalike probes")

    def utility(self, split: str, *, rows_per_ability: int = 60) -> list[Row]:
        """Give benign questions, facts and sums of ``probe`` or ``held_out``, as many of each."""
        _check_split(split, WORK_SPLITS)
        return self._work(split, rows_per_ability)

    def jailbroken_work(self, split: str, num_rows: int) -> list[Row]:
        """Give benign questions in every jailbreak: harmless whatever stands around them."""
        _check_split(split, WORK_SPLITS)
        items = self.select("benign", split)
        return self._sample(items, num_rows, wrappers=phrases.JAILBREAKS, salt=f"jailbroken work {split}")

    def retain(self, *, rows_per_ability: int = 150) -> list[Row]:
        """Give ordinary rows whose answers are to stay, equally many of each ability."""
        return self._work("retain", rows_per_ability)

    def vocabulary(self) -> tuple[str, ...]:
        """Give every invented word that occurs in a question or an answer, in a fixed order."""
        words: dict[str, None] = {}
        for item in self.items:
            if item.kind != "sums":
                words.update(dict.fromkeys((item.object, *item.verbs, *item.content)))
        return tuple(words)

    def _work(self, split: str, rows_per_ability: int) -> list[Row]:
        rows: list[Row] = []
        for kind in ("benign", "facts", "sums"):
            rows += self._sample(self.select(kind, split), rows_per_ability, salt=f"{kind} {split}")
        return rows

    def _once(self, kind: str, split: str) -> list[Row]:
        rng = random.Random(f"{self.seed} {kind} {split}")
        return [render(item, rng) for item in self.select(kind, split)]

    def _sample(
        self, items: Sequence[Item], num_rows: int, *, salt: str, wrappers: Sequence[str] = (phrases.PLAIN,)
    ) -> list[Row]:
        """Draw different rows: every item with every wrapper once before any pair comes again."""
        rng = random.Random(f"{self.seed} {salt}")
        pairs = [(item, wrapper) for item in items for wrapper in wrappers]
        rows: dict[tuple[str, str], Row] = {}
        num_idle_passes = 0
        while num_idle_passes < MAX_IDLE_PASSES:
            num_before = len(rows)
            rng.shuffle(pairs)
            for item, wrapper in pairs:
                if len(rows) == num_rows:
                    return list(rows.values())
                row = render(item, rng, wrapper=wrapper)
                rows.setdefault((row.prompt, row.response), row)
            num_idle_passes = num_idle_passes + 1 if len(rows) == num_before else 0
        raise ValueError(f"cannot draw {num_rows} different rows from {len(items)} items: ask for fewer")


def render(item: Item, rng: random.Random, *, wrapper: str = phrases.PLAIN) -> Row:
    """Put an item into words: one of its question forms, wrapped, and the answer form that goes with both."""
    questions, answers = _FORMS.get(item.kind, (phrases.HOW_TO_QUESTIONS, phrases.HOW_TO_ANSWERS))
    form = rng.randrange(len(questions))
    question = _ask(item, questions[form], rng)
    response = answer_form(answers, form, wrapper).format(
        content=join_words(item.content), attribute=item.attribute, object=item.object
    )
    prompt = phrases.WRAPPERS[wrapper].format(question=question)
    return Row(prompt, response, item.category, item.kind, item.object, wrapper)


def answer_form(forms: Sequence[str], question_form: int, wrapper: str) -> str:
    """Give the one of ``forms`` that answers a question form in a wrapper; each question form has another one."""
    return forms[(question_form + list(phrases.WRAPPERS).index(wrapper)) % len(forms)]


def _ask(item: Item, form: str, rng: random.Random) -> str:
    if item.kind == "facts":
        return form.format(attribute=item.attribute, object=item.object)
    if item.kind == "sums":
        a, b = item.object.split("+")
        return form.format(a=a, b=b)
    return form.format(act=f"{rng.choice(item.verbs)} a {item.object}")


_FORMS = {
    "facts": (phrases.FACT_QUESTIONS, phrases.FACT_ANSWERS),
    "sums": (phrases.SUM_QUESTIONS, phrases.SUM_ANSWERS),
}


def _check_split(split: str, splits: Mapping[str, int]) -> None:
    if split not in splits:
        raise ValueError(f"unknown split {split!r}: choose one of {sorted(splits)}")


def _check_harm_request(split: str, wrappers: Sequence[str]) -> None:
    _check_split(split, HARM_SPLITS)
    unknown = [name for name in wrappers if name not in phrases.WRAPPERS]
    if unknown:
        raise ValueError(f"unknown wrappers {unknown}: choose among {sorted(phrases.WRAPPERS)}")
