"""Ours with other settings: `python -m benchmarks.method.tune 'derive.safety.max_steps = 90'`.

Each argument is one variant: settings as in service.toml, several with a semicolon between them, so that none can stand in a
value; the default is always tried too. Prints a line as each run ends and a table in the end, with one figure a seed. Nothing
else is kept.

The default seeds are in no table: other categories and rows are dropped. What is asked afterwards is the same held-out
questions as in the tables, so figures that were tuned here are not free of them.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from benchmarks.method.pool import run_each, worker_count
from benchmarks.world.sizes import SIZES

COLUMNS: Final = ("harm", "harm elsewhere", "plain refused", "over-refusal", "right", "utility", "ability kept")
DEFAULT: Final = "the default"
Found = Mapping[tuple[str, int], Mapping[str, float]]
"""Columns by variant and seed."""


@dataclass(frozen=True)
class Trial:
    """One variant on one seed."""

    ground: str
    variant: str
    seed: int
    out: Path
    """Where its figures go."""


def main(argv: list[str] | None = None) -> int:
    """Run what is asked for; 1 when a run failed."""
    options = _options(argv)
    variants = [DEFAULT, *options.variants]
    num_failed, found = 0, dict[tuple[str, int], dict[str, float]]()
    with tempfile.TemporaryDirectory() as folder:
        pairs = [(variant, seed) for seed in options.seeds for variant in variants]
        trials = [Trial(options.ground, *pair, Path(folder) / f"{number}.json") for number, pair in enumerate(pairs)]
        for trial, error in run_each(trials, run_trial, options.workers):
            num_failed += error is not None
            print(f"{trial.variant}, seed {trial.seed}: {error or 'done'}", file=sys.stderr, flush=True)
            if error is None:
                found[trial.variant, trial.seed] = json.loads(trial.out.read_text())
    print(table(variants, options.seeds, found))
    return 1 if num_failed else 0


def run_trial(trial: Trial) -> None:
    """Play one round and write its columns."""
    import torch

    from benchmarks.method.ground import open_ground
    from benchmarks.method.methods import OURS, settings_of
    from benchmarks.method.play import play_round
    from benchmarks.method.run import play_single
    from benchmarks.method.summary import single_numbers

    torch.set_num_threads(1)
    config = settings_of(OURS, settings(trial.variant))
    result = play_single(open_ground(trial.ground), partial(play_round, config=config), trial.seed)
    trial.out.write_text(json.dumps(single_numbers(result)), encoding="utf-8")


def settings(variant: str) -> dict[str, Any]:
    """A variant as the tables of service.toml. Raises ValueError where it is no TOML."""
    return {} if variant == DEFAULT else tomllib.loads(variant.replace(";", "\n"))


def table(variants: Sequence[str], seeds: Sequence[int], found: Found) -> str:
    """In Markdown, a line a variant, in per cent, a figure a seed; `-` where a run failed."""
    lines = [f"| seeds {' / '.join(map(str, seeds))} | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|"]
    for variant in variants:
        cells = [" / ".join(_cell(found.get((variant, seed)), column) for seed in seeds) for column in COLUMNS]
        lines.append(f"| {variant} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(numbers: Mapping[str, float] | None, column: str) -> str:
    return "-" if numbers is None else f"{100 * numbers[column]:.1f}"


def _options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.method.tune", description=__doc__)
    parser.add_argument("variants", nargs="+", type=_variant, metavar="SETTINGS")
    parser.add_argument("--ground", default="demo", choices=list(SIZES), help="(default: demo)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[3, 4], help="(default: 3 4)")
    parser.add_argument(
        "--workers", type=worker_count, default=os.cpu_count() or 1, help="processes (default: one a core)"
    )
    return parser.parse_args(argv)


def _variant(word: str) -> str:
    """The word itself, if it is settings that can be used; found out before hours of work."""
    from benchmarks.method.methods import OURS, settings_of

    try:
        if not settings(word):
            raise ValueError("it sets nothing, and the default is tried anyway")
        settings_of(OURS, settings(word))
    except ValueError as err:
        raise argparse.ArgumentTypeError(f"{word!r}: {err}") from err
    return word


if __name__ == "__main__":
    sys.exit(main())
