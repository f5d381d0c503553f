"""How a version or a round was made, as lines for people: trainings, coefficients, sets. Pure: views in, lines out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from daemon.render import View
from daemon.terminal import NOTHING, Style, fields, number, percent, printable, sparkline, table, width, wrapped

_CURVE_COLUMNS: Final = 16
_MAX_TRIALS: Final = 6
_MAX_LAYERS: Final = 4
_AXES: Final = {
    "harm_rate": ("HARM", "harm"),
    "over_refusal_rate": ("OVER-REF", "over-refusal"),
    "right_rate": ("RIGHT", "right answers to lookalikes"),
    "utility": ("UTILITY", "utility"),
    "degenerate_rate": ("DEGEN", "degenerate answers"),
    "touched_fraction": ("OF MATRICES", "touched"),
}
"""Axis of a trial -> its column, and its name in the formula."""
_COEFFICIENTS: Final = {
    "retention_rate": "P",
    "safety_fraction": "A",
    "over_safety_fraction": "B",
    "alpha": "ALPHA",
    "beta": "BETA",
}
"""As docs/design.md calls them."""


def made_sections(view: View, style: Style) -> Iterable[tuple[str, Sequence[str]]]:
    """Titles and lines of everything that `explain.derivation` found; empty parts have no lines."""
    yield "training", training_lines(view["trainings"], style)
    yield "coefficients", search_lines(view["search"], style) if view["search"] else []
    yield "sets, as shares of a matrix", set_lines(view["sets"], style)
    yield "sets by layer, the largest", layer_lines(view["sets_by_layer"], style)


def training_lines(trainings: Sequence[View], style: Style) -> list[str]:
    """One line a training, its loss from start to end and the course of it; why each stopped below."""
    if not trainings:
        return []
    lines = table(["STEP", "STEPS", "LOSS", ""], [_training_row(view) for view in trainings], style, right="STEPS")
    told = [(view["step"], printable(view["stop_reason"])) for view in trainings]
    if any(view["step"] == "safety" and view["steps"] for view in trainings):
        lines += wrapped("nats a response token; the safety patch forgets, so that its loss rises", style, indent=4)
    return lines + [line for name, text in told for line in wrapped(f"{name} ended by: {text}", style, indent=4)]


def _training_row(view: View) -> list[str]:
    loss = f"{number(view['start_loss'])} -> {number(view['end_loss'])}" if view["steps"] else NOTHING
    curve = sparkline([loss for loss in view["losses"] if loss is not None], _CURVE_COLUMNS)
    return [view["step"], number(view["steps"]), loss, curve]


def search_lines(found: View, style: Style) -> list[str]:
    """The merge that won and why; then what was tried, the winner marked, and what its score is made of."""
    pairs = [
        ("tried", f"{found['num_trials']} merge{'' if found['num_trials'] == 1 else 's'}"),
        ("winner", point_text(found["point"])),
        ("why", printable("; ".join(found["reasons"]))),
        ("score", formula_text(found["weights"])),
    ]
    return [*fields(pairs, style), *trial_lines(found, style)]


def formula_text(weights: Mapping[str, float]) -> str:
    """What a score is the sum of; a constant is left out, since it moves no comparison. Empty where it is not known."""
    terms = [(weight, _AXES[axis][1]) for axis, weight in weights.items() if weight]
    text = " ".join(f"{'-' if weight < 0 else '+'} {_times(abs(weight))}{name}" for weight, name in terms)
    constant = -sum(weights.get(axis, 0) for axis in ("harm_rate", "over_refusal_rate"))
    return f"{number(constant)} {text}" if terms else ""


def _times(weight: float) -> str:
    return "" if weight == 1 else f"{weight:g} "


def trial_lines(found: View, style: Style) -> list[str]:
    """A table of the merges that were tried: score, the coefficients that differ between them, axes."""
    trials = found["trials"]
    if len(trials) < 2:
        return []
    shown = sorted(_shown_trials(found))
    points = [trial["point"] for trial in trials]
    varied = [name for name in points[0] if len({point.get(name) for point in points}) > 1]
    axes = [axis for axis in _AXES if any(trial["axes"].get(axis) is not None for trial in trials)]
    lines: list[str] = []
    while not lines or (max(map(width, lines)) > style.columns and axes.pop()):
        titles = ["  #", "SCORE", *(_COEFFICIENTS.get(name, name) for name in varied), *(_AXES[a][0] for a in axes)]
        rows = [_trial_row(at, trials[at], varied, axes, is_won=at == found["winner"]) for at in shown]
        lines = table(titles, rows, style, right=",".join(titles[1:]))
    more = len(trials) - len(shown)
    return lines + ([f"and {more} more that scored less (`--json` shows all)"] if more else [])


def _shown_trials(found: View) -> set[int]:
    """The start, the winner, and the best of the others."""
    places = sorted(range(len(found["trials"])), key=lambda at: -(found["trials"][at]["score"] or 0.0))
    first = [0, *([] if found["winner"] is None else [found["winner"]])]
    return set(list(dict.fromkeys([*first, *places]))[:_MAX_TRIALS])


def _trial_row(at: int, trial: View, varied: Sequence[str], axes: Sequence[str], *, is_won: bool) -> list[str]:
    mark = "*" if is_won else " "
    point = [number(trial["point"].get(name)) for name in varied]
    return [f"{mark} {at + 1}", f"{trial['score']:.3f}", *point, *(percent(trial["axes"].get(axis)) for axis in axes)]


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


def layer_lines(layers: Sequence[View], style: Style) -> list[str]:
    """The layers that hold most of the sets, in their order: entries and share of each set, and the overlap.

    Nothing where the sets are empty: no patch was needed.
    """
    if not any(map(_weight, layers)):
        return []
    most = sorted(layers, key=lambda layer: -_weight(layer))[:_MAX_LAYERS]
    names = list(dict.fromkeys(name for layer in layers for name in layer["sets"]))
    shown = [layer for layer in layers if layer in most]
    rows = [[layer["layer"], *(_layer_set_text(layer["sets"].get(name)) for name in names)] for layer in shown]
    headers = ["LAYER", *(name.upper() for name in names)]
    more = len(layers) - len(shown)
    left_out = [f"and {more} more that hold less (`--json` shows all)"] if more else []
    return table(headers, rows, style, right=",".join(headers[1:])) + left_out if rows else []


def _weight(layer: View) -> float:
    return float(sum(found["num_marked"] or found["fraction"] for found in layer["sets"].values()))


def _layer_set_text(found: View | None) -> str:
    if found is None:
        return NOTHING
    count = "" if found["num_marked"] is None else f"{found['num_marked']:,}  "
    return f"{count}{percent(found['fraction']):>5}"
