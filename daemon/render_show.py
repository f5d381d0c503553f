"""One round, batch or difference as lines for people, and tables that versions share with them.

Pure: a view and a style in, lines out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from daemon.render import View, short, state_text
from daemon.render_made import made_sections
from daemon.render_steps import rows_lines, step_sections
from daemon.terminal import (
    NOTHING,
    Colour,
    Style,
    fields,
    number,
    percent,
    printable,
    signed_percent,
    size,
    table,
    when,
    wrapped,
)
from daemon.views import flat_metrics, metrics_delta

_SHOWN_ELSEWHERE: Final = frozenset(("evaluate", "gate", "search", "mask"))
"""Steps of a round whose results are shown in another form."""
_METRICS: Final = {"utility_nll": "utility loss", "over_safety_right_rate": "lookalikes right"}
_INDENT: Final = 2


def narrowed(style: Style) -> Style:
    """The style for lines that stand indented under a title."""
    return replace(style, columns=style.columns - _INDENT)


def section(title: str, lines: Sequence[str], style: Style) -> list[str]:
    """Lines under a title; nothing when there are none."""
    return ["", style.paint(title, "bold"), *(" " * _INDENT + line for line in lines)] if lines else []


def metrics_lines(
    metrics: View, against: Mapping[str, View], style: Style, batch_names: Mapping[str, str] | None = None
) -> list[str]:
    """Metrics of a version, and how far they moved against others, in percentage points."""
    known = {name: value for name, value in flat_metrics(metrics).items() if isinstance(value, int | float)}
    rows = [
        [title_of(name, batch_names), _metric(name, value), *_deltas(name, against)] for name, value in known.items()
    ]
    headers = ["METRIC", "VALUE", *(f"VS {other}".upper() for other in against)]
    return table(headers, rows, style, right=",".join(headers[1:]), flexible="METRIC") if rows else []


def _metric(name: str, value: float) -> str:
    return percent(value) if is_share(name) else number(value)


def _deltas(name: str, against: Mapping[str, View]) -> list[str]:
    show = signed_percent if is_share(name) else number
    return [show(deltas.get(name)) for deltas in against.values()]


def title_of(metric: str, batch_names: Mapping[str, str] | None = None) -> str:
    """A metric's name as a person reads it; `batch_names` by the start of the digest that groups carry."""
    name, _, group = metric.partition(".")
    words = _METRICS.get(name, name.replace("_", " "))
    group = (batch_names or {}).get(group, group)
    return words + (f" {printable(group)}" if group else "")


def is_share(metric: str) -> bool:
    """True for the metrics that are shares in [0, 1], by the names they carry."""
    name = metric.partition(".")[0]
    return name.endswith(("_rate", "_fraction", "utility")) or "_by_" in name


def gates_lines(gates: Sequence[View], style: Style) -> list[str]:
    """One line a gate, with its 95 % interval; what each was held against below."""
    if not gates:
        return []
    headers = ["GATE", "CLASS", "VERDICT", "VALUE", "95 % INTERVAL", "SAMPLES"]
    lines = table(headers, [_gate_row(view, style) for view in gates], style, right="VALUE,SAMPLES")
    told = [(view["name"], printable("; ".join(view["reasons"]))) for view in gates]
    return lines + [line for name, text in told for line in wrapped(f"{name}: {text}", style, indent=4)]


def _gate_row(view: View, style: Style) -> list[str]:
    colours: dict[str, Colour] = {"pass": "good", "fail": "bad", "inconclusive": "warn"}
    show = percent if view["low"] is not None else number
    return [
        view["name"],
        view["class"],
        style.paint(view["verdict"], colours.get(view["verdict"], "")),
        show(view["value"]),
        interval_text(view["low"], view["high"]) or NOTHING,
        number(view["num_samples"]),
    ]


def interval_text(low: float | None, high: float | None) -> str:
    """An interval of shares in percent: `3.0 .. 22.4`; empty where there is none."""
    return "" if low is None or high is None else f"{low * 100:.1f} .. {high * 100:.1f}"


def _run_state(view: View, style: Style) -> str:
    return state_text("interrupted" if view.get("interrupted") else view["state"], style)


def round_lines(view: View, style: Style) -> list[str]:
    """Everything a person asks about one round."""
    head = [f"{style.paint(view['id'], 'bold')}  {_run_state(view, style)}  {view['kind']}"]
    head += fields(
        [
            ("batch", f"{printable(view['batch_name'] or '')} ({short(view['batch'])})" if view["batch"] else ""),
            ("takes out", view["target"] or ""),
            ("parent", view["parent"]),
            ("version", view["version"] or NOTHING),
            ("started", when(view["started"])),
            ("ended", when(view["ended"])),
            ("attempts", str(view["attempts"])),
            ("steps done", ", ".join(view["steps"]) or NOTHING),
            ("reason", printable(view["reason"])),
        ],
        style,
    )
    candidate = view["metrics"]["candidate"]
    against = {
        name: metrics_delta(metrics, candidate) for name, metrics in view["metrics"].items() if name != "candidate"
    }
    shown = _SHOWN_ELSEWHERE | {training["step"] for training in view["trainings"]}
    sections = [
        ("metrics of the candidate", metrics_lines(candidate, against, narrowed(style), view.get("batch_names"))),
        ("gates", gates_lines(view["gates"], narrowed(style))),
        *made_sections(view, narrowed(style)),
        *step_sections({step: view["artefacts"][step] for step in view["steps"] if step not in shown}, narrowed(style)),
    ]
    return head + [line for title, lines in sections for line in section(title, lines, style)]


def _duplicate_text(view: View) -> str:
    name, known = view["duplicate"]["name"], f"{view['name']} ({short(view['sha256'])})"
    return printable(f"{name} is a duplicate of {known}:")


def _rounds_text(rounds: Sequence[str]) -> str:
    return f"{', '.join(rounds)}; `alignd show {rounds[-1]}` has the last one's gates" if rounds else NOTHING


def batch_lines(view: View, style: Style) -> list[str]:
    """Everything a person asks about one batch."""
    head = wrapped(_duplicate_text(view), style, indent=2) if view.get("duplicate") else []
    head += [f"{style.paint(short(view['sha256']), 'bold')}  {_run_state(view, style)}"]
    head += fields(
        [
            ("name", printable(view["name"])),
            ("sha256", view["sha256"]),
            ("received", when(view["received"])),
            ("size", f"{size(view['num_bytes'])} in {view['num_files']} file(s)"),
            ("versions", ", ".join(view["versions"]) or NOTHING),
            ("rounds", _rounds_text(view.get("rounds", ()))),
            ("attempts", str(view["attempts"])),
            ("reason", printable(view["reason"])),
            ("repeats", printable(", ".join(f"{again['name']} {when(again['at'])}" for again in view["duplicates"]))),
        ],
        style,
    )
    return head + section("rows", rows_lines(view["stats"], narrowed(style)) if view["stats"] else [], style)


def _only_text(item: View) -> str:
    """Which of two versions has a batch that the other has not."""
    origin = "" if item["version"] == item["has"] else f", since {item['version']}"
    return f"only in {item['has']}: {printable(item['name'] or '')} ({short(item['batch'])}){origin}"


def diff_lines(view: View, style: Style) -> list[str]:
    """How two versions differ: numbers, batches, then tensors."""
    head = [f"{view['a']} .. {view['b']}: {len(view['tensors'])} tensors differ in {view['num_entries']:,} entries"]
    rows = [
        [item["name"], f"{item['num_entries']:,}", number(item["l2"]), number(item["max_abs"])]
        for item in view["tensors"]
    ]
    headers = ["TENSOR", "ENTRIES", "L2", "MAX |D|"]
    tensors = table(headers, rows, narrowed(style), right="ENTRIES,L2,MAX |D|", flexible="TENSOR") if rows else []
    moved = {name: delta for name, delta in view["metrics"].items() if delta is not None}
    metrics = [[title_of(name, view["batch_names"]), *_deltas(name, {"": moved})] for name in moved]
    batches = [line for item in view["batches"] for line in wrapped(_only_text(item), narrowed(style), indent=4)]
    sections = [
        (
            "metrics",
            table(["METRIC", "CHANGE"], metrics, narrowed(style), right="CHANGE", flexible="METRIC") if metrics else [],
        ),
        ("batches", batches),
        ("tensors", tensors),
    ]
    return head + [line for title, lines in sections for line in section(title, lines, style)]
