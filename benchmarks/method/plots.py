"""The results as pictures: harm against over-refusal with the frontier, and the axes over rounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import matplotlib

from benchmarks.method.methods import OURS
from benchmarks.method.summary import Result, Spread, continual_numbers
from benchmarks.method.tables import by_method

matplotlib.use("Agg")
matplotlib.rcParams.update({"svg.hashsalt": "alignd", "svg.fonttype": "none", "font.size": 9})
SPOT = 0.06
COLOURS = {"ours": "#c1272d", "baseline": "#1f5f99", "ablation": "#8a8a8a"}


def plot_frontier(results: Sequence[Result], path: Path) -> None:
    """One point a method: harm left to right, lookalikes not answered rightly bottom to top; nothing when there is none."""
    if not results:
        return
    from matplotlib import pyplot

    found = by_method(results)
    families = {result["method"]: result["family"] for result in results}
    figure, axis = pyplot.subplots(figsize=(8, 5.2))
    for name, numbers in found.items():
        x, y = numbers["harm"], _wrong(numbers)
        colour = COLOURS[families[name]]
        axis.errorbar(x.mean, y.mean, xerr=x.deviation, yerr=y.deviation, fmt="o", color=colour, ms=5, lw=0.7)
    named = {name: numbers for name, numbers in found.items() if families[name] != "ablation"}
    spots = clusters({name: (numbers["harm"].mean, _wrong(numbers).mean) for name, numbers in named.items()})
    for spot, names in spots.items():
        colour = COLOURS[families[names[0]]]
        axis.annotate(
            "\n".join(names), spot, xytext=(6, -4), textcoords="offset points", va="top", color=colour, fontsize=8
        )
    corners = frontier([(numbers["harm"].mean, _wrong(numbers).mean) for numbers in found.values()])
    axis.plot([x for x, _ in corners], [y for _, y in corners], color="#555555", lw=0.8, ls="--", zorder=0)
    axis.set_xlabel("harm rate of the dropped categories")
    axis.set_ylabel("lookalikes refused or answered wrongly")
    axis.set_xlim(-0.03, 1.05)
    axis.set_ylim(-0.03, 1.05)
    axis.set_title("red: ours, blue: baselines, grey: ablations, dashed: the frontier")
    _save(figure, path)


def frontier(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no other one beats on both coordinates (lower is better), from left to right."""
    best: list[tuple[float, float]] = []
    for x, y in sorted(points):
        if not best or y < best[-1][1]:
            best.append((x, y))
    return best


def clusters(points: Mapping[str, tuple[float, float]]) -> dict[tuple[float, float], list[str]]:
    """Names of points that lie on one spot of the picture together, at the first of them, so that they can be read."""
    found: dict[tuple[float, float], list[str]] = {}
    for name, (x, y) in points.items():
        spot = next((at for at in found if abs(at[0] - x) < SPOT and abs(at[1] - y) < SPOT), (x, y))
        found.setdefault(spot, []).append(name)
    return found


def plot_rounds(results: Sequence[Result], path: Path) -> None:
    """The axes of ours over rounds, every seed as a thin line; nothing when there is none."""
    stories = [result["story"] for result in results if result["method"] == OURS]
    if not stories:
        return
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(8, 4.4))
    for column, colour in _LINES.items():
        lines = [[continual_numbers(entry, story[0])[column] for entry in story] for story in stories]
        for line in lines:
            axis.plot(range(len(line)), line, color=colour, lw=0.5, alpha=0.5)
        means = [mean(values) for values in zip(*lines, strict=False)]
        axis.plot(range(len(means)), means, color=colour, lw=2, marker="o", ms=3, label=column)
    axis.set_xlabel("round (11: a category again, 12: a third benign, 13: 20 rows)")
    axis.set_ylim(-0.03, 1.03)
    axis.legend(loc="center right", fontsize=8)
    _save(figure, path)


def _wrong(numbers: Mapping[str, Spread]) -> Spread:
    right = numbers["right"]
    return Spread(1 - right.mean, right.deviation, right.num)


def _save(figure: Any, path: Path) -> None:
    from matplotlib import pyplot

    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


_LINES = {
    "worst harm": "#c1272d",
    "harm elsewhere": "#e08a3c",
    "over-refusal": "#7a3fa0",
    "right": "#2a8f5b",
    "ability kept": "#1f5f99",
}
