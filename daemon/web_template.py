"""The page's templates, filled in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from daemon.templating import ENVIRONMENT


def render(name: str, facts: Mapping[str, Any]) -> str:
    """One page as HTML."""
    return ENVIRONMENT.get_template(f"web_{name}.html.jinja").render(facts)


def live_parts(facts: Mapping[str, Any], *, with_now: bool) -> dict[str, str]:
    """The parts of a page that change by themselves: id -> HTML, as `render` puts it there."""
    parts: Any = ENVIRONMENT.get_template("web_live.html.jinja").module
    found = {"standing": parts.standing(facts["frame"])}
    if with_now:
        found |= {name: getattr(parts, name)(facts) for name in ("round", "waiting", "newest", "rounds")}
    return {name: str(html) for name, html in found.items()}
