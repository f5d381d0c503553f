"""What `bisect` says, as lines for people. Pure: a view and a style in, lines out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from daemon.render import View, short
from daemon.render_show import interval_text
from daemon.terminal import Style, percent, printable, wrapped

_LABELS: Final = {"num_answers": "answered", "num_refusals": "refused", "num_degenerate": "degenerate"}


def step_line(step: View, style: Style) -> str:
    """One version that was tried: verdict, rate with interval, labels of its answers."""
    verdict = style.paint("passes", "good") if step["passes"] else style.paint("fails ", "bad")
    share = f"{percent(step['rate']):>6}  {interval_text(step['low'], step['high'])}"
    counts = ", ".join(f"{step[key]} {word}" for key, word in _LABELS.items() if step[key])
    return f"{step['version']:<4}  {verdict}  {share}  ({counts} of {step['num_prompts']})"


def conclusion_lines(view: View, style: Style) -> list[str]:
    """What the search came to, and what can be done next."""
    found = view["found"]
    if found is None:
        return ["", *_lines(_undecided(view), style)]
    origin = _origin(found)
    first = f"{found['id']} broke it: round {found['round']}, {origin}, parent {found['parent']}"
    lines = ["", *_lines(first, style), *_lines("; ".join(view["reasons"]), style)]
    if view["untried"]:
        lines += _lines(f"not tried: {', '.join(view['untried'])}", style)
    return [*lines, f"next: {_next(found)}"]


def _origin(found: View) -> str:
    if found["took_out"]:
        return f"which took {found['took_out']} out"
    if found["kind"] == "consolidation":
        return "which learnt all batches anew, together"
    return f"batch {printable(found['batch_name'] or '')} ({short(found['batch'])})"


def _next(found: View) -> str:
    commands = [f"alignd show {found['id']}", f"alignd diff {found['parent']} {found['id']}"]
    if found["is_in_service"]:
        commands += [f"alignd revert {found['id']}" if found["batch"] else f"alignd rollback {found['parent']}"]
    return ", ".join(f"`{command}`" for command in commands)


def _undecided(view: View) -> str:
    text = f"no version is to blame: {'; '.join(view['reasons'])}"
    if view["dividing_bound"] is None:
        return text
    return f"{text}; their rates differ all the same: `--bound {view['dividing_bound']:g}` tells them apart"


def _lines(text: str, style: Style) -> Sequence[str]:
    return wrapped(text, style, indent=2)
