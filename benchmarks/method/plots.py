"""The results as pictures: harm against over-refusal with the frontier, and the axes over rounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import matplotlib
from matplotlib.patheffects import withStroke
from matplotlib.ticker import PercentFormatter

from benchmarks.method.methods import OURS
from benchmarks.method.summary import Result, Spread, continual_numbers
from benchmarks.method.tables import by_method

matplotlib.use("Agg")
matplotlib.rcParams.update({"svg.hashsalt": "alignd", "svg.fonttype": "none", "font.size": 9})
SPOT = 0.06
COLOURS = {"ours": "#c1272d", "baseline": "#1f5f99", "ablation": "#8a8a8a"}
LEGEND = {"ours": "ours", "baseline": "baselines", "ablation": "ablations of ours, not numbered"}
SIZES = {"ours": 9, "baseline": 5, "ablation": 4}
LAYERS = {"ours": 4, "baseline": 3, "ablation": 2}
DARK = "#222222"
SHARE = (-0.04, 1.06)
FRONTIER = "frontier: nothing is better on both"


def plot_frontier(results: Sequence[Result], path: Path) -> None:
    """One point a method: harm left to right, lookalikes not answered rightly bottom to top; nothing when there is none.

    Points have numbers, by the sum of the three axes; their names are beside the picture, where none hides another.
    """
    if not results:
        return
    from matplotlib import pyplot

    found = by_method(results)
    families = {result["method"]: result["family"] for result in results}
    figure, axis = pyplot.subplots(figsize=(9.6, 5.2))
    for name, numbers in found.items():
        _point(axis, numbers["harm"], _wrong(numbers), families[name])
    named = sorted(
        (name for name in found if families[name] != "ablation"),
        key=lambda name: (families[name] != "ours", -found[name]["sum"].mean),
    )
    numbered = {name: number for number, name in enumerate(named, 1)}
    for names in clusters({name: _at(found[name]) for name in named}).values():
        colours = {COLOURS[families[name]] for name in names}
        text = ranges([numbered[name] for name in names])
        _number(axis, [_at(found[name]) for name in names], text, colours.pop() if len(colours) == 1 else DARK)
    for name, number in numbered.items():
        axis.text(
            1.02, 1 - 0.052 * number, f"{number}  {name}", transform=axis.transAxes, fontsize=8, va="bottom",
            color=COLOURS[families[name]],
        )  # fmt: skip
    corners = frontier([_at(numbers) for numbers in found.values()])
    xs, ys = [corners[0][0], *(x for x, _ in corners), SHARE[1]], [SHARE[1], *(y for _, y in corners), corners[-1][1]]
    axis.plot(xs, ys, drawstyle="steps-post", color="#555555", lw=0.8, ls="--", zorder=1, label=FRONTIER)
    _shares(axis.xaxis, "harm of the dropped categories (%; low is good)")
    _shares(axis.yaxis, "lookalikes refused or answered wrongly (%; low is good)")
    _explain(axis, {families[name] for name in found})
    _save(figure, path)


def _point(axis: Any, x: Spread, y: Spread, family: str) -> None:
    """A method, with bars of one standard deviation where there are several seeds."""
    bars = {"xerr": x.deviation, "yerr": y.deviation} if x.num > 1 else {}
    axis.errorbar(
        x.mean, y.mean, **bars, fmt="*" if family == "ours" else "o", color=COLOURS[family], ms=SIZES[family], lw=0.7,
        elinewidth=0.6, zorder=LAYERS[family],
    )  # fmt: skip


def _number(axis: Any, spots: Sequence[tuple[float, float]], text: str, colour: str) -> None:
    """Above or below points that lie together, inside the picture, readable over bars."""
    is_high = spots[0][1] > 0.5
    spot = max(x for x, _ in spots), (max if is_high else min)(y for _, y in spots)
    label = axis.annotate(
        text, spot, xytext=(5, 4 if is_high else -4), textcoords="offset points", va="bottom" if is_high else "top",
        color=colour, fontsize=8, zorder=5,
    )  # fmt: skip
    label.set_path_effects([withStroke(linewidth=2.5, foreground="white")])


def ranges(numbers: Sequence[int]) -> str:
    """Rising numbers in short: neighbours as first to last."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)


def _shares(axis: Any, text: str) -> None:
    """Per cent from 0 to 100, with room for labels."""
    axis.axes.set(**{f"{axis.axis_name}lim": SHARE, f"{axis.axis_name}label": text})
    axis.set_major_formatter(PercentFormatter(1.0, symbol=None))


def _explain(axis: Any, families: set[str]) -> None:
    for family in (name for name in LEGEND if name in families):
        axis.plot(
            [], [], "*" if family == "ours" else "o", color=COLOURS[family], ms=SIZES[family], label=LEGEND[family]
        )
    axis.plot([], [], "_", color="#555555", label="bars: standard deviation over seeds")
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, 1.14), ncols=3, fontsize=8, frameon=False)


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

    figure, axis = pyplot.subplots(figsize=(9.6, 4.4))
    for column, (colour, marker, text) in _LINES.items():
        lines = [[continual_numbers(entry, story[0])[column] for entry in story] for story in stories]
        for line in lines if len(lines) > 1 else ():
            axis.plot(range(len(line)), line, color=colour, lw=0.6, alpha=0.5)
        means = [mean(values) for values in zip(*lines, strict=False)]
        axis.plot(range(len(means)), means, color=colour, lw=1.8, marker=marker, ms=4, label=text)
    axis.set_xticks(range(max(map(len, stories))))
    axis.set_xlabel("round (0: v0; 11: a category again, 12: a third benign, 13: 20 rows)")
    _shares(axis.yaxis, "share (%)")
    seeds = "one seed" if len(stories) == 1 else f"thick: mean of {len(stories)} seeds, thin: each"
    axis.legend(loc="upper left", bbox_to_anchor=(1.01, 1), fontsize=8, frameon=False, title=seeds, title_fontsize=8)
    _save(figure, path)


def _at(numbers: Mapping[str, Spread]) -> tuple[float, float]:
    return numbers["harm"].mean, _wrong(numbers).mean


def _wrong(numbers: Mapping[str, Spread]) -> Spread:
    right = numbers["right"]
    return Spread(1 - right.mean, right.deviation, right.num)


def _save(figure: Any, path: Path) -> None:
    from matplotlib import pyplot

    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None}, facecolor="white")  # also where the page around it is dark
    pyplot.close(figure)


_LINES = {
    "ability kept": ("#1f5f99", "s", "ability kept, the worst one"),
    "right": ("#2a8f5b", "^", "lookalikes answered rightly"),
    "over-refusal": ("#7a3fa0", "v", "lookalikes refused"),
    "worst harm": ("#c1272d", "o", "harm, worst dropped category"),
    "harm elsewhere": ("#b86a14", "D", "harm, categories not yet dropped"),
}
