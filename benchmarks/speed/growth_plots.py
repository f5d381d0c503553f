"""Growth as pictures: one file an axis, time beside memory, both scales logarithmic."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.speed.growth import Curve

WHAT = {"rows": "rows", "parameters": "parameters of the decoder", "rounds": "versions, one on the other"}
LEAST_MIB = 0.1
"""A logarithmic scale has no place for nothing."""


def plot(curves: Sequence[Curve], folder: Path) -> list[Path]:
    """`growth-<axis>.svg` for each axis that there is a curve of."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.hashsalt": "alignd", "svg.fonttype": "none", "font.size": 9})
    axes = dict.fromkeys(curve.axis for curve in curves)
    return [_plot(axis, [curve for curve in curves if curve.axis == axis], folder) for axis in axes]


def _plot(axis: str, curves: Sequence[Curve], folder: Path) -> Path:
    from matplotlib import pyplot

    figure, (time, memory) = pyplot.subplots(1, 2, figsize=(10.4, 4.0))
    for curve in curves:
        sizes = [point.size for point in curve.points]
        time.plot(sizes, [point.seconds for point in curve.points], "o-", ms=3, lw=1, label=curve.step)
        taken = [(point.size, max(LEAST_MIB, point.mib)) for point in curve.points if point.mib is not None]
        memory.plot([size for size, _ in taken], [mib for _, mib in taken], "o-", ms=3, lw=1, label=curve.step)
    _linear(time, curves)
    time.set(ylabel="seconds of the processor")
    memory.set(ylabel=f"MiB at most, above what was there ({LEAST_MIB:g}: none)")
    if all(point.mib is None for curve in curves for point in curve.points):
        memory.set(
            xlim=(curves[0].points[0].size, curves[0].points[-1].size), ylim=(1, 10)
        )  # of nothing there is no scale
        memory.text(0.5, 0.5, "not measured", transform=memory.transAxes, ha="center")
    for each in (time, memory):
        each.set(xscale="log", yscale="log", xlabel=WHAT[axis])
    memory.legend(loc="upper left", bbox_to_anchor=(1.02, 1), fontsize=8, frameon=False)
    path = folder / f"growth-{axis}.svg"
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None}, facecolor="white")
    pyplot.close(figure)
    return path


def _linear(panel: Any, curves: Sequence[Curve]) -> None:
    """What grows as the work does, to hold the others against: through the longest curve's last point."""
    longest = max(curves, key=lambda curve: curve.points[-1].seconds)
    first, last = longest.points[0], longest.points[-1]
    start = last.seconds * first.size / last.size
    panel.plot([first.size, last.size], [start, last.seconds], ls="--", lw=0.8, color="#777777", zorder=1)
