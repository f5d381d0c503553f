"""Commands that decide what is in service, and whether anything new comes. None of them needs a running service."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

from daemon import suggest
from daemon.command import SELECTORS, Answer, Command, Context, arg, utc_now
from daemon.terminal import printable
from daemon.views import View
from state.rows import VersionRow

if TYPE_CHECKING:
    from state.store import Store


def rollback(context: Context, args: argparse.Namespace) -> Answer:
    """Makes an earlier version current and holds there; needs neither the service nor service.toml."""
    with context.store() as store:
        before = store.current()
        check = _reader(store) if args.check else lambda target: None
        after = store.rollback(args.ref, reason=args.reason, actor=context.actor, now=utc_now(), check=check)
        behind = _left_behind(store, before, after)
        blocked = [row.name for row in behind]
        replicas, notes = _tell_replicas(context, store, before, after)
        notes = (*notes, *_same_weights(store, before, after, behind))
    data = {
        "before": before.name,
        "after": after.name,
        "blocked": blocked,
        "held": True,
        "reason": args.reason,
        "replicas": replicas,
    }
    paint = context.style.paint
    return Answer(
        data,
        (
            f"{paint(before.name, 'bad')} -> {paint(after.name, 'good')}",
            f"blocked: {', '.join(blocked) or 'nothing'}",
            "held: nothing is published until `alignd resume`",
        ),
        notes=notes,
    )


def _reader(store: Store) -> Callable[[VersionRow], None]:
    from state.verify import check_version  # brings numpy

    return partial(check_version, store)


def _tell_replicas(
    context: Context, store: Store, before: VersionRow, after: VersionRow
) -> tuple[list[View], tuple[str, ...]]:
    """Where no service runs that would do it. The switch is done by then, and no engine can undo it."""
    from daemon.serving_pass import after_switch

    if before.id == after.id:
        return [], ()
    return after_switch(context, store)


def _left_behind(store: Store, before: VersionRow, after: VersionRow) -> list[VersionRow]:
    """What a rollback blocked: the version left and all that it builds on and the target does not, newest first."""
    kept = {row.id for row in store.lineage(after.id)}
    return [row for row in reversed(store.lineage(before.id)) if row.id not in kept]


def _same_weights(store: Store, before: VersionRow, after: VersionRow, behind: Sequence[VersionRow]) -> Iterator[str]:
    """Says that going back changed no weight, and where to go for others, as far as the ledger knows."""
    if not behind or any(row.touched_fraction != 0 for row in behind):
        return
    other = _nearest_that_differs(store.lineage(after.id))
    hint = f"; `alignd rollback {other.name}` goes to the nearest one that differs" if other else ""
    yield f"{after.name} has the weights of {before.name}, whose round found nothing to change{hint}"


def _nearest_that_differs(line: Sequence[VersionRow]) -> VersionRow | None:
    """The newest version with other weights than the last of a line; None where it is blocked, or there is none."""
    for parent, row in reversed(list(pairwise(line))):
        if row.touched_fraction != 0:
            return None if parent.blocked else parent
    return None


def promote(context: Context, args: argparse.Namespace) -> Answer:
    """Makes any published version current."""
    with context.store() as store:
        before = store.current()
        had_folder = store.is_materialized(before.id)
        after = store.promote(args.ref, force=args.force, reason=args.reason, actor=context.actor, now=utc_now())
        answer = _switched(context, store, before, after)
        held = store.held
        still = [f"still held ({printable(held.reason)}): nothing is published until `alignd resume`"] if held else []
        answer = replace(answer, notes=(*answer.notes, *_blocked_below(store, after), *still))
    if after.id != before.id or had_folder:
        return answer
    rebuilt = f"its model folder was missing and is rebuilt from v0 and the overlays: {store.model_path(after.id)}"
    return replace(answer, notes=(*answer.notes, rebuilt))


def _blocked_below(store: Store, row: VersionRow) -> Iterator[str]:
    """What a forced promotion brought back besides the version itself."""
    line = store.lineage(row.id)
    rounds = [store.ledger.round(version.round) for version in line if version.round]
    taken_out = {round_.target for round_ in rounds if round_ is not None}
    blocked = [version.name for version in line[:-1] if version.blocked and version.id not in taken_out]
    if blocked:
        yield (
            f"{row.name} holds what {', '.join(blocked)} learnt too, blocked or not: no `alignd retry` is needed for that, "
            "and `alignd revert` takes one out"
        )


def approve(context: Context, args: argparse.Namespace) -> Answer:
    """Publishes the version that waits for it."""
    with context.store() as store:
        before = store.current()
        after = store.approve(args.ref, actor=context.actor, now=utc_now(), reason=args.reason)
        return _switched(context, store, before, after)


def _switched(context: Context, store: Store, before: VersionRow, after: VersionRow) -> Answer:
    name = context.style.paint(after.name, "good")
    shown = f"{name} is in service already" if after.id == before.id else f"{before.name} -> {name}"
    replicas, notes = _tell_replicas(context, store, before, after)
    return Answer({"before": before.name, "after": after.name, "replicas": replicas}, (shown,), notes=notes)


def reject(context: Context, args: argparse.Namespace) -> Answer:
    """Says no to the version that waits for approval."""
    with context.store() as store:
        row = store.reject(args.ref, actor=context.actor, now=utc_now(), reason=args.reason)
        others = [version.name for version in store.ledger.versions("awaiting_approval")]
    notes = (f"still to be decided: {', '.join(others)}",) if others else ()
    return Answer({"id": row.name, "state": row.state}, (f"{row.name} is rejected",), notes=notes)


def pause(context: Context, args: argparse.Namespace) -> Answer:
    """Lets no further round start."""
    with context.store() as store:
        store.pause(reason=args.reason, actor=context.actor, now=utc_now())
    text = "paused: no round starts until `alignd resume`; one that runs goes on (`alignd abort` ends it)"
    return Answer({"paused": True, "reason": args.reason}, (text,))


def resume(context: Context, args: argparse.Namespace) -> Answer:
    """Lifts hold and pause."""
    with context.store() as store:
        held, paused = store.held, store.paused
        if held or paused:
            store.resume(actor=context.actor, now=utc_now(), reason=args.reason)
        current = store.current().name
    lifted = [name for name, row in (("hold", held), ("pause", paused)) if row]
    text = f"{' and '.join(lifted)} lifted" if lifted else "nothing was held or paused"
    return Answer({"lifted": lifted, "current": current}, (f"{text}; {current} is current",))


_REF: Final[dict[str, Any]] = {"metavar": "REF", "words": suggest.versions, "help": f"a version: {SELECTORS}"}


_CANDIDATE: Final = arg(
    "ref", nargs="?", default="candidate", metavar="REF", words=suggest.candidates, help="default: candidate"
)
COMMANDS: Final = (
    Command(
        "rollback",
        "Go back to an earlier version and hold there",
        (
            "alignd rollback",
            "alignd rollback --check",
            'alignd rollback v3 --reason "answers about medicine got worse"',
        ),
        rollback,
        (
            arg(
                "ref",
                nargs="?",
                metavar="REF",
                words=suggest.versions,
                help="where to go (default: previous, the version that was last in service before this one and is not blocked; "
                f"after a promote that may be a later one): {SELECTORS}",
            ),
            arg(
                "--check",
                action="store_true",
                help="read every file of it first, and stay where something is not what was written; takes as long as that",
            ),
            arg("--reason", default="rolled back by hand", help="why, for the audit and the hold"),
        ),
    ),
    Command(
        "promote",
        "Make any published version current",
        ('alignd promote v4 --reason "checked by hand"', 'alignd promote @good --force --reason "hotfix"'),
        promote,
        (
            arg("ref", **_REF),
            arg("--force", action="store_true", help="also a blocked or rejected one, and while held"),
            arg("--reason", required=True, help="why, for the audit"),
        ),
    ),
    Command(
        "approve",
        "Publish the version that waits for approval",
        ("alignd approve", 'alignd approve v5 --reason "read the samples"'),
        approve,
        (
            _CANDIDATE,
            arg("--reason", default="", help="why, for the audit"),
        ),
    ),
    Command(
        "reject",
        "Say no to the version that waits for approval",
        ('alignd reject --reason "too terse"', 'alignd reject v5 --reason "wrong batch"'),
        reject,
        (
            _CANDIDATE,
            arg("--reason", default="rejected by hand", help="why, for the audit"),
        ),
    ),
    Command(
        "pause",
        "Let no further round start",
        ("alignd pause", 'alignd pause --reason "the GPU is needed until noon"'),
        pause,
        (arg("--reason", default="paused by hand", help="why, for the audit"),),
    ),
    Command(
        "resume",
        "Lift a hold and a pause",
        ("alignd resume", 'alignd resume --reason "batch 3 is withdrawn"'),
        resume,
        (arg("--reason", default="", help="why, for the audit"),),
    ),
)
