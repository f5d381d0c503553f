"""The files that a team brings to a model of its own, as the demo world has them: probes, retained rows, batches.

`python -m benchmarks.world.files HOME` writes them into a home; the tutorial starts with it.
"""

import sys
from pathlib import Path

from benchmarks.world.rows import write_batch, write_jsonl
from benchmarks.world.world import World

ROWS_PER_BATCH = 300


def write_files(home: Path, world: World) -> list[Path]:
    """Write probes and retained rows where a home looks for them, and three batches beside its inbox."""
    batches = home / "batches"
    batches.mkdir(exist_ok=True)
    kept = {
        home / "probes" / "over_safety.jsonl": world.lookalike_probes(),
        home / "probes" / "utility.jsonl": world.utility("probe"),
        home / "probes" / "harm.jsonl": world.harmful(world.categories, "probe", 12 * len(world.categories)),
        home / "retain.jsonl": world.retain(),
    }
    for path, rows in kept.items():
        write_jsonl(rows, path)
    names = ("monday.jsonl", "tuesday.csv", "wednesday.parquet")
    for number, name in enumerate(names):
        categories = world.categories[2 * number : 2 * number + 2]
        write_batch(world.harmful(categories, "batch", ROWS_PER_BATCH, seed=number + 1), batches / name)
    return [*kept, *(batches / name for name in names)]


def main(words: list[str]) -> int:
    """Write them into the home that is named; 2 where none is."""
    if len(words) != 1 or not Path(words[0], "service.toml").is_file():
        print("usage: python -m benchmarks.world.files HOME   (a home that `alignd init` made)", file=sys.stderr)
        return 2
    home = Path(words[0])
    for path in write_files(home, World.generate(0)):
        print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
