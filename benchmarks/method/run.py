"""`make bench-method`: ours, the baselines and ten rounds in a row, on several seeds; tables, JSON, plots.

`--ablations` adds the ablations of ours, the accumulated masks, and ours with less and more to learn from; once there, they
are reported by every run. One process a core, one thread a process. Each finished job is kept under var/bench/method, so
that a run that was stopped goes on; --fresh forgets them. `--report --from benchmarks/results/method.json` makes the
committed tables and plots again from that file; runs of this code, where there are any, replace theirs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.method import jobs, report
from benchmarks.method.jobs import ROOT, SEEDS, Job, code_digest, plan
from benchmarks.method.pool import run_each, worker_count

if TYPE_CHECKING:
    from benchmarks.method.ground import Ground
    from benchmarks.method.play import Played, Task

SINGLE_ROWS, SINGLE_CATEGORIES = 300, 2
VARIANT_ROUNDS = 3
NAMED_AT_MOST = 3


def main(argv: list[str] | None = None) -> int:
    """Run what is missing, then print and write everything that there are results of."""
    options = _options(argv)
    if options.fresh:
        shutil.rmtree(jobs.CACHE, ignore_errors=True)
    (jobs.CACHE / code_digest()).mkdir(parents=True, exist_ok=True)
    planned = plan(options.grounds, options.seeds, only=options.only, with_ablations=options.ablations)
    num_failed = 0 if options.report else run_all(planned, options.workers)
    known = plan(options.grounds, options.seeds, only=options.only, with_ablations=True)
    found = report.read_results(options.source) if options.source else {}
    found |= report.kept_results(known)
    out = options.out or _place(found, options.grounds)
    report.write_results(list(found.values()), out)
    print(f"\nwritten to {out}; {len(set(planned) - set(found))} of {len(planned)} runs are missing")
    return 1 if num_failed else 0


def _place(found: report.Found, grounds: Sequence[str]) -> Path:
    """Where the results go: to the committed ones, unless these would lose something."""
    lacking = report.missing_from_whole(found, grounds)
    if not lacking:
        return report.RESULTS
    print(
        f"{report.RESULTS} stays as it is: {len(lacking)} runs that it has or should have are not among these "
        f"({_named(lacking)}). --from {report.RESULTS / report.FILE} takes over those that it has.",
        file=sys.stderr,
    )
    return jobs.CACHE / "partial"


def _named(found: Sequence[Job]) -> str:
    more = [f"{len(found) - NAMED_AT_MOST} others"] if len(found) > NAMED_AT_MOST else []
    return ", ".join([*map(str, found[:NAMED_AT_MOST]), *more])


def run_all(planned: Sequence[Job], num_workers: int) -> int:
    """Run the jobs that have no result yet, in processes of one thread each; give how many failed.

    One that fails, or whose process dies, says why and leaves no result; the others go on.
    """
    missing = [job for job in planned if not job.path.exists()]
    num_failed = 0
    began = time.monotonic()
    for number, (job, error) in enumerate(run_each(missing, run_job, num_workers), 1):
        num_failed += error is not None
        outcome = f"FAILED: {error}" if error else f"{time.monotonic() - began:.0f} s"
        print(f"{number}/{len(missing)} {job}  {outcome}", file=sys.stderr, flush=True)
    return num_failed


def run_job(job: Job) -> None:
    """Run one job and keep its result."""
    import torch

    torch.set_num_threads(1)
    began = time.monotonic()
    work: Callable[[Job], dict[str, Any]] = {
        "single": _single, "continual": _continual, "supply": _supply,
    }[job.kind]  # fmt: skip
    names: dict[str, Any] = {"kind": job.kind, "ground": job.ground, "method": job.method, "seed": job.seed}
    names |= {"date": time.strftime("%Y-%m-%d", time.gmtime())}
    names |= {"commit": commit(), "machine": _machine(), "version": _versions()}
    result = names | work(job)
    staged = job.path.with_suffix(".part")
    staged.write_text(json.dumps(result | {"wall_s": round(time.monotonic() - began, 1)}), encoding="utf-8")
    staged.rename(job.path)


def _single(job: Job) -> dict[str, Any]:
    from benchmarks.method.ground import open_ground
    from benchmarks.method.methods import families, play

    found = play_single(open_ground(job.ground), lambda task: play(task, job.method), job.seed)
    return {"family": families()[job.method]} | found


def _supply(job: Job) -> dict[str, Any]:
    from benchmarks.method.ground import open_ground
    from benchmarks.method.methods import OURS, families, play
    from benchmarks.method.supply import SUPPLIES

    found = play_single(SUPPLIES[job.method](open_ground(job.ground)), lambda task: play(task, OURS), job.seed)
    return {"family": families()[OURS]} | found


def play_single(ground: Ground, work: Callable[[Task], Played], seed: int) -> dict[str, Any]:
    """A single round of a seed, before and after, as plain data."""
    from benchmarks.method.continual import measure_start
    from benchmarks.method.play import Task

    categories = single_categories(ground.world.categories, seed)
    batch = ground.batch(categories, SINGLE_ROWS, seed=seed)
    played = work(Task(ground, batch, 1_000_003 * seed + 1, ground.base))
    return {
        "dropped": categories,
        "start": vars(measure_start(ground)),
        "axes": vars(played.axes),
        "touched": played.touched,
        "train_s": round(played.train_s, 1),
    }


def single_categories(names: Sequence[str], seed: int) -> list[str]:
    """The categories that a seed's single batch names."""
    return [names[(SINGLE_CATEGORIES * seed + i) % len(names)] for i in range(SINGLE_CATEGORIES)]


def _continual(job: Job) -> dict[str, Any]:
    from benchmarks.method.continual import play_continual
    from benchmarks.method.ground import open_ground
    from benchmarks.method.methods import OURS, settings_of

    def tell(entry: dict[str, Any]) -> None:
        state = "published" if entry["published"] else "not published"
        print(f"  {job.ground} {job.method} seed {job.seed}: {entry['drop']} {state}", file=sys.stderr, flush=True)

    # the variants show how masks that accumulate bear on a few rounds, and cost as much
    num_rounds = None if job.method == OURS else VARIANT_ROUNDS
    ground = open_ground(job.ground)
    return play_continual(ground, settings_of(job.method), job.seed, num_rounds=num_rounds, on_round=tell)


def commit() -> str:
    """The commit that is checked out, with a mark when its method or world is not what is being run."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()

    is_changed = git(
        "status", "--porcelain", "--", "patches", "policies", "daemon", "benchmarks/method", "benchmarks/world"
    )
    return git("rev-parse", "--short", "HEAD") + ("+changes" if is_changed else "")


def _machine() -> str:
    import torch

    card = [torch.cuda.get_device_name()] if torch.cuda.is_available() else []
    return ", ".join([platform.machine(), f"{os.cpu_count()} cores", _processor(), *card])


def _versions() -> str:
    import torch
    import transformers

    return f"torch {torch.__version__} and transformers {transformers.__version__}"


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def _options(argv: Iterable[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.method", description=__doc__)
    parser.add_argument("--grounds", nargs="+", default=["demo"], help="demo, mid (default: demo)")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument(
        "--workers", type=worker_count, default=os.cpu_count() or 1, help="processes (default: one a core)"
    )
    parser.add_argument("--only", default="", help="only jobs whose kind and method contain this text")
    parser.add_argument("--ablations", action="store_true", help="these as well: about an hour and a half more")
    parser.add_argument("--report", action="store_true", help="run nothing: print and write what is there")
    parser.add_argument(
        "--from",
        dest="source",
        type=_existing,
        metavar="FILE",
        help="report the results of this method.json too, where this code has none",
    )
    parser.add_argument("--fresh", action="store_true", help="forget what earlier runs left under var/bench/method")
    parser.add_argument(
        "--out", type=Path, help="folder for tables and plots (default: benchmarks/results when nothing there is lost)"
    )
    return parser.parse_args(None if argv is None else list(argv))


def _existing(word: str) -> Path:
    if not Path(word).is_file():
        raise argparse.ArgumentTypeError(f"no file {word}")
    return Path(word)
