"""`make bench-method`: ours, the baselines and ten rounds in a row, on several seeds; tables, JSON, plots.

`--ablations` adds the ablations of ours, the accumulated masks, and ours with less and more to learn from; once there, they
are reported by every run. One process a core, one thread a process. Each finished job is kept under var/bench/method, so
that a run that was stopped goes on; --fresh forgets them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.method.ground import Ground

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / "var" / "bench" / "method"
RESULTS = ROOT / "benchmarks" / "results"
SINGLE_ROWS, SINGLE_CATEGORIES = 300, 2
VARIANT_ROUNDS = 3
ABLATION_SEEDS = 2
WATCHED = (
    "patches/*.py", "policies/*.py", "benchmarks/*.py", "benchmarks/method/*.py", "benchmarks/world/*.py",
    "benchmarks/world/model.sha256", "requirements.lock",
    *(f"daemon/{name}.py" for name in (
        "config", "derivation", "intake", "material", "measuring", "patching", "probes", "searching", "workbench",
    )),
)  # fmt: skip


@cache
def code_digest() -> str:
    """What a result depends on, in short; a result of other code is never taken for one of this."""
    paths = sorted(path for pattern in WATCHED for path in ROOT.glob(pattern))
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()[:12]


@dataclass(frozen=True)
class Job:
    """One run of one method on one seed."""

    kind: str
    """``continual``, ``single``, or ``supply``: a single round of ours with less or more to learn from."""
    ground: str
    method: str
    seed: int

    @property
    def path(self) -> Path:
        """Where its result is kept."""
        name = "".join(c if c.isalnum() else "-" for c in self.method)
        return CACHE / code_digest() / f"{self.kind}-{self.ground}-{name}-{self.seed}.json"


def main(argv: list[str] | None = None) -> int:
    """Run what is missing, then print and write everything that the plan has results of."""
    options = _options(argv)
    if options.fresh:
        shutil.rmtree(CACHE, ignore_errors=True)
    (CACHE / code_digest()).mkdir(parents=True, exist_ok=True)
    jobs = plan(options.grounds, options.seeds, only=options.only, with_ablations=options.ablations)
    num_failed = 0 if options.report else run_all(jobs, options.workers)
    known = plan(options.grounds, options.seeds, only=options.only, with_ablations=True)
    found = [job for job in known if job.path.exists()]
    results = [json.loads(job.path.read_text(encoding="utf-8")) for job in found]
    is_whole = set(plan(["demo"], [0, 1, 2])) <= set(found)
    out = options.out or (RESULTS if is_whole else CACHE / "partial")
    write_results(results, out, _about(options, results))
    print(f"\nwritten to {out}; {len(set(jobs) - set(found))} of {len(jobs)} runs are missing")
    return 1 if num_failed else 0


def plan(grounds: Sequence[str], seeds: Sequence[int], *, only: str = "", with_ablations: bool = False) -> list[Job]:
    """All jobs, the long ones first. Ablations run on the first two seeds only, variants of ten rounds on the first."""
    from benchmarks.method.methods import CONTINUAL, OURS, families
    from benchmarks.method.supply import SUPPLIES

    names = [name for name, family in families().items() if with_ablations or family != "ablation"]
    jobs = [
        Job("continual", ground, name, seed)
        for ground in grounds
        for name in CONTINUAL
        for seed in (seeds if name == OURS else seeds[:1])
        if with_ablations or name == OURS
    ]
    few = seeds[:ABLATION_SEEDS]
    jobs += [
        Job("single", ground, name, seed)
        for ground in grounds
        for name in names
        for seed in (few if families()[name] == "ablation" else seeds)
    ]
    supplies = SUPPLIES if with_ablations else ()
    jobs += [Job("supply", ground, name, seed) for ground in grounds for name in supplies for seed in few]
    return [job for job in jobs if only in f"{job.kind} {job.method}"]


def run_all(jobs: Sequence[Job], num_workers: int) -> int:
    """Run the jobs that have no result yet, in processes of one thread each; give how many failed.

    One that fails says why and leaves no result; the others go on.
    """
    os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")
    missing = [job for job in jobs if not job.path.exists()]
    num_failed = 0
    began = time.monotonic()
    with ProcessPoolExecutor(num_workers, mp_context=get_context("spawn")) as pool:
        running = {pool.submit(run_job, job): job for job in missing}
        for number, done in enumerate(as_completed(running), 1):
            job, error = running[done], done.exception()
            num_failed += error is not None
            outcome = f"FAILED: {type(error).__name__}: {error}" if error else f"{time.monotonic() - began:.0f} s"
            print(
                f"{number}/{len(missing)} {job.kind} {job.ground} {job.method} seed {job.seed}  {outcome}",
                file=sys.stderr,
                flush=True,
            )
    return num_failed


def run_job(job: Job) -> None:
    """Run one job and keep its result."""
    import torch

    torch.set_num_threads(1)
    began = time.monotonic()
    work: Callable[[Job], dict[str, Any]] = {
        "single": _single, "continual": _continual, "supply": _supply,
    }[job.kind]  # fmt: skip
    names = {"kind": job.kind, "ground": job.ground, "method": job.method, "seed": job.seed}
    names |= {"commit": commit(), "machine": _machine(), "version": _versions()}
    result = names | work(job)
    staged = job.path.with_suffix(".part")
    staged.write_text(json.dumps(result | {"wall_s": round(time.monotonic() - began, 1)}), encoding="utf-8")
    staged.rename(job.path)


def _single(job: Job) -> dict[str, Any]:
    from benchmarks.method.ground import open_ground

    return _play_single(open_ground(job.ground), job.method, job.seed)


def _supply(job: Job) -> dict[str, Any]:
    from benchmarks.method.ground import open_ground
    from benchmarks.method.methods import OURS
    from benchmarks.method.supply import SUPPLIES

    return _play_single(SUPPLIES[job.method](open_ground(job.ground)), OURS, job.seed)


def _play_single(ground: Ground, method: str, seed: int) -> dict[str, Any]:
    from benchmarks.method.continual import measure_start
    from benchmarks.method.methods import families, play
    from benchmarks.method.play import Task

    categories = single_categories(ground.world.categories, seed)
    batch = ground.batch(categories, SINGLE_ROWS, seed=seed)
    played = play(Task(ground, batch, 1_000_003 * seed + 1, ground.base), method)
    return {
        "family": families()[method],
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


def write_results(results: Sequence[dict[str, Any]], out: Path, about: dict[str, Any]) -> None:
    """Print the tables; write them, the raw results and the plots."""
    from benchmarks.method.plots import plot_frontier, plot_rounds
    from benchmarks.method.tables import tables

    out.mkdir(parents=True, exist_ok=True)
    text = tables(results, about)
    print(text)
    (out / "method.md").write_text(text + "\n", encoding="utf-8")
    (out / "method.json").write_text(
        json.dumps({"about": about, "results": list(map(_rounded, results))}, indent=1) + "\n", encoding="utf-8"
    )
    for ground in sorted({result["ground"] for result in results}):
        here = [result for result in results if result["ground"] == ground]
        plot_frontier([r for r in here if r["kind"] == "single"], out / f"method-{ground}-frontier.svg")
        plot_rounds([r for r in here if r["kind"] == "continual"], out / f"method-{ground}-rounds.svg")


def commit() -> str:
    """The commit that is checked out, with a mark when its method or world is not what is being run."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()

    is_changed = git(
        "status", "--porcelain", "--", "patches", "policies", "daemon", "benchmarks/method", "benchmarks/world"
    )
    return git("rev-parse", "--short", "HEAD") + ("+changes" if is_changed else "")


def _about(options: argparse.Namespace, results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Where the results come from, as each run noted it."""
    about: dict[str, Any] = {
        f"{key}s": sorted({result[key] for result in results}) for key in ("commit", "machine", "version")
    }
    return about | {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "seeds": list(options.seeds),
        "grounds": list(options.grounds),
        "processor hours": round(sum(result["wall_s"] for result in results) / 3600, 2),
    }


def _machine() -> str:
    return f"{platform.machine()}, {os.cpu_count()} cores, {_processor()}"


def _versions() -> str:
    import torch
    import transformers

    return f"torch {torch.__version__} and transformers {transformers.__version__}"


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def _rounded(value: Any) -> Any:
    """Four digits are enough for shares of some hundred prompts."""
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, list) else value


def _options(argv: Iterable[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.method", description=__doc__)
    parser.add_argument("--grounds", nargs="+", default=["demo"], help="demo, mid (default: demo)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: one a core)")
    parser.add_argument("--only", default="", help="only jobs whose kind and method contain this text")
    parser.add_argument("--ablations", action="store_true", help="these as well: about an hour and a half more")
    parser.add_argument("--report", action="store_true", help="run nothing: print and write what is there")
    parser.add_argument("--fresh", action="store_true", help="forget what earlier runs left under var/bench/method")
    parser.add_argument(
        "--out", type=Path, help="folder for tables and plots (default: benchmarks/results for a whole run)"
    )
    return parser.parse_args(None if argv is None else list(argv))
