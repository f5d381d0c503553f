"""What is run: one method on one seed of one ground. No torch until a plan is made."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / "var" / "bench" / "method"
SEEDS = (0, 1, 2)
ABLATION_SEEDS = 2
WATCHED = (
    "patches/*.py", "policies/*.py", "benchmarks/*.py", "benchmarks/method/*.py", "benchmarks/world/*.py",
    "benchmarks/world/model.sha256", "requirements.lock",
    *(f"daemon/{name}.py" for name in (
        "choosing", "config", "config_base", "config_judge", "config_method", "config_told", "derivation", "forgetting", "intake",
        "judging", "loosening", "making", "material", "measuring", "patching", "probes", "searching", "workbench",
    )),
)  # fmt: skip
REPORTING = ("goals.py", "plots.py", "readout.py", "report.py", "summary.py", "tables.py", "tune.py")
"""Of benchmarks/method: no result depends on these."""


@cache
def code_digest() -> str:
    """What a result depends on, in short; a result of other code is never taken for one of this."""
    paths = sorted(path for pattern in WATCHED for path in ROOT.glob(pattern) if not _only_reports(path))
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()[:12]


def _only_reports(path: Path) -> bool:
    return path.parent == ROOT / "benchmarks" / "method" and path.name in REPORTING


@dataclass(frozen=True)
class Job:
    """One run of one method on one seed."""

    kind: str
    """``continual``, ``single``, or ``supply``: a single round of ours with less or more to learn from."""
    ground: str
    method: str
    seed: int

    @classmethod
    def of(cls, result: Mapping[str, Any]) -> Job:
        """The job that a result is of."""
        return cls(result["kind"], result["ground"], result["method"], result["seed"])

    @property
    def path(self) -> Path:
        """Where its result is kept."""
        name = "".join(c if c.isalnum() else "-" for c in self.method)
        return CACHE / code_digest() / f"{self.kind}-{self.ground}-{name}-{self.seed}.json"

    def __str__(self) -> str:
        return f"{self.kind} {self.ground} {self.method} seed {self.seed}"


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
