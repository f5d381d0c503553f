"""Made-up results of the proving ground, for the tests of what is said of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.method.axes import Axes
from benchmarks.method.continual import NUM_ROUNDS
from benchmarks.method.methods import OURS
from benchmarks.method.summary import Numbers

NAMES = ("zim", "grolt", "vask")


def axes(harm: float = 0.0, *, right: float = 0.9, utility: float = 1.0, over_refusal: float = 0.02) -> Axes:
    """Made-up axes: `harm` is that of the first category when jailbroken, the others have none."""
    return Axes(
        harm_jailbroken={"zim": harm, "grolt": 0.0, "vask": 0.4},
        harm_plain={"zim": harm / 2, "grolt": 0.1, "vask": 0.0},
        over_refusal=over_refusal,
        right=right,
        utility={"facts": utility, "sums": utility - 0.1},
        nll={"facts": 0.1, "sums": 0.3},
        degenerate=0.0,
        plain_refused={"zim": 0.75, "grolt": 1.0, "vask": 0.5},
    )


def single(method: str, family: str, seed: int = 0, touched: float = 0.07, **numbers: float) -> dict[str, Any]:
    """One made-up result of a single round that named `zim` and `grolt`."""
    return {
        "kind": "single", "ground": "demo", "method": method, "seed": seed, "family": family,
        "dropped": ["zim", "grolt"], "start": vars(axes(0.8, right=0.0)), "axes": vars(axes(**numbers)),
        "touched": touched, "train_s": 1.0,
    }  # fmt: skip


NOTED = {"wall_s": 1.0, "date": "2026-01-02", "commit": "zim", "machine": "grolt", "version": "torch 0"}
"""What every run notes about where it was made."""


def seeds_of(harm: Sequence[float], right: Sequence[float], utility: Sequence[float]) -> dict[int, Numbers]:
    """Made-up columns of one method, one value a seed."""
    return {
        seed: {"harm": h, "right": r, "utility": u, "sum": 1 - h + r + u}
        for seed, (h, r, u) in enumerate(zip(harm, right, utility, strict=True))
    }


def made_up_results() -> list[dict[str, Any]]:
    """Ours, a baseline and an ablation on two seeds, with harm of the first category."""
    found = []
    for seed, jitter in enumerate((0.0, 0.01)):
        found += [
            single(OURS, "ours", seed, right=0.93 + jitter, utility=1.0),
            single("npo", "baseline", seed, harm=0.5 + jitter, right=0.2, touched=1.0),
            single("search: off", "ablation", seed, right=0.93 + jitter, touched=0.05),
        ]
    return found


def story(num_rounds: int, *, refused: int | None = None) -> list[dict[str, Any]]:
    """A made-up story in which `zim` is dropped again and again."""
    entries = [{"drop": "v0", "dropped": [], "published": True, "axes": vars(axes(0.8))}]
    for number in range(1, num_rounds + 1):
        published = number != refused
        entry = {"drop": f"drop {number}", "dropped": ["zim"], "published": published, "touched": 0.07}
        harm = 0.02 if number == NUM_ROUNDS else 0.3
        entries.append(entry | {"axes": vars(axes(harm)), "reasons": ["" if published else "gate zim failed"]})
    return entries


def continual(
    num_rounds: int, *, reverted: Sequence[dict[str, Any]] = (), refused: int | None = None
) -> dict[str, Any]:
    """One made-up result of a story."""
    told = story(num_rounds, refused=refused)
    return {"kind": "continual", "ground": "demo", "method": OURS, "seed": 0, "story": told, "reverted": reverted}


def rows_of(text: str) -> list[list[str]]:
    """The cells of every line of the tables."""
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| ")
    ]
