"""One line of the table: what was measured, against what, and whether its budget holds."""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True)
class Row:
    """Ours beside a peer or a floor. The budget is on the ratio where there is a peer, else on ours."""

    name: str
    ours: float
    unit: str
    against: str
    """What a user would otherwise do; empty where the budget is an absolute one."""
    peer: float | None
    budget: float | None
    """None where the row is there to compare with only."""
    kind: Literal["at most", "at least"]
    note: str = ""

    @property
    def measure(self) -> float:
        """What the budget is on."""
        return self.ours if self.peer is None else self.ours / self.peer

    @property
    def holds(self) -> bool | None:
        """Whether the budget is kept; None without one."""
        if self.budget is None:
            return None
        return self.measure <= self.budget if self.kind == "at most" else self.measure >= self.budget

    def to_dict(self) -> dict[str, Any]:
        """Plain values for the results file."""
        return asdict(self) | {"measure": self.measure, "holds": self.holds}


def seconds(work: Callable[[], object]) -> float:
    """Wall-clock time of one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def processor_seconds(work: Callable[[], object]) -> float:
    """Processor time of one call, that of the processes it waits for included; hardly longer on a busy machine."""
    began = _used()
    work()
    return _used() - began


def _used() -> float:
    return sum(
        used.ru_utime + used.ru_stime
        for used in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def interleaved(
    ours: Callable[[], object],
    peer: Callable[[], object],
    times: int = 3,
    *,
    prepare: Callable[[], object] = lambda: None,
) -> tuple[float, float]:
    """Median seconds of both, run in turns after one call each that does not count.

    Args:
        prepare: called before each of the calls, and not timed.
    """

    def prepared(work: Callable[[], object]) -> float:
        prepare()
        return seconds(work)

    prepared(ours), prepared(peer)
    pairs = [(prepared(ours), prepared(peer)) for _ in range(times)]
    return statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs)


def peak_mib() -> float:
    """The most memory that this process has had resident.

    Not `ru_maxrss`: that of a process starts at what its parent held when it was forked, whatever it runs then.
    """
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024


def table(rows: Sequence[Row]) -> str:
    """The rows for a terminal of 100 columns, and how many budgets hold."""
    lines = [f"{'':44} {'ours':>12} {'other':>10} {'ratio':>7}  {'budget':14} holds"]
    for row in rows:
        other = f"{row.peer:10.4g} {row.ours / row.peer:7.2f}" if row.peer is not None else f"{'':10} {'':7}"
        lines.append(f"{row.name:44} {row.ours:9.4g} {row.unit:<8}{other}  {_budget(row)}".rstrip())
        if row.against or row.note:
            lines.append(f"    {'; '.join(filter(None, (f'against {row.against}' if row.against else '', row.note)))}")
    budgets = [row.holds for row in rows if row.holds is not None]
    lines.append(f"{sum(budgets)} of {len(budgets)} budgets hold")
    return "\n".join(lines)


def _budget(row: Row) -> str:
    return "" if row.budget is None else f"{row.kind} {row.budget:<6.4g} {'yes' if row.holds else 'NO'}"


def markdown(kept: Mapping[str, Mapping[str, Any]]) -> str:
    """What `make bench` keeps, a line a row, and how many budgets hold."""
    lines = [
        "| row | against | ours | other | ratio | budget | holds | commit | load |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    budgets: list[bool] = []
    for part in kept.values():
        about = f"{part['about']['commit'][:7]} | {part['about']['load_before']}"
        for row in part["rows"]:
            budgets += [] if row["holds"] is None else [row["holds"]]
            lines.append(f"| {' | '.join(_cells(row))} | {about} |")
    return "\n".join([*lines, "", f"**{sum(budgets)} of {len(budgets)} budgets hold.**"])


def _cells(row: Mapping[str, Any]) -> Iterator[str]:
    yield row["name"]
    yield f"{row['against']}; {row['note']}".strip("; ")
    yield f"{_figure(row['ours'])} {row['unit']}"
    yield "" if row["peer"] is None else _figure(row["peer"])
    yield "" if row["peer"] is None else f"{row['ours'] / row['peer']:.2f}"
    yield "" if row["budget"] is None else f"{row['kind']} {_figure(row['budget'])}"
    yield {True: "yes", False: "no", None: ""}[row["holds"]]


def _figure(value: float) -> str:
    """Three figures, and no power of ten."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
