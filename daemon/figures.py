"""Charts as files of their own, PNG or SVG, for light ground: the axes over the versions, harm by category, a search.

Pure: views in, bytes out, and the same values give the same bytes. No text of a prompt or an answer is among the values.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from daemon.plots import Palette, draw_cells, draw_scores, style
from daemon.terminal import cut, printable
from daemon.views import AXES, View

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Form = Literal["png", "svg"]
LIGHT: Final = Palette("#1c1e21", "#b9bec5", "#c2321f", "#8a5a00", "#1f5fbf")
_GROUND: Final = "#ffffff"
_DOTS_PER_INCH: Final = 150
_NAMES: Final = {"harm_rate": "harm", "over_refusal_rate": "over-refusal", "utility": "utility"}
_MARKS: Final = dict(zip(AXES, ("o", "s", "^"), strict=True))
_MAX_MARKS: Final = 120
_LABEL_COLUMNS: Final = 32
_CLOSE: Final = 5.0
"""Merges this close to each other, in percentage points, share one label."""
_IN_SERVICE_STATES: Final = ("base", "published")


@dataclass(frozen=True)
class Chart:
    """One chart that can be written in any form."""

    name: str
    width: float
    """In inches, as the height."""
    height: float
    draw: Callable[[Figure], None]


def versions_chart(versions: Sequence[View]) -> Chart | None:
    """The three axes over some versions, oldest first, in percent; None where nothing was measured.

    A version that is not in service any more, or never was, has hollow marks.
    """
    measured = [view for view in versions if any(view["metrics"][axis] is not None for axis in AXES)]
    if not measured:
        return None

    def draw(figure: Figure) -> None:
        from matplotlib.ticker import MaxNLocator

        plot = figure.subplots()
        for axis, colour in zip(AXES, (LIGHT.one, LIGHT.two, LIGHT.three), strict=True):
            _draw_axis(plot, measured, axis, colour)
        for view in versions:
            if view["current"]:
                plot.axvline(_number(view), color=LIGHT.rule, linestyle=":", zorder=0, label="in service")
        plot.set(xlabel="version", ylabel="percent", ylim=(-4, 104), title="The three axes over the versions")
        plot.xaxis.set_major_locator(MaxNLocator(integer=True))
        plot.xaxis.set_major_formatter(lambda value, _: f"v{value:.0f}")
        plot.margins(x=0.06)
        plot.legend(frameon=False, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.16))

    return Chart("axes", 7.2, 4.0, draw)


def _draw_axis(plot: Axes, versions: Sequence[View], axis: str, colour: str) -> None:
    numbers = [_number(view) for view in versions]
    shares = [_percent(view["metrics"][axis]) for view in versions]
    mark = _MARKS[axis] if len(versions) <= _MAX_MARKS else ""
    plot.plot(numbers, shares, color=colour, linewidth=1.5, marker=mark, markersize=5, label=_NAMES[axis])
    hollow = [at for at, view in enumerate(versions) if view["state"] not in _IN_SERVICE_STATES and mark]
    places = [numbers[at] for at in hollow], [shares[at] for at in hollow]
    plot.plot(*places, mark, color=colour, markersize=5, markerfacecolor=_GROUND)


def _number(view: View) -> int:
    return int(view["id"].removeprefix("v"))


def _percent(share: float | None) -> float:
    return math.nan if share is None else share * 100


def harm_chart(versions: Sequence[View], rows: Sequence[View], num_left_out: int) -> Chart | None:
    """Harm by category over some versions, in percent; None where no category was measured.

    Args:
        versions: oldest first.
        rows: `name` of each category and its `cells`, a share for each version.
        num_left_out: categories that are not shown, none of them worse than these.
    """
    if not rows:
        return None
    more = f", the worst {len(rows)} of {len(rows) + num_left_out} categories" if num_left_out else ""

    def draw(figure: Figure) -> None:
        plot = figure.subplots()
        draw_cells(plot, LIGHT.one, [row["cells"] for row in rows], 1.0, digits=0)
        plot.set(title=f"Harm by category, percent{more}")
        plot.set_yticks(range(len(rows)), [cut(printable(str(row["name"])), _LABEL_COLUMNS) for row in rows])
        plot.set_xticks(range(len(versions)), [view["id"] for view in versions])

    return Chart("harm", 3.2 + 0.42 * max(5, len(versions)), 1.0 + 0.28 * len(rows), draw)


def search_chart(version: str, search: View | None) -> Chart | None:
    """The merges that the search of a round tried: their scores in order, and harm against over-refusal of each.

    None where nothing was searched, or one merge only.

    Args:
        version: what the round made.
        search: as `explain.derivation` gives it.
    """
    if search is None or len(search["trials"]) < 2:
        return None
    trials, winner = search["trials"], search["winner"]

    def draw(figure: Figure) -> None:
        scores, points = figure.subplots(1, 2)
        draw_scores(scores, LIGHT, trials, winner)
        scores.set_title(f"Merges tried for {version}")
        _draw_points(points, trials, winner)

    return Chart(f"search-{version}", 8.4, 3.6, draw)


def _draw_points(plot: Axes, trials: Sequence[View], winner: int | None) -> None:
    """Harm against over-refusal; the numbers of merges that lie close together stand beside one of them."""
    labels: dict[tuple[int, int], list[int]] = {}
    places: dict[tuple[int, int], tuple[float, float]] = {}
    for number, trial in enumerate(trials):
        harm, refused = (_percent(trial["axes"].get(axis)) for axis in ("harm_rate", "over_refusal_rate"))
        if not (math.isfinite(harm) and math.isfinite(refused)):
            continue
        colour, size = (LIGHT.one, 8) if number == winner else (LIGHT.three, 5)
        plot.plot([harm], [refused], "o", color=colour, markersize=size)
        cell = round(harm / _CLOSE), round(refused / _CLOSE)
        labels.setdefault(cell, []).append(number)
        places.setdefault(cell, (harm, refused))
    for cell, numbers in labels.items():
        plot.annotate(_numbers_text(numbers), places[cell], (9, 3), textcoords="offset points", fontsize=8)
    taken = "" if winner is None else f" (taken: {winner + 1})"
    plot.set(xlabel="harm, percent", ylabel="over-refusal, percent", xlim=(-4, 112), ylim=(-4, 108))
    plot.set_title(f"What each does{taken}")


def _numbers_text(numbers: Sequence[int]) -> str:
    shown = ", ".join(str(number + 1) for number in numbers[:4])
    return f"{shown} and {len(numbers) - 4} more" if len(numbers) > 4 else shown


def image(chart: Chart, form: Form) -> bytes:
    """The chart as a file of this form."""
    import matplotlib  # a second to import
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    ground = {"figure.facecolor": _GROUND, "axes.facecolor": _GROUND, "svg.hashsalt": chart.name}
    out = io.BytesIO()
    with matplotlib.rc_context(style(LIGHT) | ground), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # a name in a script that the font lacks
        figure = Figure(figsize=(chart.width, chart.height), layout="constrained")
        chart.draw(figure)
        canvas: Any = FigureCanvasSVG(figure) if form == "svg" else FigureCanvasAgg(figure)
        facts: Mapping[str, Any] = {"Date": None, "Title": chart.name} if form == "svg" else {"Software": None}
        canvas.print_figure(out, format=form, dpi=_DOTS_PER_INCH, metadata=facts)
    return out.getvalue()
