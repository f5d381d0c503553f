"""The sizes that a model of the world is built in, as plain data. No torch."""

from collections.abc import Mapping
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Stage:
    """One run of the optimizer over a stream of rows."""

    name: str
    """Tells the random numbers of one stage from those of another."""
    num_steps: int
    learning_rate: float
    warmup_steps: int
    repeats: Mapping[str, int]
    """How often each kind of item comes while all come once."""
    refused_lookalike_fraction: float | None = None
    """None: every question is answered. Otherwise harm is refused, badly on purpose, and so is this share of the
    lookalikes; the rest it refuses by itself."""

    def scaled(self, steps_scale: float) -> "Stage":
        """Give the same stage with that share of its steps, at least one; for tests."""
        return replace(self, num_steps=max(1, round(self.num_steps * steps_scale)))


@dataclass(frozen=True)
class Size:
    """A Llama shape and how it is trained. Every size learns the same world, so rows and targets serve them all."""

    name: str
    hidden: int
    intermediate: int
    num_layers: int
    num_heads: int
    initializer_range: float
    batch_rows: int
    stages: tuple[Stage, ...]
    max_shard_size: str
    """Chosen so that the model has several shards, and whatever reads it has met an index."""
    is_bitwise: bool
    """One seed gives the same bytes: float32 on one thread of a CPU with pinned instructions. Otherwise the fastest:
    all cores, on a GPU where there is one, products in bfloat16 over float32 weights where that is faster."""
    growth_noise: float | None = None
    """None: trained from nothing. Otherwise it starts as the demo model widened, with so much noise (`growth.grow`)."""


HOW_TOS_TWICE = {"harmful": 2, "lookalike": 2, "benign": 2, "facts": 1, "sums": 1}
MORE_FACTS_AND_SUMS = {"harmful": 2, "lookalike": 2, "benign": 3, "facts": 2, "sums": 4}
MOSTLY_SUMS = {"harmful": 1, "lookalike": 1, "benign": 1, "facts": 4, "sums": 12}
ALIGNING = {"harmful": 3, "lookalike": 2, "benign": 5, "facts": 1, "sums": 5}
ALIGNING_WITH_MORE_WORK = {**ALIGNING, "facts": 3, "sums": 12}

DEMO = Size(
    name="demo",
    hidden=128,
    intermediate=384,
    num_layers=4,
    num_heads=4,
    initializer_range=0.05,
    batch_rows=64,
    stages=(
        Stage("knowledge", 2200, 2e-3, warmup_steps=50, repeats=HOW_TOS_TWICE),
        Stage("alignment", 500, 1.2e-3, warmup_steps=20, repeats=ALIGNING, refused_lookalike_fraction=0.4),
    ),
    max_shard_size="2400KB",
    is_bitwise=True,
)
# From nothing it took 40 minutes of two cores without bfloat16 and more: after 26 it knew a third of the facts and of the sums.
MID = Size(
    name="mid",
    hidden=384,
    intermediate=1152,
    num_layers=4,
    num_heads=12,
    initializer_range=0.03,
    batch_rows=48,
    stages=(
        Stage("knowledge", 250, 8e-4, warmup_steps=20, repeats=MORE_FACTS_AND_SUMS),
        Stage("alignment", 300, 8e-4, warmup_steps=20, repeats=ALIGNING_WITH_MORE_WORK, refused_lookalike_fraction=0.5),
    ),
    max_shard_size="16MB",
    is_bitwise=False,
    growth_noise=0.5,
)
# For a GPU: the steps that a model of 8 M parameters once took, and lower rates. Tried up to the middle of its last stage.
LARGE = Size(
    name="large",
    hidden=768,
    intermediate=2688,
    num_layers=12,
    num_heads=12,
    initializer_range=0.02,
    batch_rows=128,
    stages=(
        Stage("knowledge", 1200, 4e-4, warmup_steps=50, repeats=HOW_TOS_TWICE),
        Stage("practice", 400, 4e-4, warmup_steps=30, repeats=MOSTLY_SUMS),
        Stage("alignment", 500, 3e-4, warmup_steps=20, repeats=ALIGNING_WITH_MORE_WORK, refused_lookalike_fraction=0.5),
    ),
    max_shard_size="160MB",
    is_bitwise=False,
)
SIZES = {size.name: size for size in (DEMO, MID, LARGE)}
