"""`python -m benchmarks.speed` measures every row in a process of its own, prints the table and keeps it.

The results say which commit and machine made them. `--row NAME` measures one; nothing is kept then.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

from benchmarks.speed.rows import Row, table

ROOT: Final = Path(__file__).resolve().parent.parent.parent
WORK: Final = ROOT / "var" / "bench" / "speed"
RESULTS: Final = ROOT / "benchmarks" / "results" / "speed.json"
NAMES: Final = (
    "training", "scoring", "evaluation", "search", "round", "write", "memory-1B", "memory-3B", "rebuild", "size", "rollback",
    "ledger", "rest", "claim", "intake",
)  # fmt: skip


def _measures(name: str) -> Callable[[Path], list[Row]]:
    """Imports what one row needs, and no more: memory is measured too."""
    if name in ("training", "scoring", "evaluation", "search"):
        from benchmarks.speed import method

        return {
            "training": method.training,
            "scoring": method.scoring,
            "evaluation": method.evaluation,
            "search": method.search,
        }[name]
    if name == "round":
        from benchmarks.speed import by_hand

        return by_hand.whole_round
    if name in ("rest", "claim", "intake"):
        from benchmarks.speed import service

        return {"rest": service.at_rest, "claim": service.claim, "intake": service.intake}[name]
    from benchmarks.speed import store

    return {
        "write": store.write_version,
        "memory-1B": partial(store.write_memory, size="1B"),
        "memory-3B": partial(store.write_memory, size="3B"),
        "rebuild": store.rebuild,
        "size": store.version_size,
        "rollback": store.rollback,
        "ledger": store.ledger,
    }[name]


def main(argv: list[str] | None = None) -> int:
    """Measure; 0 whatever comes out, since budgets are goals and the table says which hold."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__)
    parser.add_argument("--row", action="append", choices=NAMES, help="these only; may be repeated")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.child:
        print(json.dumps([row.__dict__ for row in _measured(options.row[0])]))
        return 0
    rows: list[Row] = []
    for name in options.row or NAMES:
        print(f"{name} …", file=sys.stderr, flush=True)
        rows += _in_a_process(name)
    print(table(rows))
    if options.row is None:
        RESULTS.write_text(json.dumps(_about() | {"rows": [row.to_dict() for row in rows]}, indent=1) + "\n")
        print(f"kept in {RESULTS.relative_to(ROOT)}")
    return 0


def _measured(name: str) -> list[Row]:
    folder = WORK / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        return _measures(name)(folder)
    finally:
        shutil.rmtree(folder)


def _in_a_process(name: str) -> list[Row]:
    command = [sys.executable, "-m", "benchmarks.speed", "--child", "--row", name]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return [Row(**row) for row in json.loads(done.stdout.splitlines()[-1])]


def _about() -> dict[str, Any]:
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
    is_clean = not subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True).stdout
    import torch
    import transformers

    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit.stdout.strip() + ("" if is_clean else " and changes"),
        "machine": {"cores": os.cpu_count(), "processor": platform.processor() or platform.machine(), "threads": 1},
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }


if __name__ == "__main__":
    sys.exit(main())
