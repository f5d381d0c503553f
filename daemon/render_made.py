"""How a version or a round was made, as lines for people: trainings, coefficients, sets. Pure: views in, lines out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from daemon.render import View
from daemon.terminal import NOTHING, Style, fields, number, percent, printable, sparkline, table, wrapped

_CURVE_COLUMNS = 16


def made_sections(view: View, style: Style) -> Iterable[tuple[str, Sequence[str]]]:
    """Titles and lines of everything that `explain.derivation` found; empty parts have no lines."""
    yield "training", training_lines(view["trainings"], style)
    yield "coefficients", search_lines(view["search"], style) if view["search"] else []
    yield "sets, as shares of a matrix", set_lines(view["sets"], style)


def training_lines(trainings: Sequence[View], style: Style) -> list[str]:
    """One line a training, its loss from start to end and the course of it; why each stopped below."""
    if not trainings:
        return []
    lines = table(["STEP", "STEPS", "LOSS", ""], [_training_row(view) for view in trainings], style, right="STEPS")
    told = [(view["step"], printable(view["stop_reason"])) for view in trainings]
    return lines + [line for name, text in told for line in wrapped(f"{name} ended by: {text}", style, indent=4)]


def _training_row(view: View) -> list[str]:
    loss = f"{number(view['start_loss'])} -> {number(view['end_loss'])}" if view["steps"] else NOTHING
    curve = sparkline([loss for loss in view["losses"] if loss is not None], _CURVE_COLUMNS)
    return [view["step"], number(view["steps"]), loss, curve]


def search_lines(found: View, style: Style) -> list[str]:
    """The merge that won, and why."""
    pairs = [
        ("tried", f"{found['num_trials']} merge{'' if found['num_trials'] == 1 else 's'}"),
        ("winner", point_text(found["point"])),
        ("why", printable("; ".join(found["reasons"]))),
    ]
    return fields(pairs, style)


def point_text(point: Mapping[str, float] | None) -> str:
    """The coefficients of one merge in one line."""
    return ", ".join(f"{name.replace('_', ' ')} {number(value)}" for name, value in (point or {}).items())


def set_lines(sets: Sequence[View], style: Style) -> list[str]:
    """How much of a matrix each set holds: the least, the middle and the most of all matrices."""
    rows = [
        [view["name"], percent(view["min"]), percent(view["median"]), percent(view["max"]), str(view["num"])]
        for view in sets
    ]
    headers = ["SET", "MIN", "MEDIAN", "MAX", "MATRICES"]
    return table(headers, rows, style, right=",".join(headers[1:])) if rows else []
