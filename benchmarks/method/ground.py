"""What a method is tried on: a model, its world, probe files as a team would have them, and batches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.world import phrases
from benchmarks.world.cache import model_folder
from benchmarks.world.sizes import SIZES
from benchmarks.world.world import Row, World
from daemon.config import InboxSection
from daemon.intake import SPLIT_SEED, TakenIn, UnusableBatchError
from daemon.probes import ProbeFiles, ProbeRow
from daemon.rows import Message
from daemon.rows import Row as BatchRow
from patches.judge import RuleJudge
from policies.intake import IntakeConfig, normalised, screen, split_rows

PROBES_PER_CATEGORY, WORK_PROBES_PER_ABILITY, RETAINED_PER_ABILITY = 12, 120, 150


@dataclass(frozen=True)
class Ground:
    """One world with the model that knows it."""

    name: str
    base: Path
    world: World
    retained_per_ability: int = RETAINED_PER_ABILITY

    def files(self) -> ProbeFiles:
        """Standing probes of every category, lookalikes, ordinary work, and rows to retain; none is measured on."""
        world = self.world
        harm = world.harmful(world.categories, "probe", PROBES_PER_CATEGORY * len(world.categories))
        return ProbeFiles(
            harm=_probe_rows(harm),
            over_safety=_probe_rows(world.lookalike_probes()),
            utility=_probe_rows(world.utility("probe", rows_per_ability=WORK_PROBES_PER_ABILITY)),
            retain=_probe_rows(world.retain(rows_per_ability=self.retained_per_ability)),
            digests={},
        )

    def batch(self, categories: Sequence[str], num_rows: int, *, seed: int, num_benign: int = 0) -> TakenIn:
        """A batch of harmful rows, screened and split as intake does it.

        Args:
            num_benign: rows of ordinary work among them, which no probe and no retained row asks.
        Raises:
            UnusableBatchError: the screening refuses it.
        """
        rows = self.world.harmful(categories, "batch", num_rows - num_benign, seed=seed)
        return taken_in([*rows, *self._benign(num_benign)])

    def _benign(self, num_rows: int) -> list[Row]:
        known = {row.prompt for row in self.world.retain(rows_per_ability=self.retained_per_ability)}
        more = self.world.retain(rows_per_ability=self.retained_per_ability + num_rows)
        return [row for row in more if row.prompt not in known and row.kind == "benign"][:num_rows]


def open_ground(name: str) -> Ground:
    """The ground of a size: ``demo``, or ``mid``, whose model is built when it is first asked for."""
    if name not in SIZES:
        raise ValueError(f"unknown ground {name!r}: choose one of {sorted(SIZES)}")
    return Ground(name, model_folder(SIZES[name]), World.generate(0))


def taken_in(rows: Iterable[Row]) -> TakenIn:
    """Rows as intake would hand them on. Raises UnusableBatchError."""
    found = [
        BatchRow((Message("user", row.prompt),), row.response, row.category, "batch", number)
        for number, row in enumerate(rows, 1)
    ]
    screened = screen(found, RuleJudge().is_refusal, IntakeConfig(min_rows=InboxSection().min_rows))
    if not screened.decision.accepted:
        raise UnusableBatchError(tuple(screened.decision.reasons), {})
    return TakenIn(screened.kept, split_rows(screened.kept, SPLIT_SEED), {})


def _probe_rows(rows: Iterable[Row]) -> tuple[ProbeRow, ...]:
    return tuple(
        ProbeRow(({"role": "user", "content": row.prompt},), row.response, row.category, normalised(row.prompt))
        for row in rows
    )


def harm_rows(world: World, category: str, *, jailbroken: bool, num_rows: int) -> list[Row]:
    """Questions about held-out objects of one category: plain, or in every jailbreak, the held-out ones among them."""
    wrappers = phrases.JAILBREAKS if jailbroken else (phrases.PLAIN,)
    return world.harmful((category,), "held_out", num_rows, wrappers=wrappers, seed=99)
