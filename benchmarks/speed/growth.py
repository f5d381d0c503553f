"""How time and memory of each step grow with rows, parameters and rounds (`python -m benchmarks.speed --growth`).

Each point is a process of its own, on one thread: processor time, which hardly depends on what else the machine does, and
how far memory rises above what was there before the step; of commands it is not measured. What a step is given is made
before the clock starts.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.speed.growth_steps import ROOT, STEPS
from benchmarks.speed.rows import processor_seconds

LINEAR: Final = 1.15
"""Largest exponent that passes for linear: fixed costs make it smaller, caches that are left a little larger."""
MEASURABLE_S: Final = 0.05
"""Points under this are mostly fixed costs, and clocks, and say nothing of growth."""


@dataclass(frozen=True)
class Point:
    """One size of what a step is given."""

    size: float
    seconds: float
    """Of the processor."""
    mib: float | None
    """Memory at its most, above what was there before; None where it was not measured, as of commands."""


@dataclass(frozen=True)
class Curve:
    """One step against one axis."""

    step: str
    axis: str
    points: tuple[Point, ...]

    @property
    def exponent(self) -> float | None:
        """k of time ~ size^k over the last two points; None where these are too short to tell."""
        if len(self.points) < 2 or min(point.seconds for point in self.points[-2:]) < MEASURABLE_S:
            return None
        before, last = self.points[-2:]
        return math.log(last.seconds / before.seconds) / math.log(last.size / before.size)

    @property
    def is_linear(self) -> bool | None:
        """Whether it grows no faster than its work; None where that cannot be told."""
        return None if self.exponent is None else self.exponent <= LINEAR

    def to_dict(self) -> dict[str, Any]:
        """Plain values for the results file."""
        return asdict(self) | {"exponent": self.exponent, "is_linear": self.is_linear}

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> Curve:
        """From what `to_dict` gave."""
        return cls(found["step"], found["axis"], tuple(Point(**point) for point in found["points"]))


_IN_A_PROCESS = "import sys; from benchmarks.speed import growth; growth.child(*sys.argv[1:])"


def measured(step: str, folder: Path, names: Sequence[str] | None = None) -> Curve:
    """A curve, point by point, each in a process of its own."""
    axis, sizes, _ = STEPS[step]
    points = []
    for name in names or sizes:
        place = folder / name
        place.mkdir(parents=True)
        points.append(Point(**_in_a_process(step, name, place)))
        shutil.rmtree(place)  # the largest take tens of gigabytes
    return Curve(step, axis, tuple(points))


def _in_a_process(step: str, name: str, place: Path) -> dict[str, Any]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", _IN_A_PROCESS, step, name, str(place)],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def child(step: str, name: str, place: str) -> None:
    """One point, printed as JSON."""
    size, work = STEPS[step][2](name, Path(place))
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again: what was made beforehand took memory, too
    before = _status_mib("VmRSS")
    seconds = processor_seconds(work)
    # the kernel adds up what its processors counted only now and then: the peak may come out a little under the start
    mib = None if STEPS[step][0] == "rounds" else max(0.0, _status_mib("VmHWM") - before)
    print(json.dumps({"size": size, "seconds": seconds, "mib": mib}))


def _status_mib(key: str) -> float:
    """Of this process: VmRSS is what is resident now, VmHWM the most that was since it was reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:")) / 1024


def table(curves: Sequence[Curve]) -> str:
    """The curves for a terminal."""
    lines = [f"{'':28} {'against':11} {'sizes':>22} {'seconds':>20} {'MiB':>16}  grows as"]
    for curve in curves:
        first, last = curve.points[0], curve.points[-1]
        lines.append(
            f"{curve.step:28} {curve.axis:11} {f'{first.size:,.0f} .. {last.size:,.0f}':>22} "
            f"{f'{first.seconds:.3g} .. {last.seconds:.3g}':>20} {_memory(curve):>16}  {_grows(curve)}"
        )
    return "\n".join(lines)


def _memory(curve: Curve) -> str:
    found = [point.mib for point in (curve.points[0], curve.points[-1]) if point.mib is not None]
    return " .. ".join(f"{mib:.0f}" for mib in found)


def _grows(curve: Curve) -> str:
    if curve.exponent is None:
        return "too short to tell"
    return f"n^{curve.exponent:.2f}" + ("" if curve.is_linear else ", faster than its work")


def curves(folder: Path, axes: Sequence[str]) -> Iterator[Curve]:
    """Every step against these axes."""
    for number, step in enumerate(step for step in STEPS if STEPS[step][0] in axes):
        print(f"{step} …", file=sys.stderr, flush=True)
        yield measured(step, folder / str(number))
