"""The page about a version: one HTML file with everything in it, for any browser, light or dark, wide or narrow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from daemon import plots
from daemon.explain import OUTSIDE_LAYERS, layer_grid, layer_of
from daemon.templating import ENVIRONMENT
from daemon.views import View

PAGE: Final = "report.html.jinja"


def render(facts: Mapping[str, Any]) -> str:
    """The page as text; the same facts give the same bytes.

    Args:
        facts: as `report_facts.gather` gives them.
    """
    version = facts["version"]
    who = who_is_shown(version)
    return ENVIRONMENT.get_template(PAGE).render(**facts, who=who, plots=_plots(version, facts["tensors"], who))


def who_is_shown(version: View) -> dict[str, str]:
    """Columns of the axes, oldest first: v0, the parent where it is another, the version itself."""
    if version["parent"] is None:
        return {"this": version["id"]}
    parent = {} if version["parent"] == "v0" else {"parent": f"{version['parent']} (parent)"}
    return {"v0": "v0", **parent, "this": version["id"]}


def _plots(version: View, tensors: Sequence[View], who: Mapping[str, str]) -> dict[str, Any]:
    has_axes = any(axis[key]["value"] is not None for axis in version["axes"] for key in who)
    search = version["search"]
    touched = {tensor["name"]: tensor["fraction"] for tensor in tensors}
    return {
        "axes": plots.axes_plot(version["axes"], who) if has_axes else "",
        "losses": [svg for svg in map(plots.loss_plot, version["trainings"]) if svg],
        "trials": plots.trials_plot(search["trials"], search["winner"]) if search else "",
        "sets": [_grid(found["name"], found["per_tensor"]) for found in version["sets"]],
        "touched": _grid("touched share", touched),
    }


def _grid(title: str, values: Mapping[str, float]) -> str:
    """Values by layer and matrix; tensors outside the layers stand in the table only."""
    inside = {name: value for name, value in values.items() if layer_of(name) != OUTSIDE_LAYERS}
    return plots.grid_plot(title, *layer_grid(inside)) if inside else ""
