"""Commands that keep the store: quarantine, space, names."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Final

from daemon import exitcodes, render, suggest
from daemon.command import SELECTORS, Answer, Command, CommandError, Context, arg, count, utc_now
from daemon.terminal import printable, size, wrapped
from daemon.views import quarantined_view
from state.rows import VersionRow

if TYPE_CHECKING:
    from state.gc import Item
    from state.quarantine import Quarantined
    from state.store import Store


def quarantine_list(context: Context, args: argparse.Namespace) -> Answer:
    """Lists what could not be used, and why."""
    with context.store() as store:
        listed = [quarantined_view(entry) for entry in store.quarantined()]
    lines = tuple(render.quarantine_lines(listed, context.style)) or ("the quarantine is empty",)
    return Answer(listed, lines)


def quarantine_release(context: Context, args: argparse.Namespace) -> Answer:
    """Queues a quarantined entry again."""
    with context.store() as store:
        entry = _find_entry(store, args.entry)
        store.release(entry.id, actor=context.actor, now=utc_now())
    return Answer(quarantined_view(entry), (f"{printable(entry.name)} is released",))


def quarantine_drop(context: Context, args: argparse.Namespace) -> Answer:
    """Deletes a quarantined entry."""
    with context.store() as store:
        entry = _find_entry(store, args.entry)
        store.drop(entry.id, actor=context.actor, now=utc_now())
    return Answer(quarantined_view(entry), (f"{printable(entry.name)} is deleted",))


def _find_entry(store: Store, ref: str) -> Quarantined:
    found = store.find_entries(ref)
    if len(found) == 1:
        return found[0]
    what = f"{len(found)} quarantined entries are" if found else "no quarantined entry is"
    raise CommandError(exitcodes.NOT_FOUND, f"{what} called {ref!r}", "`alignd quarantine list` shows the ids")


def gc(context: Context, args: argparse.Namespace) -> Answer:
    """Removes what can be rebuilt or is reachable from nothing."""
    from state.gc import run

    keep = args.keep if args.keep is not None else context.config().publish.keep_materialized
    with context.store() as store:
        items = run(store, keep_materialized=keep, now=utc_now(), actor=context.actor, dry_run=args.dry_run)
    total = sum(item.num_bytes for item in items)
    keys = ("num_bytes", "shared_bytes", "reason")
    listed = [{"path": str(item.path), **{key: getattr(item, key) for key in keys}} for item in items]
    verb = "would remove" if args.dry_run else "removed"
    told = [f"{verb} {printable(str(item.path))} ({_freed_text(item)}): {item.reason}" for item in items]
    lines = [line for text in told for line in wrapped(text, context.style, indent=4)]
    lines.append(f"{verb} {size(total)} in {len(items)} item(s)" if items else "nothing to remove")
    return Answer({"dry_run": args.dry_run, "num_bytes": total, "items": listed}, tuple(lines))


def _freed_text(item: Item) -> str:
    """The space that one thing frees, and what of its files stays because something else is made of them too."""
    shared = f", and {size(item.shared_bytes)} stay: what is kept shares these files" if item.shared_bytes else ""
    return f"{size(item.num_bytes)} freed{shared}"


def pin(context: Context, args: argparse.Namespace) -> Answer:
    """Keeps a version's model folder for good."""
    with context.store() as store:
        row = store.pin(args.ref, actor=context.actor, now=utc_now())
    return _named(row, f"{row.name} is pinned")


def unpin(context: Context, args: argparse.Namespace) -> Answer:
    """Lets garbage collection have a version's model folder again."""
    with context.store() as store:
        row = store.unpin(args.ref, actor=context.actor, now=utc_now())
    return _named(row, f"{row.name} is no longer pinned")


def tag(context: Context, args: argparse.Namespace) -> Answer:
    """Gives a version a name."""
    name = args.name.removeprefix("@")
    with context.store() as store:
        try:
            row = store.tag(name, args.ref, actor=context.actor, now=utc_now())
        except ValueError as err:
            raise CommandError(exitcodes.USAGE, str(err)) from err
    return Answer({"id": row.name, "pinned": row.pinned, "tag": name}, (f"@{name} is {row.name}",))


def untag(context: Context, args: argparse.Namespace) -> Answer:
    """Takes a name away."""
    name = args.name.removeprefix("@")
    with context.store() as store:
        store.untag(name, actor=context.actor, now=utc_now())
    return Answer({"tag": name}, (f"@{name} is gone",))


def _named(row: VersionRow, text: str) -> Answer:
    return Answer({"id": row.name, "pinned": row.pinned}, (text,))


_REF: Final = arg("ref", metavar="REF", words=suggest.versions, help=f"a version: {SELECTORS}")
_ENTRY: Final = arg("entry", metavar="ENTRY", words=suggest.entries, help="its id, the start of that, or its name")

COMMANDS: Final = (
    Command(
        "quarantine list",
        "List what could not be used, and why",
        ("alignd quarantine list", "alignd --json quarantine list | jq '.[].reason'"),
        quarantine_list,
    ),
    Command(
        "quarantine release",
        "Queue a quarantined entry again",
        ("alignd quarantine release 3f9a12bc", "alignd quarantine release drop.jsonl"),
        quarantine_release,
        (_ENTRY,),
    ),
    Command(
        "quarantine drop",
        "Delete a quarantined entry for good",
        ("alignd quarantine drop 3f9a12bc", "alignd quarantine drop drop.jsonl"),
        quarantine_drop,
        (_ENTRY,),
    ),
    Command(
        "gc",
        "Remove what can be rebuilt or is reachable from nothing",
        ("alignd gc --dry-run", "alignd gc --keep 1"),
        gc,
        (
            arg("--dry-run", action="store_true", help="only list it, with reasons"),
            arg(
                "--keep",
                type=count,
                metavar="N",
                help="newest versions that keep their model folder (default: publish.keep_materialized)",
            ),
        ),
    ),
    Command(
        "pin",
        "Keep a version's model folder for good",
        ("alignd pin current", "alignd pin v3"),
        pin,
        (_REF,),
    ),
    Command(
        "unpin",
        "Let garbage collection have a version's model folder again",
        ("alignd unpin v3", "alignd unpin @good"),
        unpin,
        (_REF,),
    ),
    Command(
        "tag",
        "Give a version a name, used as @NAME; a name that is taken moves",
        ("alignd tag good current", "alignd tag release-7 v3"),
        tag,
        (arg("name", metavar="NAME", words=suggest.tags, help="the name, with or without @"), _REF),
    ),
    Command(
        "untag",
        "Take a name away",
        ("alignd untag good", "alignd untag @release-7"),
        untag,
        (arg("name", metavar="NAME", words=suggest.tags, help="the name, with or without @"),),
    ),
)
