"""`python -m benchmarks.speed` measures every row in a process of its own, prints the table and keeps it.

The results say of each row which commit and machine made it, and how busy that was. `--row NAME` measures one, and keeps it
with `--keep` only. `--report` prints what is kept, as docs/performance.md has it. `--growth` measures instead how each step
grows, and keeps that in files of its own, with plots.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, cast

from benchmarks.speed import growth, growth_plots, growth_steps
from benchmarks.speed.rows import Row, markdown, table

ROOT: Final = Path(__file__).resolve().parent.parent.parent
WORK: Final = ROOT / "var" / "bench" / "speed"
RESULTS: Final = ROOT / "benchmarks" / "results" / "speed.json"
_WHERE: Final = {
    "training": ("method", "training"),
    "scoring": ("method", "scoring"),
    "evaluation": ("method", "evaluation"),
    "search": ("method", "search"),
    "round": ("by_hand", "whole_round"),
    "write": ("store", "write_version"),
    "mergekit": ("peers", "mergekit"),
    "memory-1B": ("store", "memory_at_1b"),
    "memory-3B": ("store", "memory_at_3b"),
    "rebuild": ("store", "rebuild"),
    "size": ("store", "version_size"),
    "rollback": ("store", "rollback"),
    "ledger": ("store", "ledger"),
    "rest": ("service", "at_rest"),
    "claim": ("service", "claim"),
    "intake": ("service", "intake"),
    "intake-memory": ("service", "intake_memory"),
}
NAMES: Final = tuple(_WHERE)


def _measures(name: str) -> Callable[[Path], list[Row]]:
    """Imports what one row needs, and no more: memory is measured too."""
    module, function = _WHERE[name]
    return cast("Callable[[Path], list[Row]]", getattr(importlib.import_module(f"benchmarks.speed.{module}"), function))


def main(argv: list[str] | None = None) -> int:
    """Measure; 0 whatever comes out, since budgets are goals and the table says which hold."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__)
    parser.add_argument("--row", action="append", choices=NAMES, help="these only; may be repeated")
    parser.add_argument("--without", action="append", choices=NAMES, default=[], help="all but these")
    parser.add_argument("--keep", action="store_true", help="with --row: in place of what is kept of it")
    parser.add_argument("--report", action="store_true", help="measure nothing: print what is kept, in Markdown")
    parser.add_argument(
        "--growth",
        nargs="*",
        choices=growth_steps.AXES,
        metavar="AXIS",
        help="against rows, parameters and rounds, or some",
    )
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.child:
        print(json.dumps([row.__dict__ for row in _measured(options.row[0])]))
        return 0
    if options.growth is not None:
        return _growth(options.growth or growth_steps.AXES)
    if options.report:
        print(markdown(json.loads(RESULTS.read_text())))
        return 0
    rows: list[Row] = []
    for name in options.row or [name for name in NAMES if name not in options.without]:
        print(f"{name} …", file=sys.stderr, flush=True)
        about, found = _about(), _in_a_process(name)
        rows += found
        if found and (options.keep or options.row is None):
            _keep(name, about, found)
    print(table(rows))
    return 0


def _keep(name: str, about: dict[str, Any], rows: Sequence[Row]) -> None:
    """In place of what is kept of it; after each row, since what follows may take an hour, or fail."""
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    kept[name] = {"about": about, "rows": [row.to_dict() for row in rows]}
    in_order = {part: kept[part] for part in NAMES if part in kept}
    RESULTS.write_text(json.dumps(in_order, indent=1) + "\n")


def _growth(axes: Sequence[str]) -> int:
    """Measure against some axes; what is kept of the others stays."""
    folder = WORK / f"growth-{os.getpid()}"
    about = _about()
    try:
        found = [curve.to_dict() | {"about": about} for curve in growth.curves(folder, axes)]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    path = RESULTS.parent / "growth.json"
    old = json.loads(path.read_text()) if path.exists() else []
    kept = [curve for curve in old if curve["axis"] not in axes] + found
    path.write_text(json.dumps(kept, indent=1) + "\n")
    curves = [growth.Curve.of(curve) for curve in kept]
    print(growth.table(curves))
    for drawn in growth_plots.plot(curves, RESULTS.parent):
        print(f"drawn in {drawn.relative_to(ROOT)}")
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
    # what is kept of the rows before is no change of what is measured
    changes = ["git", "status", "--porcelain", "--", ".", ":!benchmarks/results"]
    is_clean = not subprocess.run(changes, cwd=ROOT, capture_output=True, text=True).stdout
    import torch
    import transformers

    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit.stdout.strip() + ("" if is_clean else " and changes"),
        "machine": {"cores": os.cpu_count(), "threads": 1, **_processor()},
        "load_before": round(os.getloadavg()[0], 2),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }


def _processor() -> dict[str, Any]:
    """Its name, and whether it has instructions for SHA-256, which exports take."""
    info = Path("/proc/cpuinfo")
    text = info.read_text(encoding="utf-8") if info.exists() else ""
    name = next((line.split(":")[1].strip() for line in text.splitlines() if line.startswith("model name")), "")
    return {"processor": name or platform.machine(), "has_sha_instructions": " sha_ni" in text or " sha2" in text}


if __name__ == "__main__":
    sys.exit(main())
