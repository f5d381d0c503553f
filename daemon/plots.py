"""Plots by matplotlib, inline in the page about a version; `daemon.figures` has those that are files of their own.

In the page they are SVG without script, font file or date, in the page's own colours, light or dark: drawn in stand-in
colours that are replaced by the page's CSS variables afterwards. The same values give the same bytes.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Palette:
    """The colours of a plot: what is written, lines that only guide the eye, and three that tell series apart."""

    ink: str
    rule: str
    one: str
    two: str
    three: str


Draw = Callable[["Axes", Palette], None]

_STAND_INS: Final = Palette("#010203", "#040506", "#070809", "#0a0b0c", "#0d0e0f")
_MAX_NOTED_COLUMNS: Final = 12
_FADED, _FULL = 0.1, 0.6  # how much of the colour the least and the fullest cell have; text on it stays readable


def axes_plot(axes: Sequence[Mapping[str, Any]], labels: Mapping[str, str]) -> str:
    """Each axis of v0, the parent and this version as a dot with its interval, in percent.

    Args:
        axes: as `explain.axes` gives them.
        labels: who is shown, in order, and what each is called.
    """

    def draw(plot: Axes, paint: Palette) -> None:
        shades = (paint.three, paint.two, paint.one) if len(labels) > 2 else (paint.three, paint.one)
        colours = dict(zip(labels, shades, strict=False))
        for row, axis in enumerate(axes):
            for place, who in enumerate(labels):
                _dot(plot, axis[who], row + 0.22 * (place - (len(labels) - 1) / 2), colours[who])
        for who, label in labels.items():
            plot.plot([], [], "o", color=colours[who], label=label)
        plot.set_yticks(range(len(axes)), [axis["axis"].replace("_", " ") for axis in axes])
        plot.set(xlim=(-2, 102), ylim=(len(axes) - 0.5, -0.5), xlabel="percent, with 95 % intervals")
        plot.legend(frameon=False, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))

    return _svg("axes", draw, width=6.4, height=2.6)


def _dot(plot: Axes, share: Mapping[str, float | None], at: float, colour: str) -> None:
    value, low, high = share["value"], share["low"], share["high"]
    if value is None:
        return
    if low is not None and high is not None:
        plot.plot([low * 100, high * 100], [at, at], color=colour, linewidth=1.5)
    plot.plot([value * 100], [at], "o", color=colour, markersize=5)


def loss_plot(training: Mapping[str, Any]) -> str:
    """The loss of one training over its steps; empty for fewer than two points."""
    losses = [math.nan if loss is None else loss for loss in training["losses"]]
    if len(losses) < 2:
        return ""
    # the curve is kept thinned: every stride-th step
    stride = max(1, math.ceil(training["steps"] / len(losses)))

    def draw(plot: Axes, paint: Palette) -> None:
        plot.plot([at * stride + 1 for at in range(len(losses))], losses, color=paint.one, linewidth=1.5)
        plot.set(xlabel="step", ylabel="nats a token", title=training["step"].replace("_", " "))
        plot.set_ylim(bottom=min(0.0, min(losses)))

    return _svg(f"loss {training['step']}", draw, width=3.6, height=2.4)


def grid_plot(title: str, kinds: Sequence[str], layers: Sequence[str], values: Sequence[Sequence[float | None]]) -> str:
    """Shares in [0, 1] by kind of matrix and layer: the fuller a cell, the higher its share of the highest."""
    highest = max((value for row in values for value in row if value is not None), default=0.0) or 1.0
    noted = len(layers) <= _MAX_NOTED_COLUMNS

    def draw(plot: Axes, paint: Palette) -> None:
        draw_cells(plot, paint.one, values, highest, digits=1 if noted else None)
        plot.set(xlabel="layer", title=f"{title}, percent")
        plot.set_yticks(range(len(kinds)), kinds)
        step = max(1, len(layers) // 16)
        plot.set_xticks(range(0, len(layers), step), [layer.removeprefix("layer ") for layer in layers[::step]])

    width = 2.0 + min(8.0, 0.5 * len(layers) if noted else 0.2 * len(layers))
    return _svg(f"grid {title}", draw, width=max(3.4, width), height=0.8 + 0.26 * len(kinds))


def trials_plot(trials: Sequence[Mapping[str, Any]], winner: int | None) -> str:
    """The score of every merge that was tried; the one that was taken is larger."""

    def draw(plot: Axes, paint: Palette) -> None:
        draw_scores(plot, paint, trials, winner)

    return _svg("trials", draw, width=3.6, height=2.2) if len(trials) > 1 else ""


def draw_scores(plot: Axes, paint: Palette, trials: Sequence[Mapping[str, Any]], winner: int | None) -> None:
    """The score of every merge that was tried, in order."""
    from matplotlib.ticker import MaxNLocator

    scores = [trial["score"] for trial in trials]
    plot.plot(range(1, len(scores) + 1), scores, color=paint.rule, linewidth=1)
    plot.plot(range(1, len(scores) + 1), scores, "o", color=paint.three, markersize=5)
    if winner is not None:
        plot.plot([winner + 1], [scores[winner]], "o", color=paint.one, markersize=8)
    plot.set(xlabel="merge", ylabel="score")
    plot.xaxis.set_major_locator(MaxNLocator(integer=True))


def draw_cells(
    plot: Axes, colour: str, values: Sequence[Sequence[float | None]], highest: float, *, digits: int | None
) -> None:
    """Shares as cells, the first row at the top: the fuller, the higher its share of the highest; empty for None.

    Args:
        digits: of the percentage written into each cell, behind the point; None writes none.
    """
    from matplotlib.patches import Rectangle

    for y, row in enumerate(values):
        for x, value in enumerate(row):
            if value is None:
                continue
            alpha = _FADED + (_FULL - _FADED) * value / highest
            plot.add_patch(Rectangle((x - 0.47, y - 0.47), 0.94, 0.94, facecolor=colour, alpha=alpha, linewidth=0))
            if digits is not None:
                plot.text(x, y, f"{value * 100:.{digits}f}", ha="center", va="center", fontsize=7)
    plot.set(xlim=(-0.5, max(map(len, values)) - 0.5), ylim=(len(values) - 0.5, -0.5))
    plot.tick_params(length=0)
    plot.spines[:].set_visible(False)


def style(paint: Palette) -> dict[Any, Any]:
    """What matplotlib has to know beside what is drawn."""
    return {
        "svg.fonttype": "none",
        "figure.facecolor": "none",
        "axes.facecolor": "none",
        "font.size": 9,
        "text.color": paint.ink,
        "text.parse_math": False,  # a name with two dollar signs is no formula
        "axes.labelcolor": paint.ink,
        "axes.edgecolor": paint.rule,
        "xtick.color": paint.rule,
        "ytick.color": paint.rule,
        "xtick.labelcolor": paint.ink,
        "ytick.labelcolor": paint.ink,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }


def _svg(name: str, draw: Draw, *, width: float, height: float) -> str:
    """A figure of so many inches as one `<svg>` element; `name` keeps its ids apart from those of the others."""
    import matplotlib  # a second to import, and only this page needs it
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context(style(_STAND_INS) | {"svg.hashsalt": name}):
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure.subplots(), _STAND_INS)
        out = io.StringIO()
        FigureCanvasSVG(figure).print_svg(out, metadata={"Date": None})  # type: ignore[no-untyped-call]
    return _inlined(out.getvalue(), name)


def _inlined(document: str, name: str) -> str:
    """What of an SVG document belongs into a page: no prolog, no metadata, no ids that are the same in every figure."""
    text = document[document.index("<svg") :]
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = re.sub(r"font: ([0-9.]+px) [^;\"]*", r"font: \1 sans-serif", text)
    width = re.search(r'width="([0-9.]+)pt"', text)
    text = re.sub(r' (?:width|height)="[0-9.]+pt"', "", text, count=2)
    limit = f'style="width: 100%; max-width: {width[1]}pt"' if width else ""
    text = text.replace("<svg", f'<svg role="img" aria-label="{name.replace("_", " ")}" {limit}', 1)
    for stand_in in fields(Palette):
        text = text.replace(getattr(_STAND_INS, stand_in.name), f"var(--{stand_in.name})")
    return text
