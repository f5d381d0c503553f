"""Charts as SVG text, quick to make and without matplotlib: the page draws them anew while a round runs.

Colours are those of the page's style sheet, by class; there is no inline style, which the page's policy forbids.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from itertools import pairwise
from typing import Any, Final

from daemon.terminal import number, percent
from daemon.views import AXES, View

_WIDTH: Final = 720
_LEFT, _RIGHT, _TOP, _BOTTOM = 74, 24, 24, 36
_TITLES: Final = {"harm_rate": "harm", "over_refusal_rate": "over-refusal", "utility": "utility"}
_MAX_LABELS: Final = 8
_MAX_DOTS: Final = 120
_CLASSES: Final = dict(zip(AXES, ("one", "two", "three"), strict=True))


def loss_chart(step: str, losses: Sequence[float | None]) -> str:
    """The course of a training's loss, oldest point first; empty for fewer than two points."""
    known = [loss for loss in losses if loss is not None and math.isfinite(loss)]
    if len(known) < 2:
        return ""
    ticks = _ticks(min(0.0, *known), max(known))
    plot = _Plot(200, (0, len(losses) - 1), (ticks[0], ticks[-1]))
    label = f"loss of {step}: {number(known[0])} at first, {number(known[-1])} now, in nats a token"
    points = [(at, loss) for at, loss in enumerate(losses) if loss is not None and math.isfinite(loss)]
    parts = [*plot.grid([(tick, number(tick)) for tick in ticks]), plot.line(points, "one")]
    parts.append(plot.dot(*points[-1], "one", "circle"))
    parts.append(plot.text(plot.x(len(losses) - 1) - 8, plot.y(known[-1]) - 9, number(known[-1]), "end"))
    return plot.svg(label, parts)


def versions_chart(versions: Sequence[View]) -> str:
    """The three axes over some versions, oldest first; each is a link to its page. Empty where nothing was measured.

    A version that is not in service any more, or never was, has hollow marks.
    """
    measured = [view for view in versions if any(view["metrics"][axis] is not None for axis in AXES)]
    if not measured:
        return ""
    ids = [int(view["id"][1:]) for view in versions]
    plot = _Plot(260, (min(ids) - 0.5, max(ids) + 0.5), (0.0, 1.0))
    parts = [*plot.grid([(share / 4, f"{share * 25}%") for share in range(5)])]
    parts += [plot.rule(int(view["id"][1:]), "in service") for view in versions if view["current"]]
    parts += _axis_labels(plot, ids)
    for axis in AXES:
        points = [(int(v["id"][1:]), v["metrics"][axis]) for v in measured if v["metrics"][axis] is not None]
        parts.append(plot.line(points, _CLASSES[axis]))
    parts += _marks(plot, measured)
    parts += [_target(plot, view, _gap(ids)) for view in measured]
    first, last = measured[0]["id"], measured[-1]["id"]
    return plot.svg(
        f"harm, over-refusal and utility of the versions {first} to {last}; the table has the figures", parts
    )


def _axis_labels(plot: _Plot, ids: Sequence[int]) -> Iterator[str]:
    step = max(1, math.ceil(len(ids) / _MAX_LABELS))
    for version in ids[::step]:
        yield plot.text(plot.x(version), plot.bottom + 26, f"v{version}", "middle")


def _marks(plot: _Plot, versions: Sequence[View]) -> Iterator[str]:
    if len(versions) > _MAX_DOTS:
        return
    shapes = dict(zip(AXES, ("circle", "square", "triangle"), strict=True))
    for view in versions:
        for axis in AXES:
            share = view["metrics"][axis]
            hollow = "" if view["state"] in ("base", "published") else " hollow"
            if share is not None:
                yield plot.dot(int(view["id"][1:]), share, _CLASSES[axis] + hollow, shapes[axis])


def _target(plot: _Plot, view: View, gap: int) -> str:
    """What is pointed at: the whole height over a version. Not reached by the keyboard: the table has the same links."""
    at = int(view["id"][1:])
    left, right = plot.x(at - gap / 2), plot.x(at + gap / 2)
    told = ", ".join(f"{_TITLES[axis]} {percent(view['metrics'][axis])}" for axis in AXES)
    title = escape(f"{view['id']}, {view['state'].replace('_', ' ')}: {told}")
    box = f'<rect x="{left:.1f}" y="{plot.top}" width="{right - left:.1f}" height="{plot.bottom - plot.top}" class="target"/>'
    return f'<a href="/versions/{view["id"]}" tabindex="-1"><title>{title}</title>{box}</a>'


def _gap(ids: Sequence[int]) -> int:
    return max((after - before for before, after in pairwise(ids)), default=1)


def intervals_chart(axes: Sequence[View], who: Mapping[str, str]) -> str:
    """The three axes of v0, the parent and a version, each a mark with its 95 % interval.

    Args:
        axes: as `explain.axes` gives them.
        who: who is shown, and what each is called.
    """
    if not any(axis[key]["value"] is not None for axis in axes for key in who):
        return ""
    plot = _Plot(26 + 26 * len(axes) * len(who) + 30, (0.0, 1.0), (0.0, 1.0), left=190)
    parts = [plot.upright(share / 4, f"{share * 25}%") for share in range(5)]
    rows = [(axis, key) for axis in axes for key in who]
    for place, (axis, key) in enumerate(rows):
        y = plot.top + 16 + 26 * place
        share, kind = axis[key], "one" if key == "this" else "plain"
        parts.append(plot.text(plot.left - 10, y + 5, f"{_TITLES[axis['axis']]}, {who[key]}", "end"))
        if share["value"] is None:
            continue
        if share["low"] is not None:
            low, high = plot.x(share["low"]), plot.x(share["high"])
            parts.append(f'<line class="line {kind}" x1="{low:.1f}" x2="{high:.1f}" y1="{y}" y2="{y}"/>')
        parts.append(f'<circle class="{kind}" cx="{plot.x(share["value"]):.1f}" cy="{y}" r="5"/>')
    return plot.svg("the three axes with 95 % intervals; the table has the figures", parts, "roomy")


def bars_chart(values: Mapping[str, float], label: str) -> str:
    """Some numbers as bars, one a row."""
    highest = max(values.values(), default=0.0)
    if not highest:
        return ""
    plot = _Plot(22 * len(values) + 12, (0.0, highest * 1.18), (0.0, 1.0), left=150, bottom=6)
    parts = []
    for place, (name, value) in enumerate(values.items()):
        y = plot.top - 6 + 22 * place
        width = plot.x(value) - plot.left
        parts.append(plot.text(plot.left - 10, y + 13, name, "end"))
        parts.append(f'<rect class="one" x="{plot.left}" y="{y}" width="{width:.1f}" height="15"/>')
        parts.append(plot.text(plot.left + width + 6, y + 13, number(value), "start"))
    return plot.svg(label, parts, "roomy")


class _Plot:
    """A rectangle of so many pixels that stands for ranges of two values."""

    def __init__(
        self,
        height: int,
        across: tuple[float, float],
        upwards: tuple[float, float],
        *,
        left: int = _LEFT,
        bottom: int = _BOTTOM,
    ) -> None:
        self.height, self.left, self.top, self.bottom = height, left, _TOP, height - bottom
        self._across, self._upwards = across, upwards

    def x(self, value: float) -> float:
        low, high = self._across
        return self.left + (value - low) / ((high - low) or 1.0) * (_WIDTH - _RIGHT - self.left)

    def y(self, value: float) -> float:
        low, high = self._upwards
        return self.bottom - (value - low) / ((high - low) or 1.0) * (self.bottom - self.top)

    def grid(self, ticks: Sequence[tuple[float, str]]) -> Iterator[str]:
        for value, label in ticks:
            y = self.y(value)
            yield f'<line class="grid" x1="{self.left}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            yield self.text(self.left - 8, y + 4, label, "end")

    def upright(self, value: float, label: str) -> str:
        x = self.x(value)
        line = f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{self.top}" y2="{self.bottom}"/>'
        return line + self.text(x, self.bottom + 20, label, "middle")

    def rule(self, value: float, label: str) -> str:
        x = self.x(value)
        line = f'<line class="now" x1="{x:.1f}" x2="{x:.1f}" y1="{self.top}" y2="{self.bottom}"/>'
        return f"<g><title>{escape(label)}</title>{line}</g>"

    def line(self, points: Sequence[tuple[float, float]], kind: str) -> str:
        path = " ".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in points)
        return f'<polyline class="line {kind}" points="{path}"/>'

    def dot(self, x: float, y: float, kind: str, shape: str) -> str:
        a, b = self.x(x), self.y(y)
        if shape == "circle":
            return f'<circle class="{kind}" cx="{a:.1f}" cy="{b:.1f}" r="4"/>'
        if shape == "square":
            return f'<rect class="{kind}" x="{a - 3.5:.1f}" y="{b - 3.5:.1f}" width="7" height="7"/>'
        return f'<path class="{kind}" d="M{a:.1f} {b - 5:.1f}l4.8 8.4h-9.6z"/>'

    def text(self, x: float, y: float, words: str, anchor: str) -> str:
        return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'

    def svg(self, label: str, parts: Sequence[str], kind: str = "narrow") -> str:
        """The whole; one that is `narrow` stays readable on a phone, any other is scrolled there."""
        head = (
            f'<svg class="chart {kind}" viewBox="0 0 {_WIDTH} {self.height}" role="img" aria-label="{escape(label)}">'
        )
        return head + "".join(parts) + "</svg>"


def _ticks(low: float, high: float) -> list[float]:
    """Three to six round numbers that span a range."""
    span = (high - low) or abs(high) or 1.0
    raw = span / 4
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(step for step in (power, 2 * power, 2.5 * power, 5 * power, 10 * power) if step >= raw)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(place * step, 10) for place in range(first, max(last, first + 1) + 1)]


def heat(share: Any) -> str:
    """The style class of a cell: h0 for none, h1 to h10 for more and more; empty where nothing was measured."""
    return f"h{math.ceil(min(max(share, 0.0), 1.0) * 10)}" if isinstance(share, int | float) else ""
