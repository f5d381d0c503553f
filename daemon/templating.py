"""How templates are filled in: of the page that the service serves and of the page that `alignd report` writes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from daemon import charts, terminal
from daemon.views import without_batch
from state.text import printable


def _shown(value: Any) -> str:
    """A stranger's words: no control character, no lone surrogate."""
    return printable("" if value is None else str(value))


def _metric(item: Mapping[str, Any], key: str) -> str:
    value = item[key]
    if item["is_share"]:
        return terminal.signed_percent(value) if key == "delta" else terminal.percent(value)
    return terminal.number(value)


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    environment.filters |= {
        "percent": terminal.percent,
        "signed_percent": terminal.signed_percent,
        "number": terminal.number,
        "size": terminal.size,
        "duration": terminal.duration,
        "when": terminal.when,
        "shown": _shown,
        "words": lambda text: _shown(text).replace("_", " "),
        "capitalized": lambda text: text[:1].upper() + text[1:],
        "heat": charts.heat,
        "metric": _metric,
        "without_batch": without_batch,
    }
    return environment


ENVIRONMENT: Final = _environment()
"""Everything is escaped, and a name that is missing is an error."""
