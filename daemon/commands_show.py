"""Commands that list what there is and change nothing."""

from __future__ import annotations

import argparse
import shlex
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final, get_args

from daemon import exitcodes, judges_shown, render, views
from daemon.command import (
    Answer,
    Command,
    CommandError,
    Context,
    arg,
    count,
    instant,
    positive_count,
    service_pid,
)
from daemon.standing import look, names
from daemon.status_view import status_view
from state.errors import StoreError
from state.rows import BatchState, VersionRow, VersionState

if TYPE_CHECKING:
    from state.store import Store

BOOTED: Final = Path("/run/systemd/system")
"""There where systemd is the system's manager, as sd_booted(3) looks for it."""


def status(context: Context, args: argparse.Namespace) -> Answer:
    """Shows what is in service, what runs and what waits."""
    with context.store() as store:
        if args.watch:
            from daemon.live import watch

            watch(context, store)
            return Answer(silent=True)
        view = status_view(look(context, store))
    code = exitcodes.DEGRADED if view["problems"] else exitcodes.OK
    return Answer(view, tuple(render.status_lines(view, context.style)), code)


def history(context: Context, args: argparse.Namespace) -> Answer:
    """Lists the versions, oldest first."""
    with context.store() as store:
        rows = _wanted(store, [args.state] if args.state else [], args.since, args.limit)
        kept = views.history_view(rows, names(store, rows))
    lines = render.history_lines(kept, context.style) if kept else ["no such version"]
    return Answer(kept, tuple(lines), notes=tuple(filter(None, [judges_shown.note(kept)])))


def _wanted(store: Store, states: list[str], since: datetime | None, limit: int) -> list[VersionRow]:
    """The newest versions that `history` is asked for, in no order; of many only those are read, where that can be."""
    if since is None and limit:
        return store.ledger.newest(VersionRow, limit, states=states)
    rows = [row for row in store.ledger.versions(*states) if since is None or instant(row.created_at) >= since]
    return rows[-limit:] if limit else rows


def batches(context: Context, args: argparse.Namespace) -> Answer:
    """Lists every batch that was ever claimed, in order of arrival."""
    with context.store() as store:
        rows = store.ledger.batches(*([args.state] if args.state else []))
        versions: dict[str, list[int]] = {}
        for version in store.ledger.versions():
            versions.setdefault(version.batch or "", []).append(version.id)
        again = store.ledger.duplicates()
    kept = rows[-args.limit :] if args.limit else rows
    listed = [views.batch_view(row, versions.get(row.sha256, ()), again) for row in kept]
    nothing = f"no batch is {args.state}" if args.state else "no batch yet"
    return Answer(listed, tuple(render.batches_lines(listed, context.style)) if listed else (nothing,))


def audit(context: Context, args: argparse.Namespace) -> Answer:
    """Lists who did what, and why; or checks that the list is whole."""
    from state import audit as trail

    with context.store() as store:
        if args.verify:
            findings = trail.verify(store)
            code = exitcodes.INTEGRITY if findings else exitcodes.OK
            lines = tuple(findings) or ("every line follows from the one before",)
            return Answer({"ok": not findings, "findings": findings}, lines, code)
        rows = trail.read(store)
    listed = [views.audit_view(row) for row in (rows[-args.limit :] if args.limit else rows)]
    return Answer(listed, tuple(render.audit_lines(listed, context.style)))


def logs(context: Context, args: argparse.Namespace) -> Answer:
    """Shows the service's log, which the journal keeps."""
    import json
    import shutil
    import subprocess

    if not BOOTED.is_dir():
        raise _no_journal(context, "systemd does not run here, so there is no journal")
    if shutil.which("journalctl") is None:
        raise _no_journal(context, "journalctl is not installed")
    command = ["journalctl", "--unit", args.unit, "--lines", str(args.lines)]
    command += ["--follow"] if args.follow else ["--no-pager"]
    command += ["--output", "json"] if context.json else []
    if context.json and not args.follow:
        done = subprocess.run(command, check=False, stdout=subprocess.PIPE)
        listed = [json.loads(line) for line in done.stdout.splitlines()]
        return Answer(listed, code=exitcodes.OK if done.returncode == 0 else exitcodes.FAILED)
    code = subprocess.run(command, check=False).returncode
    return Answer(code=exitcodes.OK if code == 0 else exitcodes.FAILED, silent=True)


def _no_journal(context: Context, why: str) -> CommandError:
    """Without systemd the log is what `alignd run` writes to stderr: where that goes, if it runs."""
    what = f"{why}: the log is what `alignd run` writes to stderr"
    try:
        with context.store() as store:
            pid = service_pid(store)
        target = Path(f"/proc/{pid}/fd/2").readlink() if pid else None
    except (StoreError, OSError):
        target = None
    if target is None or not target.is_absolute():  # no service, not ours to look at, or a pipe
        return CommandError(exitcodes.FAILED, what, "`alignd run 2> alignd.log` keeps it in a file")
    hint = f"`tail -f {shlex.quote(str(target))}`" if target.is_file() else ""
    return CommandError(exitcodes.FAILED, f"{what}, here {target}", hint)


_LIMIT: Final = arg("--limit", type=count, default=0, metavar="N", help="only the N newest (default: 0, all)")

COMMANDS: Final = (
    Command(
        "status",
        "Show what is in service, what runs and what waits",
        ("alignd status", "alignd status --watch", "alignd --json status | jq .current"),
        status,
        (arg("--watch", action="store_true", help="keep showing it, live, until interrupted"),),
    ),
    Command(
        "history",
        "List the versions, oldest first",
        ("alignd history", "alignd --json history --limit 10 | jq '.[].metrics'"),
        history,
        (
            _LIMIT,
            arg(
                "--since",
                type=instant,
                metavar="TIME",
                help="only from this UTC time on, for instance 2026-01-31 or 2026-01-31T12:05",
            ),
            arg(
                "--state",
                metavar="STATE",
                choices=get_args(VersionState),
                help=f"only versions in this state: {', '.join(get_args(VersionState))}",
            ),
        ),
        aliases=("log",),
    ),
    Command(
        "batches",
        "List the batches, in order of arrival",
        ("alignd batches", "alignd batches --state rejected"),
        batches,
        (
            _LIMIT,
            arg(
                "--state",
                metavar="STATE",
                choices=get_args(BatchState),
                help=f"only batches in this state: {', '.join(get_args(BatchState))}",
            ),
        ),
    ),
    Command(
        "audit",
        "List who did what and why, or check that the list is whole",
        ("alignd audit --limit 20", "alignd audit --verify"),
        audit,
        (arg("--verify", action="store_true", help="check the chain instead; exit code 6 if it is broken"), _LIMIT),
    ),
    Command(
        "logs",
        "Show the service's log, which the journal keeps, or say where it is",
        ("alignd logs", "alignd logs -f", "alignd --json logs | jq '.[].MESSAGE'"),
        logs,
        (
            arg("-f", "--follow", action="store_true", help="keep showing what comes; with --json one object a line"),
            arg("--lines", type=positive_count, default=50, metavar="N", help="the N newest lines (default: 50)"),
            arg("--unit", default="alignd", metavar="UNIT", help="the systemd unit (default: alignd)"),
        ),
        needs_home=False,
    ),
)
