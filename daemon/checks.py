"""One thing that was looked at before it can fail, and how people see it. Pure: checks and a style in, lines out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Literal

from daemon.terminal import Colour, Style, printable, wrapped

Status = Literal["ok", "warn", "bad"]

_COLOURS: Final[dict[Status, Colour]] = {"ok": "good", "warn": "warn", "bad": "bad"}


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    status: Status
    detail: str
    advice: str = ""


def checks_lines(checks: Iterable[Check], style: Style) -> Iterator[str]:
    """One line a check, with what to do below it."""
    for check in checks:
        told = printable(f"{check.status:4}  {check.name}: {check.detail}")
        first, *rest = wrapped(told, style, indent=6)
        yield style.paint(first[:4], _COLOURS[check.status]) + first[4:]
        yield from rest
        yield from wrapped(f"      -> {printable(check.advice)}", style, indent=9) if check.advice else ()
