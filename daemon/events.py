"""docs/events.md, out of the sources: every event of `daemon/log.py`, how loud it is, and the facts that come with it.

`daemon/reference.py` writes it anew; a test holds the file to it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from daemon import log

_LEVELS: Final = ("debug", "info", "warning", "error", "critical", "exception")
_LOGGERS: Final = ("_log", "log", "structlog.get_logger()")
_HEAD: Final = """\
# Log events

Made from the code by `python -m daemon.reference`; do not edit it. Under systemd `alignd run` writes one JSON object a
line to the journal, each with `event`, `level`, `timestamp` (UTC) and the facts below. Names and facts are kept: new
ones come, none is renamed. No prompt, no answer and no line of a batch is ever among them.

| event | level | facts | meaning |
|---|---|---|---|
"""


@dataclass
class Event:
    """One event as the sources log it."""

    name: str
    meaning: str
    levels: set[str] = field(default_factory=set)
    facts: set[str] = field(default_factory=set)
    has_more: bool = False
    """A call passes facts that are not named in it."""


def events() -> dict[str, Event]:
    """Every event by its constant, in the order of `daemon/log.py`."""
    folder = Path(log.__file__).parent
    found = {name: Event(value, meaning) for name, value, meaning in _listed(Path(log.__file__))}
    for path in sorted(folder.glob("*.py")):
        for name, call in logged(path.read_text(encoding="utf-8")):
            if name in found:
                _add(found[name], call)
    return found


def logged(source: str) -> Iterator[tuple[str, ast.Call]]:
    """Every call of a module that logs, with each name that its event may have there."""
    tree = ast.parse(source)
    chosen = {
        target.id: node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.IfExp)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and _is_log_call(call):
            event = call.args[0]
            for name in _constants(chosen.get(event.id, event) if isinstance(event, ast.Name) else event):
                yield name, call


def render() -> str:
    """The page."""
    lines = []
    for event in events().values():
        level = ", ".join(sorted(event.levels, key=_LEVELS.index))
        facts = ", ".join(f"`{name}`" for name in sorted(event.facts)) + (" …" if event.has_more else "")
        lines.append(f"| `{event.name}` | {level} | {facts} | {event.meaning} |")
    return _HEAD + "\n".join(lines) + "\n"


def _listed(path: Path) -> Iterator[tuple[str, str, str]]:
    """Constant, name and meaning: the string below the constant."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    for at, node in enumerate(body):
        if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)):
            continue
        value = node.value
        if node.target.id.isupper() and isinstance(value, ast.Constant) and isinstance(value.value, str):
            below = body[at + 1]
            told = below.value if isinstance(below, ast.Expr) else None
            meaning = told.value if isinstance(told, ast.Constant) else ""
            yield node.target.id, value.value, " ".join(str(meaning).split())


def _is_log_call(call: ast.Call) -> bool:
    func = call.func
    is_log = isinstance(func, ast.Attribute) and func.attr in _LEVELS and ast.unparse(func.value) in _LOGGERS
    return is_log and bool(call.args)


def _constants(node: ast.expr) -> list[str]:
    """The constants that an event may be: one, or one of two."""
    if isinstance(node, ast.IfExp):
        return [*_constants(node.body), *_constants(node.orelse)]
    return [node.id] if isinstance(node, ast.Name) else []


def _add(event: Event, call: ast.Call) -> None:
    assert isinstance(call.func, ast.Attribute)
    event.levels.add("error" if call.func.attr == "exception" else call.func.attr)
    event.facts |= {keyword.arg for keyword in call.keywords if keyword.arg is not None}
    event.has_more |= any(keyword.arg is None for keyword in call.keywords)
