"""The command that writes charts as files."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

from daemon import exitcodes, suggest
from daemon.command import SELECTORS, Answer, Command, CommandError, Context, arg, check_free, count

if TYPE_CHECKING:
    from daemon.figures import Chart, Form
    from state.store import Store

CHARTS: Final = ("axes", "harm", "search")
_FORMS: Final = ("png", "svg")
_NOTHING: Final = {
    "axes": "no version was measured yet",
    "harm": "no round measured harm by category; it needs standing harm probes (probes.harm)",
    "search": "nothing was searched for {ref}, or one merge only",
}


def _chart_name(text: str) -> str:
    if text not in CHARTS:
        raise argparse.ArgumentTypeError(f"{text!r}; one of {', '.join(CHARTS)} is expected")
    return text


def _chart_words(context: Context) -> suggest.Words:
    return {"axes": "over the versions", "harm": "by category", "search": "the merges that were tried"}


def plot(context: Context, args: argparse.Namespace) -> Answer:
    """Writes charts of the versions as PNG or SVG."""
    from daemon.figures import image
    from state import durable

    names: Sequence[str] = list(dict.fromkeys(args.charts)) or CHARTS
    form = _form(args.format, args.out, names)
    with context.store() as store:
        charts = {name: _chart(store, name, args) for name in names}
    drawn = [chart for chart in charts.values() if chart is not None]
    notes = tuple(_NOTHING[name].format(ref=args.ref) for name, chart in charts.items() if chart is None)
    if not drawn:
        raise CommandError(exitcodes.NOT_FOUND, "; ".join(notes), "`alignd history` lists what was measured")
    targets = _targets(drawn, args.out, form)
    check_free(targets.values(), force=args.force)
    written = {targets[chart.name]: image(chart, form) for chart in drawn}
    for path, data in written.items():
        durable.write_file(path, data, 0o644)
    listed = [{"path": str(path), "num_bytes": len(data)} for path, data in written.items()]
    return Answer(listed, tuple(map(str, written)), notes=notes)


def _form(given: str | None, out: str | None, names: Sequence[str]) -> Form:
    """By the option, else by the ending of the file that is named."""
    ending = Path(out).suffix.lower().removeprefix(".") if out and not Path(out).is_dir() else ""
    if given and ending in _FORMS and given != ending:
        raise CommandError(exitcodes.USAGE, f"--format {given} does not fit {out}", "leave one of them out")
    if ending in _FORMS and len(names) > 1:
        hint = f"name one chart, as in `alignd plot {names[0]} --out {out}`, or a folder"
        raise CommandError(exitcodes.USAGE, f"{out} is one file, and {len(names)} charts are asked for", hint)
    return cast("Form", given or (ending if ending in _FORMS else _FORMS[0]))


def _chart(store: Store, name: str, args: argparse.Namespace) -> Chart | None:
    from daemon import figures, views, web_facts
    from daemon.commands_explain import version_view
    from daemon.standing import names
    from state.rows import VersionRow

    if name == "search":
        row = store.resolve(args.ref)
        return figures.search_chart(row.name, version_view(store, row)["search"])
    if name == "harm":
        found = web_facts.harm(store, None)
        return figures.harm_chart(found["versions"], found["categories"]["rows"], found["categories"]["num_left_out"])
    rows = store.ledger.newest(VersionRow, args.limit) if args.limit else store.ledger.versions()
    return figures.versions_chart(views.history_view(rows, names(store, rows)))


def _targets(charts: Sequence[Chart], out: str | None, form: Form) -> Mapping[str, Path]:
    """Where each chart goes: into a folder, or to the one file that is named."""
    path = Path(out or ".").absolute()
    is_file = path.suffix.lower() == f".{form}" and not path.is_dir()
    folder = path.parent if is_file else path
    if not folder.is_dir():
        hint = f"create it first: `mkdir -p {folder}`; a file of one chart ends in .png or .svg"
        raise CommandError(exitcodes.FAILED, f"{folder} is no folder", hint)
    return {chart.name: path if is_file else folder / f"{chart.name}.{form}" for chart in charts}


COMMANDS: Final = (
    Command(
        "plot",
        "Write charts: the axes over the versions, harm by category, a search",
        (
            "alignd plot",
            "alignd plot axes --out axes.svg",
            "alignd plot search --ref v3 --out /tmp --format svg --force",
        ),
        plot,
        (
            arg(
                "charts",
                nargs="*",
                metavar="CHART",
                type=_chart_name,
                words=_chart_words,
                help=f"{', '.join(CHARTS)} (default: all of them)",
            ),
            arg(
                "--ref",
                default="current",
                metavar="REF",
                words=suggest.versions,
                help=f"search: of the round that made this version (default: current): {SELECTORS}",
            ),
            arg(
                "--limit", type=count, default=0, metavar="N", help="axes: only the N newest versions (default: 0, all)"
            ),
            arg(
                "--out",
                metavar="PATH",
                words=suggest.files,
                help="a folder, or a file for one chart (default: this folder)",
            ),
            arg("--format", choices=_FORMS, help="png or svg (default: as --out ends, else png)"),
            arg("--force", action="store_true", help="overwrite what is there"),
        ),
    ),
)
