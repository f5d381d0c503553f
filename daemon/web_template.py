"""The page's templates, filled in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from daemon import charts, terminal
from daemon.report_page import TEMPLATES
from state.text import printable


def render(name: str, facts: Mapping[str, Any]) -> str:
    """One page as HTML."""
    return _ENVIRONMENT.get_template(f"web_{name}.html.jinja").render(facts)


def live_parts(facts: Mapping[str, Any], *, with_now: bool) -> dict[str, str]:
    """The parts of a page that change by themselves: id -> HTML, as `render` puts it there."""
    parts: Any = _ENVIRONMENT.get_template("web_live.html.jinja").module
    found = {"standing": parts.standing(facts["frame"])}
    if with_now:
        found |= {name: getattr(parts, name)(facts) for name in ("round", "waiting", "newest", "rounds")}
    return {name: str(html) for name, html in found.items()}


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
        loader=FileSystemLoader(TEMPLATES),
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
    }
    return environment


_ENVIRONMENT: Final = _environment()
