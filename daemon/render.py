"""The views of `daemon.views` as lines for people. Pure: a view and a style in, lines out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

from daemon.replica_views import in_short
from daemon.terminal import (
    NOTHING,
    Colour,
    Style,
    bar,
    cut,
    duration,
    fields,
    noted_table,
    percent,
    printable,
    size,
    table,
    when,
    width,
    wrapped,
)
from daemon.views import same_weights_as, without_batch
from state.quarantine import DROP_PREFIX

View = Mapping[str, Any]

_STATE_COLOURS: Final[dict[str, Colour]] = {
    "published": "good",
    "base": "good",
    "rejected": "bad",
    "quarantined": "bad",
    "failed": "bad",
    "rolled_back": "bad",
    "reverted": "warn",
    "awaiting_approval": "warn",
    "running": "bold",
    "interrupted": "warn",
    "duplicate": "warn",
}
AXES: Final = (("harm_rate", "HARM"), ("over_refusal_rate", "OVER-REF"), ("utility", "UTILITY"))
WIDE_COLUMNS: Final = 100
_NAME_COLUMNS: Final = 20
_MIN_NAME_COLUMNS: Final = 3
_STATUS_TITLES: Final = len("quarantine  ")
_ID_CHARS: Final = 12
_SHA256_CHARS: Final = 64


def state_text(state: str, style: Style) -> str:
    """A state by the one word it has, coloured by how good it is."""
    return style.paint(state, _STATE_COLOURS.get(state, ""))


def short(sha256: str | None) -> str:
    """The part of a digest that a person reads."""
    return sha256[:_ID_CHARS] if sha256 else NOTHING


def history_lines(versions: Sequence[View], style: Style) -> list[str]:
    """One line a version, oldest first; `*` marks what is in service. The time needs a wide terminal."""
    headers = ["  ID", "STATE", "BATCH", "HARM", "OVER-REF", "UTILITY", "TOUCHED"]
    rows = [_history_row(view, style) for view in versions]
    if style.columns >= WIDE_COLUMNS:
        headers.append("MADE")
        rows = [[*row, when(view["created"])] for row, view in zip(rows, versions, strict=True)]
    notes = [_history_note(view) for view in versions]
    return noted_table(headers, rows, notes, style, right="HARM,OVER-REF,UTILITY,TOUCHED", flexible="BATCH")


def _history_row(view: View, style: Style) -> list[str]:
    mark = style.paint("*", "good") if view["current"] else " "
    metrics = [percent(view["metrics"][key]) for key, _ in AXES]
    return [
        f"{mark} {view['id']}",
        state_text(view["state"], style),
        printable(view["batch_name"] or NOTHING),
        *metrics,
        percent(view["touched_fraction"]),
    ]


def _history_note(view: View) -> str:
    took_out = [f"takes {view['takes_out']} out"] if view["takes_out"] else []
    took_out += ["all batches together"] if view["consolidated"] else []
    twin = same_weights_as(view)
    return ", ".join(filter(None, [*took_out, f"same weights as {twin}" if twin else "", flags(view)]))


def flags(view: View) -> str:
    """What else is to be known of a version, in a few words."""
    words = [word for word in ("imported", "blocked", "pinned") if view[word]]
    return " ".join([*words, *(f"@{tag}" for tag in view["tags"])])


def status_lines(view: View, style: Style, *, with_round: bool = True) -> list[str]:
    """The state of the service, in about a dozen lines; a caller that draws the round itself leaves it out."""
    paint = style.paint
    service = view["service"]
    running = f"running, process {service['pid']}" if service["running"] else paint("not running", "warn")
    lines = fields(
        [
            ("current", f"{paint(view['current'], 'good')}  {axes_text(view['metrics'])}"),
            ("previous", view["previous"] or NOTHING),
            ("candidate", _candidate(view)),
            ("held", paint(_switch(view["hold"]), "warn")),
            ("paused", paint(_switch(view["pause"]), "warn")),
            ("round", round_text(view["round"], style) if with_round else ""),
            ("queue", _queue(view["queue"])),
            ("inbox", f"{view['inbox']['waiting']} waiting"),
            ("quarantine", str(view["quarantine"]) if view["quarantine"] else ""),
            ("serving", in_short(view.get("serving", ()))),
            ("service", running),
            ("page", service.get("page") or ""),
            ("says", printable(service["message"])),
            ("disk", f"{size(view['disk']['free_bytes'])} free"),
        ],
        style,
    )
    for problem in view["problems"]:
        first, *rest = wrapped(f"problem: {printable(problem)}", style, indent=9)
        lines += [paint("problem", "bad") + first.removeprefix("problem"), *rest]
    return lines


def axes_text(metrics: View) -> str:
    """The three axes of a version in one line."""
    words = {"harm_rate": "harm", "over_refusal_rate": "over-refusal", "utility": "utility"}
    return "  ".join(f"{words[key]} {percent(metrics[key])}" for key, _ in AXES)


def _candidate(view: View) -> str:
    if not view["candidate"]:
        return ""
    return f"{view['candidate']} waits for `alignd approve` or `alignd reject`"


def _switch(control: View | None) -> str:
    if control is None:
        return ""
    return f"since {when(control['since'])} by {control['actor']}: {printable(control['reason'])}"


def _queue(queue: Sequence[View]) -> str:
    if not queue:
        return "empty"
    names = [printable(item.get("name") or without_batch(item.get("target"))) for item in queue[:3]]
    names = [cut(name, _NAME_COLUMNS) for name in names]
    more = f" and {len(queue) - 3} more" if len(queue) > 3 else ""
    return f"{len(queue)}: {', '.join(names)}{more}"


def round_text(view: View | None, style: Style) -> str:
    """What the running round is at, or was when its service went, in one line."""
    if view is None:
        return NOTHING
    what = view["batch_name"] or without_batch(view["target"])
    parts = [_step_text(view)]
    if view["fraction"] is not None:
        parts.append(f"{bar(view['fraction'], 10)} {view['fraction'] * 100:.0f}%")
    if view["eta_s"] is not None:
        parts.append(f"{duration(view['eta_s'])} left")
    if view["loss"] is not None:
        parts.append(f"loss {view['loss']:.3f}")
    rest = "  ".join(parts)
    room = style.columns - _STATUS_TITLES - width(f"{view['id']}    {rest}")
    name = cut(printable(what), min(max(room, _MIN_NAME_COLUMNS), _NAME_COLUMNS))
    return "  ".join(filter(None, [view["id"], name, rest]))


def _step_text(view: View) -> str:
    """The running step, or between which steps it is."""
    if view["interrupted"]:
        return f"interrupted after {view['step']}" if view["step"] else "interrupted"
    if view["step"]:
        return str(view["step"])
    done = view["steps_done"]
    return f"going on after {done[-1]}" if done else "starting"


def batches_lines(batches: Sequence[View], style: Style) -> list[str]:
    """One line a batch, in order of arrival; a long note below it, in one more."""
    rows = [
        [
            short(view["sha256"]),
            printable(view["name"]),
            state_text(view["state"], style),
            size(view["num_bytes"]),
            when(view["received"]),
        ]
        for view in batches
    ]
    headers = ["BATCH", "NAME", "STATE", "SIZE", "RECEIVED"]
    notes = [_batch_note(view) for view in batches]
    return noted_table(headers, rows, notes, style, right="SIZE", flexible="NAME", max_lines=1)


def _batch_note(view: View) -> str:
    told = [view["reason"] or ", ".join(view["versions"]), _also_dropped(view)]
    return printable("; ".join(filter(None, told)))


def _also_dropped(view: View) -> str:
    """The other names that a batch's content was dropped under; its own name again is a number of times."""
    names = Counter(again["name"] for again in view["duplicates"])
    told = [name if count == 1 else f"{name} ({count} times)" for name, count in names.items()]
    return f"also dropped as {', '.join(told)}" if told else ""


def endings_lines(endings: Sequence[View], style: Style) -> list[str]:
    """One line for each batch or drop, its whole note below it where that is too long; none where there is none."""
    if not endings:
        return []
    cells = [[short_id(view["id"]), printable(view["name"]), state_text(view["state"], style)] for view in endings]
    headers = ["BATCH", "NAME", "STATE"]
    return noted_table(headers, cells, [_ending_note(view) for view in endings], style, flexible="NAME")


def _ending_note(view: View) -> str:
    waits = "waits: " if view["state"] in ("queued", "interrupted") else ""
    return printable(waits + (view["reason"] or ", ".join(view["versions"])))


def quarantine_lines(entries: Sequence[View], style: Style) -> list[str]:
    """One line an entry, its whole reason below it."""
    if not entries:
        return []
    rows = [[style.paint(short_id(view["id"]), "bold"), printable(view["name"]), when(view["at"])] for view in entries]
    title, *lines = table(["ENTRY", "NAME", "SINCE"], rows, style, flexible="NAME")
    told = [wrapped(f"    {printable(view['reason'])}", style, indent=4) for view in entries]
    return [title, *(text for line, reason in zip(lines, told, strict=True) for text in (line, *reason))]


def short_id(name: str) -> str:
    """What a person types for a batch, or for a drop that never became one: the start of its id, which is long.

    Other names, as of versions and rounds, are left as they are.
    """
    is_long = len(name) == _SHA256_CHARS or name.startswith(DROP_PREFIX)
    return printable(name[:_ID_CHARS] if is_long else name)


def _audit_note(view: View) -> str:
    """Why, which tag, whether a version that was committed came into service by that, and how a revert is to be made."""
    details = view["details"]
    published = "published" if details.get("published") is True else ""
    tag = f"@{details['tag']}" if details.get("tag") else ""
    is_anew = view["action"] == "revert_requested" and details.get("kind") == "consolidation"
    anew = "learns the others anew" if is_anew else ""
    return "; ".join(filter(None, (published, anew, printable(tag), printable(str(details.get("reason") or "")))))


def audit_lines(rows: Sequence[View], style: Style) -> list[str]:
    """One line an audit line, a long reason below it."""
    cells = [
        [
            str(view["seq"]),
            view["at"][:19].replace("T", " "),
            printable(view["actor"]),
            view["action"],
            short_id(view["subject"]),
        ]
        for view in rows
    ]
    notes = [_audit_note(view) for view in rows]
    return noted_table(["SEQ", "AT", "WHO", "DID", "WHAT"], cells, notes, style, right="SEQ", flexible="WHO,WHAT")
