"""What was looked at before it can fail, as lines for people. Pure: checks and a style in, lines out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Final

from daemon.terminal import Colour, Style, printable, wrapped

if TYPE_CHECKING:
    from daemon.doctor import Check

_COLOURS: Final[dict[str, Colour]] = {"ok": "good", "warn": "warn", "bad": "bad"}


def checks_lines(checks: Iterable[Check], style: Style) -> Iterator[str]:
    """One line a check, with what to do below it."""
    for check in checks:
        told = printable(f"{check.status:4}  {check.name}: {check.detail}")
        first, *rest = wrapped(told, style, indent=6)
        yield style.paint(first[:4], _COLOURS[check.status]) + first[4:]
        yield from rest
        yield from wrapped(f"      -> {printable(check.advice)}", style, indent=9) if check.advice else ()
