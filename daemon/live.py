"""`status --watch`: the service at work, redrawn four times a second, or a line per change where nobody draws."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TextIO

from daemon import views
from daemon.command import Context
from daemon.render import history_lines, round_text, status_lines
from daemon.standing import look, names
from daemon.status_view import status_view
from daemon.steps import STEPS
from daemon.terminal import Style, bar, duration, sparkline
from state.rows import VersionRow

if TYPE_CHECKING:
    from state.store import Store

REFRESH_S: Final = 0.25
NUM_VERSIONS: Final = 5
_SPARK_COLUMNS: Final = 40

Frame = dict[str, Any]


def watch(
    context: Context,
    store: Store,
    *,
    out: TextIO = sys.stdout,
    sleep: Callable[[float], None] = time.sleep,
    num_frames: int | None = None,
) -> None:
    """Shows the service until it is interrupted, or for a number of frames.

    On a terminal it is redrawn in place; elsewhere each change is a line, with `--json` a JSON document.
    """
    frames = _frames(context, store, sleep, num_frames)
    if out.isatty() and not context.json:
        _draw(frames, context.style)
        return
    last = None
    for frame in frames:
        key = change_key(frame)
        if key != last:
            print(json.dumps(frame) if context.json else change_line(frame), file=out, flush=True)
        last = key


def _frames(context: Context, store: Store, sleep: Callable[[float], None], num_frames: int | None) -> Iterator[Frame]:
    count, seen = 0, None
    versions: list[views.View] = []
    while num_frames is None or count < num_frames:
        if count:
            sleep(REFRESH_S)
        count += 1
        version = store.ledger.data_version()
        if version != seen:
            seen, versions = version, newest_versions(store)
        yield frame_of(context, store, versions)


def newest_versions(store: Store) -> list[views.View]:
    """The views of the last few versions, oldest first."""
    rows = store.ledger.newest(VersionRow, NUM_VERSIONS)
    return views.history_view(rows, names(store, rows))


def frame_of(context: Context, store: Store, versions: list[views.View]) -> Frame:
    """What one redraw shows: the status, the losses, the steps to expect, the newest versions."""
    standing = look(context, store)
    return status_view(standing) | {
        "losses": views.plain(standing.progress.get("losses") or {}),
        "expected_steps": list(STEPS[standing.running.kind]) if standing.running else [],
        "versions": versions,
    }


def _draw(frames: Iterator[Frame], style: Style) -> None:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console(highlight=False, no_color=not style.colour)
    with Live(console=console, auto_refresh=False, transient=False, vertical_overflow="crop") as live:
        for frame in frames:
            text = "\n".join(frame_lines(frame, Style(style.colour, console.width)))
            live.update(Text.from_ansi(text, no_wrap=True), refresh=True)


def frame_lines(frame: Frame, style: Style) -> list[str]:
    """The lines of one redraw."""
    lines = status_lines(frame, style, with_round=not frame["round"])
    if frame["round"]:
        lines += ["", round_text(frame["round"] | {"fraction": None, "eta_s": None, "loss": None}, style)]
        lines += step_lines(frame["round"], frame["expected_steps"], frame["losses"], style)
    return [*lines, "", *history_lines(frame["versions"], style)]


def step_lines(
    round_: Mapping[str, Any], expected: Sequence[str], losses: Mapping[str, Any], style: Style
) -> list[str]:
    """One line a step: done, running with its bar, or still to come."""
    done, running = round_["steps_done"], round_["step"]
    steps = list(dict.fromkeys([*expected, *done, *([running] if running else [])]))
    column = max(map(len, steps), default=0)
    lines = []
    for step in steps:
        name = step.ljust(column)
        if step in done:
            lines.append(f"  {style.paint('✓', 'good')} {name}")
        elif step == running:
            lines.append(f"  {style.paint('▸', 'bold')} {name}  {_running_text(round_, losses.get(step))}".rstrip())
        else:
            lines.append(style.paint(f"  · {name}".rstrip(), "dim"))
    return lines


def _running_text(round_: Mapping[str, Any], losses: Any) -> str:
    fraction = round_["fraction"] or 0.0
    parts = [f"{bar(fraction, 20)} {fraction * 100:3.0f}%"]
    if round_["eta_s"] is not None:
        parts.append(f"{duration(round_['eta_s'])} left")
    if round_["loss"] is not None:
        parts.append(f"loss {round_['loss']:.3f}")
    known = [point for point in losses or [] if isinstance(point, int | float)]
    return "  ".join([*parts, sparkline(known[-_SPARK_COLUMNS:], 16)]).rstrip()


def change_key(frame: Frame) -> tuple[Any, ...]:
    """What must differ for another line: standing, step, and every tenth of a step."""
    round_ = frame["round"] or {}
    tenth = int((round_.get("fraction") or 0.0) * 10)
    counts = len(frame["queue"]), frame["inbox"]["waiting"], frame["quarantine"]
    switches = frame["held"], frame["paused"], frame["service"]["running"], *frame["problems"]
    return frame["current"], frame["candidate"], round_.get("id"), round_.get("step"), tenth, counts, switches


def change_line(frame: Frame) -> str:
    """The standing in one line."""
    words = [name for name in ("held", "paused") if frame[name]]
    words += [] if frame["service"]["running"] else ["service not running"]
    words += [f"problem: {problem}" for problem in frame["problems"]]
    at = round_text(frame["round"], Style()) if frame["round"] else "no round"
    counts = {"queue": len(frame["queue"]), "inbox": frame["inbox"]["waiting"], "quarantine": frame["quarantine"]}
    counted = [f"{name} {number}" for name, number in counts.items() if number]
    return "  ".join([time.strftime("%H:%M:%S"), frame["current"], at, *counted, *words])
