"""Commands that ask for a round, end one, or give a batch another. None of them needs a running service."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from daemon import exitcodes, suggest
from daemon.command import SELECTORS, Answer, Command, CommandError, Context, arg, service_pid, utc_now
from daemon.terminal import printable
from daemon.views import batch_view, round_view, version_name
from state.rows import RoundRow

if TYPE_CHECKING:
    from state.store import Store

ABORTED: Final = "aborted"


def revert(context: Context, args: argparse.Namespace) -> Answer:
    """Queues the round that takes one version's patch out, or that learns all other batches anew."""
    with context.store() as store:
        row = store.request_revert(args.ref, is_anew=args.anew, actor=context.actor, reason=args.reason, now=utc_now())
        is_anew = row.kind == "consolidation"
        notes = [*_without_service(store), *(() if is_anew else _resting_on(store, row))]
    others = "learns all other batches anew, together" if is_anew else "merges the other rounds again"
    told = f"{row.id} is queued: it takes {version_name(row.target)} out and {others}"
    return Answer(round_view(row), (told, _where_told(row)), notes=tuple(notes))


def consolidate(context: Context, args: argparse.Namespace) -> Answer:
    """Queues the round that learns all batches anew, together."""
    with context.store() as store:
        row = store.request_consolidation(actor=context.actor, reason=args.reason, now=utc_now())
        notes = tuple(_without_service(store))
    told = f"{row.id} is queued: it learns all batches of {version_name(row.parent)} anew, together"
    return Answer(round_view(row), (told, _where_told(row)), notes=notes)


def _where_told(row: RoundRow) -> str:
    return f"`alignd show {row.id}` tells what comes of it"


def _without_service(store: Store) -> Iterator[str]:
    if service_pid(store) is None:
        yield "no service is running; `alignd run` does the round"


def _resting_on(store: Store, asked: RoundRow) -> Iterator[str]:
    """Which later rounds changed nothing since the target had mended their batches, and how to learn those without it."""
    target = store.version(asked.target or 0)
    later = [row for row in store.lineage(asked.parent) if row.id > target.id and row.touched_fraction == 0]
    batches = {row.name: store.ledger.batch(row.batch) for row in later if row.batch}
    resting = [name for name, batch in batches.items() if batch is not None and batch.state == "published"]
    if target.touched_fraction == 0 or not resting:
        return
    yield (
        f"{', '.join(resting)} found nothing to change, perhaps since {target.name} had mended what was dropped: then that "
        f"harm is back without it, and the gates stop the revert. `alignd revert {target.name} --anew` learns them again"
    )


def abort(context: Context, args: argparse.Namespace) -> Answer:
    """Ends the running round; the service ends its worker when it sees that."""
    with context.store() as store:
        running = store.ledger.rounds("running")
        if not running:
            raise CommandError(exitcodes.NOT_FOUND, "no round is running", "`alignd status` shows what is")
        row = running[0]
        # The batch counts as rejected: queued again, it would start over at once.
        ended = store.end_round(
            row.id,
            ABORTED,
            reason=args.reason,
            now=utc_now(),
            actor=context.actor,
            batch_state="rejected" if row.batch else None,
        )
        if ended.state != ABORTED:
            raise _ended_before(ended)
        if service_pid(store) is None:
            store.clear_scratch(row.id)
    hint = f"; `alignd retry {row.batch[:12]}` tries the batch again" if row.batch else ""
    return Answer(round_view(ended), (f"{row.id} is aborted{hint}",))


def _ended_before(row: RoundRow) -> CommandError:
    """A round that came to its end between the look at it and the abort."""
    if row.version is None:
        return CommandError(exitcodes.REFUSED, f"{row.id} has just ended: {row.state}", f"`alignd show {row.id}`")
    made = version_name(row.version)
    is_published = row.state == "published"
    hint = "`alignd rollback` goes back" if is_published else f"`alignd reject {made}` turns it down"
    return CommandError(exitcodes.REFUSED, f"{row.id} has just ended: {made} is {row.state}", hint)


def retry(context: Context, args: argparse.Namespace) -> Answer:
    """Queues a batch again."""
    from daemon.submit import waits_for

    with context.store() as store:
        found = store.find_batch(args.batch)
        row = store.retry(found.sha256, actor=context.actor, now=utc_now())
        person = waits_for(store)
    return Answer(
        batch_view(row),
        (f"{printable(row.name)} ({row.sha256[:12]}) is queued again",),
        notes=(f"it waits: {printable(person)}",) if person else (),
    )


COMMANDS: Final = (
    Command(
        "revert",
        "Take one version out: merge the others again, or learn them anew",
        ("alignd revert v2", 'alignd revert v2 --reason "the batch was mislabelled"', "alignd revert v1 --anew"),
        revert,
        (
            arg("ref", metavar="REF", words=suggest.versions, help=f"a version: {SELECTORS}"),
            arg(
                "--anew",
                action="store_true",
                help="train: learn all other batches anew, together, as is done in any case once its batch was learnt so",
            ),
            arg("--reason", default="reverted by hand", help="why, for the audit"),
        ),
    ),
    Command(
        "consolidate",
        "Learn all batches anew together, in place of one after another",
        ("alignd consolidate", 'alignd consolidate --reason "before the audit"'),
        consolidate,
        (arg("--reason", default="asked for by hand", help="why, for the audit"),),
    ),
    Command(
        "abort",
        "End the running round; nothing of it is published",
        ("alignd abort", 'alignd abort --reason "wrong file"'),
        abort,
        (arg("--reason", default="aborted by hand", help="why, for the audit"),),
    ),
    Command(
        "retry",
        "Queue a batch again that was rejected, quarantined or rolled back",
        ("alignd retry 3f9a12bc", "alignd retry drop-2026-01-31.jsonl"),
        retry,
        (arg("batch", metavar="BATCH", words=suggest.retriable, help="its name, its sha256, or the start of that"),),
    ),
)
