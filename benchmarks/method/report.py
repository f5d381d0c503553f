"""What is printed and kept of results: tables, raw figures, plots, and where each result comes from."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.method import jobs
from benchmarks.method.jobs import SEEDS, Job, plan

RESULTS = jobs.ROOT / "benchmarks" / "results"
FILE = "method.json"
SOURCE = ("date", "commit", "machine", "version")
UNKNOWN = "unknown"

Found = dict[Job, dict[str, Any]]


def read_results(file: Path) -> Found:
    """The results of a file that `write_results` wrote; none where there is no such file."""
    if not file.exists():
        return {}
    return {Job.of(result): result for result in json.loads(file.read_text(encoding="utf-8"))["results"]}


def kept_results(planned: Sequence[Job]) -> Found:
    """The results that runs of this code left."""
    return {job: json.loads(job.path.read_text(encoding="utf-8")) for job in planned if job.path.exists()}


def missing_from_whole(found: Collection[Job], grounds: Sequence[str]) -> list[Job]:
    """What a report lacks to replace the committed one: runs on each ground that was asked for, and all that is there."""
    usual = plan(list(dict.fromkeys(["demo", *grounds])), SEEDS)
    wanted = dict.fromkeys([*usual, *read_results(RESULTS / FILE)])
    return [job for job in wanted if job not in found]


def write_results(results: Sequence[Mapping[str, Any]], out: Path) -> None:
    """Print the tables; write them, the raw results and the plots."""
    from benchmarks.method.plots import plot_frontier, plot_rounds
    from benchmarks.method.tables import tables

    out.mkdir(parents=True, exist_ok=True)
    results = [_rounded(result) for result in results]
    about = about_results(results)
    text = tables(results, about)
    print(text)
    (out / "method.md").write_text(text + "\n", encoding="utf-8")
    (out / FILE).write_text(json.dumps({"about": about, "results": results}, indent=1) + "\n", encoding="utf-8")
    for ground in sorted({result["ground"] for result in results}):
        here = [result for result in results if result["ground"] == ground]
        plot_frontier([r for r in here if r["kind"] == "single"], out / f"method-{ground}-frontier.svg")
        plot_rounds([r for r in here if r["kind"] == "continual"], out / f"method-{ground}-rounds.svg")


def about_results(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Where and when the results were measured, as each run noted it."""
    sources = Counter(tuple(str(result.get(key, UNKNOWN)) for key in SOURCE) for result in results)
    return {
        "measured": [dict(zip(SOURCE, source, strict=True)) | {"runs": num} for source, num in sorted(sources.items())],
        "seeds": sorted({result["seed"] for result in results}),
        "grounds": sorted({result["ground"] for result in results}),
        "processor hours": round(sum(result["wall_s"] for result in results) / 3600, 2),
    }


def _rounded(value: Any) -> Any:
    """Four digits are enough for shares of some hundred prompts."""
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, Mapping):
        return {key: _rounded(each) for key, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, list) else value
