"""Text for people: tables that fit the terminal, colours where they help, numbers in one form.

Nothing here is heavy: the hot commands print through it. The live view is in `daemon.live`.
"""

from __future__ import annotations

import os
import re
import shutil
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TextIO

from state.text import printable as printable  # one form of a stranger's name, whoever shows it

Colour = Literal["", "good", "bad", "warn", "dim", "bold"]
_CODES: Final[dict[str, str]] = {"good": "32", "bad": "31", "warn": "33", "dim": "2", "bold": "1"}
_ESCAPE: Final = re.compile(r"\x1b\[[0-9;]*m")
_PAINTED: Final = re.compile(r"(\x1b\[[0-9;]*m)([^\x1b]*)(\x1b\[0m)")
_WORD: Final = re.compile(r"(\s*)(\S+)")
_PATH: Final = re.compile(r"[`'\"(]*[~.]{0,2}/")
DEFAULT_COLUMNS: Final = 80
GAP: Final = "  "
_MIN_COLUMN: Final = 6
_MIN_VALUE: Final = 20
_NOTE: Final = "NOTE"
_NOTE_INDENT: Final = 4
NOTHING: Final = "-"


@dataclass(frozen=True)
class Style:
    """How text is printed: in colour or not, and how wide."""

    colour: bool = False
    columns: int = DEFAULT_COLUMNS

    def paint(self, text: str, colour: Colour) -> str:
        """The text in a colour; unchanged where colours are off."""
        return f"\x1b[{_CODES[colour]}m{text}\x1b[0m" if self.colour and colour and text else text


def style_of(stream: TextIO) -> Style:
    """The style for a stream: colours only on a terminal, without NO_COLOR, that is not dumb."""
    tty = stream.isatty()
    plain = bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"
    columns = shutil.get_terminal_size((DEFAULT_COLUMNS, 24)).columns
    return Style(colour=tty and not plain, columns=max(columns, 40))


def width(text: str) -> int:
    """Columns that a text takes, colours not counted, wide characters as two."""
    bare = _ESCAPE.sub("", text)
    if bare.isascii():
        return len(bare)
    return sum(_char_width(char) for char in bare)


def _char_width(char: str) -> int:
    if unicodedata.combining(char):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def cut(text: str, columns: int) -> str:
    """The text in at most `columns`, its end replaced by an ellipsis where it is longer."""
    if width(text) <= columns:
        return text
    kept, used = "", 0
    for char in _ESCAPE.sub("", text):
        used += _char_width(char)
        if used > columns - 1:
            break
        kept += char
    return kept + "…"


def table(
    headers: Sequence[str], rows: Iterable[Sequence[str]], style: Style, *, right: str = "", flexible: str = ""
) -> list[str]:
    """Lines of a table that fits the style's columns.

    Args:
        headers: column titles.
        rows: as many cells each as there are headers; cells may be painted.
        right: titles of the columns that are aligned to the right, separated by commas.
        flexible: titles of the columns that are cut, first to last, when it is too wide.
    """
    cells = [list(row) for row in rows]
    widths = [max([width(title), *(width(row[i]) for row in cells)]) for i, title in enumerate(headers)]
    for title in filter(None, flexible.split(",")):
        i = list(headers).index(title)
        excess = sum(widths) + len(GAP) * (len(widths) - 1) - style.columns
        widths[i] -= max(0, min(excess, widths[i] - max(width(title), _MIN_COLUMN)))
    aligned = [title in right.split(",") for title in headers]
    titles = [style.paint(title, "dim") for title in headers]
    return [_line(row, widths, aligned) for row in [titles, *cells]]


def noted_table(
    headers: Sequence[str],
    rows: Sequence[Sequence[str]],
    notes: Sequence[str],
    style: Style,
    *,
    right: str = "",
    flexible: str = "",
    max_lines: int | None = None,
) -> list[str]:
    """A table whose last column, NOTE, holds what fits beside the others; longer notes stand below their rows.

    Args:
        notes: one a row, unpainted; an empty one takes no room.
        right: as for `table`, and so is `flexible`.
        max_lines: of a note below its row; the last of them is cut.
    """
    if not any(notes):
        return table(headers, rows, style, right=right, flexible=flexible)
    room = style.columns - max(map(width, table(headers, rows, style, right=right, flexible=flexible))) - len(GAP)
    beside = [note if width(note) <= room and room >= len(_NOTE) else "" for note in notes]
    if any(beside):
        cells = [[*row, note] for row, note in zip(rows, beside, strict=True)]
        title, *lines = table([*headers, _NOTE], cells, style, right=right, flexible=flexible)
    else:
        title, *lines = table(headers, rows, style, right=right, flexible=flexible)
    below = [
        _below(note, style, max_lines) if note and not fits else [] for note, fits in zip(notes, beside, strict=True)
    ]
    return [title, *(text for line, more in zip(lines, below, strict=True) for text in (line, *more))]


def _below(note: str, style: Style, max_lines: int | None) -> list[str]:
    lines = wrapped(" " * _NOTE_INDENT + note, style, indent=_NOTE_INDENT)
    if max_lines is None or len(lines) <= max_lines:
        return lines
    return [*lines[: max_lines - 1], cut(" ".join([lines[max_lines - 1], lines[max_lines].strip()]), style.columns)]


def _line(row: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> str:
    parts = []
    for cell, columns, to_right in zip(row, widths, right, strict=True):
        text = cut(cell, columns)
        space = " " * (columns - width(text))
        parts.append(space + text if to_right else text + space)
    return GAP.join(parts).rstrip()


def fields(pairs: Iterable[tuple[str, str]], style: Style, *, indent: int = 0) -> list[str]:
    """Lines of `name  value`, values below each other, long ones wrapped; an empty value leaves its pair out."""
    shown = [(name, value) for name, value in pairs if value]
    column = max((width(name) for name, _ in shown), default=0)
    lines = []
    for name, value in shown:
        room = style.columns - indent - column - len(GAP)
        parts = [value] if width(value) <= room else _value_lines(value, max(room, _MIN_VALUE))
        titles = [style.paint(name.ljust(column), "dim"), *[" " * column] * (len(parts) - 1)]
        lines += [f"{' ' * indent}{title}{GAP}{part}" for title, part in zip(titles, parts, strict=True)]
    return lines


def _value_lines(value: str, columns: int) -> list[str]:
    """A long value in lines; one that is painted is painted line by line, and one that is painted in part stays whole."""
    painted = _PAINTED.fullmatch(value)
    if painted:
        return [f"{painted[1]}{part}{painted[3]}" for part in _wrap(painted[2], columns)]
    return [value] if _ESCAPE.search(value) else _wrap(value, columns)


def wrapped(text: str, style: Style, *, indent: int = 0) -> list[str]:
    """An unpainted text in lines that fit, all but the first indented.

    A word that is wider than a line is broken, but for a path: somebody may want to copy that.
    """
    return _wrap(text, style.columns, " " * indent) or [""]


def _wrap(text: str, columns: int, pad: str = "") -> list[str]:
    lines, line = [], ""
    for space, word in _WORD.findall(text):
        if line.strip() and width(line + space + word) > columns:
            lines.append(line)
            line, space = pad, ""
        line += " " * len(space) + word
        while width(line) > columns and not _PATH.match(word) and columns > len(pad) + 1:
            start = _start(line, columns)
            lines.append(start)
            line = pad + line[len(start) :]
    return [*lines, line] if line.strip() else lines


def _start(text: str, columns: int) -> str:
    """As much of an unpainted text as fits, and at least one character of it."""
    used = 0
    for at, char in enumerate(text):
        used += _char_width(char)
        if used > columns and at:
            return text[:at]
    return text


def percent(value: float | None) -> str:
    """A share in [0, 1] as a percentage; `-` where there is none."""
    if value is None:
        return NOTHING
    return "100%" if value >= 1 else f"{value * 100:.1f}%"


def signed_percent(value: float | None) -> str:
    """A difference of two shares in percentage points, with its sign."""
    return NOTHING if value is None else f"{value * 100:+.1f}"


def number(value: float | None) -> str:
    """A number with at most four significant digits."""
    if value is None:
        return NOTHING
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def size(num_bytes: int | None) -> str:
    """Bytes in a unit a person reads."""
    if num_bytes is None:
        return NOTHING
    value = float(num_bytes)
    for unit in ("B", "KB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def duration(seconds: float | None) -> str:
    """Seconds as `42s`, `3m 05s` or `2h 10m`."""
    if seconds is None:
        return NOTHING
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    return f"{whole // 3600}h {whole % 3600 // 60:02d}m"


def when(instant: str | None) -> str:
    """A UTC ISO-8601 time as `2026-01-31 12:05`."""
    return NOTHING if not instant else instant[:16].replace("T", " ")


def sparkline(values: Sequence[float], columns: int) -> str:
    """The course of some numbers in one line of block characters; empty for fewer than two."""
    if len(values) < 2:
        return ""
    step = max(1.0, len(values) / columns)
    picked = [values[int(i * step)] for i in range(min(columns, len(values)))]
    low, high = min(picked), max(picked)
    span = (high - low) or 1.0
    return "".join("▁▂▃▄▅▆▇█"[int((value - low) / span * 7)] for value in picked)


def bar(fraction: float, columns: int) -> str:
    """A progress bar of a share in [0, 1]."""
    filled = round(min(max(fraction, 0.0), 1.0) * columns)
    return "█" * filled + "░" * (columns - filled)
