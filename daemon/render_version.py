"""One version explained in a screen or two. Pure: a view and a style in, lines out; `--json` and `report` have the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from daemon.render import View, flags, short, state_text
from daemon.render_made import made_sections
from daemon.render_show import gates_lines, narrowed, section, title_of
from daemon.terminal import NOTHING, Style, fields, number, percent, printable, table, when, width, wrapped
from daemon.views import same_weights_as


def version_lines(view: View, style: Style) -> list[str]:
    """What a version is, why it is in service, what the gates measured, and how it was made."""
    head = _title_lines(view, style)
    head += fields(
        [
            ("made", made_text(view)),
            ("lineage", " <- ".join(view["lineage"])),
            ("source", source_text(view["source"])),
            ("why", printable("; ".join(view["why"]))),
            ("judge", printable(view["judge"])),
            ("touched", touched_text(view)),
            ("model", str(view["model"] or "collected; rebuilt when it is asked for")),
        ],
        style,
    )
    narrow = narrowed(style)
    sections = [
        (axes_title(view["axes"]), axes_lines(view, narrow)),
        ("as measured where it was made", source_lines(view["source"], narrow)),
        (gates_title(view["gates"]), gates_lines(view["gates"], narrow)),
        *made_sections(view, narrow),
    ]
    lines = head + [line for title, found in sections for line in section(title, found, style)]
    return [*lines, "", *fields([("more", more_text(view))], style)]


def _title_lines(view: View, style: Style) -> list[str]:
    notes = " ".join(filter(None, ["in service" if view["current"] else "", flags(view)]))
    title = f"{style.paint(view['id'], 'bold')}  {state_text(view['state'], style)}"
    if width(f"{title}  {notes}") <= style.columns:
        return [f"{title}  {notes}".rstrip()]
    return [title, *wrapped(f"    {notes}", style, indent=4)]


def made_text(view: View) -> str:
    """When, by which round, from which batch."""
    words = [when(view["created"])]
    words += [f"by {view['round']}"] if view["round"] else []
    words += [f"from {printable(view['batch_name'] or '')} ({short(view['batch'])})"] if view["batch"] else []
    return " ".join(words)


def source_text(source: View | None) -> str:
    """Where an import came from; empty for what was made here."""
    if source is None:
        return ""
    made = f", made {when(source['created'])}" if source["created"] else ""
    return printable(f"{source['id']} from {source['path']}{made}")


def source_lines(source: View | None, style: Style) -> list[str]:
    """The axes of an import as the other home measured them, on prompts of its own."""
    found = [axis for axis in source["axes"] if axis["value"] is not None] if source else []
    rows = [[printable(title_of(axis["axis"])), share_text(axis), number(axis["num_samples"])] for axis in found]
    return table(["AXIS", "VALUE", "SAMPLES"], rows, style, right="SAMPLES") if rows else []


def touched_text(view: View) -> str:
    """How much of the model differs from the parent, in all and by layer."""
    found = view["touched"]
    if not found:
        twin = same_weights_as(view)
        return f"nothing: the weights are those of {twin}" if twin else ""
    spread = " / ".join(f"{found[key]:,.0f}" for key in ("min", "median", "max"))
    share = percent(view["touched_fraction"])
    return f"{share}, {found['num_entries']:,} entries in {found['num_tensors']} tensors; min / median / max of a layer {spread}"


def axes_title(axes: Sequence[View]) -> str:
    """Names the intervals where there are any."""
    shares = [share for axis in axes for share in axis.values() if isinstance(share, Mapping)]
    return "axes, with 95 % intervals" if any(share["low"] is not None for share in shares) else "axes"


def axes_lines(view: View, style: Style) -> list[str]:
    """The three axes of v0, the parent and this version; v0 is named once where it is the parent."""
    columns = {"v0": "V0", "parent": f"{view['parent']} (PARENT)".upper(), "this": view["id"].upper()}
    shown = [who for who in columns if all(who in axis for axis in view["axes"])]
    if view["parent"] == "v0":
        shown.remove("parent")
    rows = [[title_of(axis["axis"]), *(share_text(axis[who]) for who in shown)] for axis in view["axes"]]
    if all(axis[who]["value"] is None for axis in view["axes"] for who in shown):
        return []
    return table(["AXIS", *(columns[who] for who in shown)], rows, style)


def share_text(share: Mapping[str, float | None]) -> str:
    """A rate with its interval in whole percent, so that three fit beside each other: `5.7% (2 .. 19)`."""
    if share["low"] is None or share["high"] is None:
        return percent(share["value"])
    return f"{percent(share['value'])} ({share['low'] * 100:.0f} .. {share['high'] * 100:.0f})"


def gates_title(gates: Sequence[View]) -> str:
    """How many gates passed, in a title."""
    required = [gate for gate in gates if gate["class"] == "required"]
    return (
        f"gates: {_num_passed(gates)} of {len(gates)} passed, {_num_passed(required)} of {len(required)} required ones"
    )


def _num_passed(gates: Sequence[View]) -> int:
    return sum(gate["verdict"] == "pass" for gate in gates)


def more_text(view: View) -> str:
    """Where the rest is."""
    commands = [f"alignd report {view['id']}"]
    commands += [f"alignd diff {view['parent']} {view['id']}"] if view["parent"] else []
    return ", ".join(f"`{command}`" for command in [*commands, f"alignd --json show {view['id']}"]) or NOTHING
