"""Commands that run the service and feed it."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from daemon import exitcodes, render, suggest, views
from daemon.command import Answer, Command, CommandError, Context, arg, seconds, service_pid
from daemon.terminal import printable, wrapped
from daemon.views import View
from state.errors import StoreError, StoreMissingError
from state.rows import BatchRow, RoundRow

if TYPE_CHECKING:
    from daemon.submit import Fate, Submitted
    from state.store import Store


_UNSIGNED: Final = (
    "signatures are required here ([inbox] require_signature): put NAME.sig beside each drop, or use --sign KEY; what is not "
    "signed goes to the quarantine"
)
_NO_SERVICE: Final = "no service runs here: it waits in the inbox until `alignd run` takes it"
UNPUBLISHED: Final = ("rejected", "quarantined", "awaiting_approval", "failed", "aborted")
"""States of a batch or revert that made no version, or one that is not in service."""


def run(context: Context, args: argparse.Namespace) -> Answer:
    """Runs the service in the foreground."""
    from daemon import log
    from daemon.child import worker_argv
    from daemon.service import Service

    def argv(kind: str, name: str) -> list[str]:
        return worker_argv(context.home, kind, name, log_form=args.log_format, config_path=context.service_file)

    config = context.config()
    log.configure(sys.stderr, form=args.log_format, env=os.environ)
    service = Service(context.home, config, once=args.once, argv=argv, config_path=context.service_file)
    before = endings(context) if args.once else {}
    code = service.run()
    if not args.once or code not in (exitcodes.OK, exitcodes.DEGRADED):
        return Answer(code=code, silent=True)
    told = [ending for key, ending in endings(context).items() if _is_news(ending, before.get(key))]
    told += _waiting(context, service.held_back, service.waits)
    code = exitcodes.DEGRADED if any(map(_is_unpublished, told)) else code
    lines = tuple(render.endings_lines(told, context.style)) or ("nothing came to an end",)
    return Answer(told, lines, code, notes=() if told else _held_up(context))


def _held_up(context: Context) -> tuple[str, ...]:
    """Which person a next batch would wait for."""
    from daemon.submit import waits_for

    with context.store() as store:
        person = waits_for(store)
    return (f"no round starts: {printable(person)}",) if person else ()


def _is_news(ending: View, earlier: View | None) -> bool:
    """Whether something ended since; that an old duplicate's original changed is no end of the duplicate."""
    return earlier is None or (ending != earlier and ending["state"] != views.DUPLICATE)


def _is_unpublished(ending: View) -> bool:
    """Whether a drop came to another end than a published version; a duplicate's end is that of the batch it repeats."""
    if ending["state"] == views.DUPLICATE:
        return bool(ending["original_state"] != "published")
    return ending["state"] in UNPUBLISHED and bool(ending.get("wanted", True))


def _waiting(context: Context, shared: Sequence[str], own: Mapping[str, str]) -> list[View]:
    """What is left in the queue, each with the reasons why it waits; nothing where nothing is held back.

    Args:
        shared: why nothing goes on.
        own: why one batch or round does not, by its sha256 or id.
    """
    from daemon.submit import UNFINISHED

    if not shared and not own:
        return []
    with context.store() as store:
        rounds = store.ledger.rounds(*UNFINISHED)
        waiting: list[BatchRow | RoundRow] = [row for row in rounds if row.batch is None]
        waiting += store.ledger.batches(*UNFINISHED)
    told = {row.batch or row.id: own[row.id] for row in rounds if row.id in own} | dict(own)
    first = views.waiting_view(waiting[0], ())["name"] if waiting else ""
    return [views.waiting_view(row, _reasons(row, shared, told) or [f"comes after {first}"]) for row in waiting]


def _reasons(row: BatchRow | RoundRow, shared: Sequence[str], told: Mapping[str, str]) -> list[str]:
    reason = told.get(row.sha256 if isinstance(row, BatchRow) else row.id)
    return [*([reason] if reason else []), *shared]


def endings(context: Context) -> dict[str, View]:
    """What came to an end in this home so far, by key: batches, drops set aside unread, duplicates, and what was asked for."""
    from daemon.submit import UNFINISHED

    try:
        with context.store() as store:
            ended = [row for row in store.ledger.batches() if row.state not in UNFINISHED]
            versions = store.ledger.versions()
            found = [views.ending_view(row, [v.id for v in versions if v.batch == row.sha256]) for row in ended]
            found += [views.ending_view(entry) for entry in store.quarantined() if entry.batch is None]
            rounds = store.ledger.rounds()
            found += [views.request_ending_view(row) for row in rounds if row.batch is None and row.ended_at]
            duplicates = _duplicates(store)
    except StoreError:
        return {}  # `Service.run` makes a missing store, and tells of a broken one
    return {view["id"]: view for view in found} | duplicates


def _duplicates(store: Store) -> dict[str, View]:
    known = {row.sha256: row for row in store.ledger.batches()}
    return {f"duplicate {row.seq}": views.duplicate_view(row, known[row.sha256]) for row in store.ledger.duplicates()}


def submit(context: Context, args: argparse.Namespace) -> Answer:
    """Puts files or folders into the inbox; with `--wait` follows each to its end."""
    from daemon.submit import check, follow, known_state
    from daemon.submit import submit as put

    config = context.config()
    inbox = context.home / config.inbox.path
    if not inbox.is_dir():
        raise CommandError(exitcodes.FAILED, f"{inbox} is missing", "start the service or create the folder")
    for path in args.paths:  # all of them, before the first is dropped
        check(Path(path))
    sign = _signer(args.sign) if args.sign else None
    store = _store_or_none(context)
    try:
        known = known_state(store)
        drops = [put(Path(path), inbox, config.inbox, known=known, sign=sign) for path in args.paths]
        notes = (_UNSIGNED,) if config.inbox.require_signature and sign is None else ()
        if not args.wait:
            is_read = all(drop.known_as for drop in drops) or (store is not None and service_pid(store) is not None)
            return _submitted(context, drops, [], notes if is_read else (*notes, _NO_SERVICE))
        if store is None:
            raise StoreMissingError(f"{context.home} has no store", "`alignd run` makes one from service.toml")
        fates = [follow(store, drop, inbox, timeout_s=args.timeout) for drop in drops]
    finally:
        if store is not None:
            store.close()
    return _submitted(context, drops, fates, notes)


def _signer(key: str) -> Callable[[Path], bytes]:
    from daemon import signing  # brings cryptography

    return partial(signing.sign, signing.load_private_key(Path(key)))


def _store_or_none(context: Context) -> Store | None:
    try:
        return context.store()
    except StoreMissingError:
        return None


def _submitted(context: Context, drops: Sequence[Submitted], fates: Sequence[Fate], notes: tuple[str, ...]) -> Answer:
    from daemon.submit import UNFINISHED
    from state.queue import RETRY_STATES

    listed: list[dict[str, Any]] = [asdict(drop) for drop in drops]
    lines = []
    for i, drop in enumerate(drops):
        text = f"{drop.batch[:12]}  {printable(drop.name)}"
        if drop.known_as:
            was = "" if fates and drop.known_as in UNFINISHED else f" ({drop.known_as})"  # what it came to follows
            text += f"  known already, not dropped again{was}"
        if drop.known_as in RETRY_STATES:
            text += f"; `alignd retry {drop.batch[:12]}` queues it again"
        if fates:
            fate = fates[i]
            listed[i] |= {"state": fate.state, "reason": fate.reason}
            text += _fate_text(fate, drop)
        lines += wrapped(text, context.style, indent=4)
    return Answer(listed, tuple(lines), max((fate.code for fate in fates), default=exitcodes.OK), notes=notes)


def _fate_text(fate: Fate, drop: Submitted) -> str:
    """What became of a drop, without the state that the line names already."""
    state = "" if fate.state == drop.known_as else fate.state
    told = ": ".join(filter(None, (state, printable(fate.reason))))
    return f"  {told}" if told else ""


COMMANDS: Final = (
    Command(
        "run",
        "Run the service in the foreground",
        ("alignd -c /var/lib/alignd run", "alignd run --once"),
        run,
        (
            arg(
                "--once",
                action="store_true",
                help="empty the inbox, finish every round, print what came to an end and what waits, and exit: 0, or 3 if "
                "something was not published: rejected, quarantined, waiting, or a duplicate of what is not published",
            ),
            arg(
                "--log-format",
                choices=["auto", "json", "console"],
                default="auto",
                help="auto (default: console on a terminal, else json), json, console",
            ),
        ),
    ),
    Command(
        "submit",
        "Put files or folders into the inbox, each one batch",
        (
            "alignd submit harvest.jsonl",
            "alignd submit --wait --timeout 3600 monday.parquet",
            "alignd submit --sign me.pem a.csv",
        ),
        submit,
        (
            arg(
                "paths",
                nargs="+",
                metavar="PATH",
                words=suggest.files,
                help="a file, or a folder of files that is one batch",
            ),
            arg(
                "--wait",
                action="store_true",
                help="until its round ended: 0 published, 5 not published, 3 quarantined, 12 no service; 1 is for what cannot "
                "be dropped at all",
            ),
            arg(
                "--sign",
                metavar="KEY",
                words=suggest.files,
                help="sign with this Ed25519 private key (PEM); the signature goes beside the drop",
            ),
            arg("--timeout", type=seconds, metavar="S", help="wait at most this many seconds, then exit with 75"),
        ),
    ),
)
