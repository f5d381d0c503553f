"""Gathers what `status` shows: the ledger, the service's progress file, the inbox, the disk."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from daemon.command import Context, service_pid
from daemon.replica_views import degraded_problems, replica_views
from daemon.status_view import Standing
from daemon.views import Names, measured
from state.errors import NotFoundError
from state.layout import PROGRESS_FILE
from state.remedy import remedy
from state.rows import BatchRow, RoundRow, VersionRow

if TYPE_CHECKING:
    from daemon.config import Config
    from state.store import Store

_LOOK_BACK: Final = 3


def look(context: Context, store: Store) -> Standing:
    """The standing of a service and its store, now."""
    config, config_problem = _settings(context)
    pid = service_pid(store)
    current = store.current()
    running = _first(store.ledger.rounds("running"))
    problems = [
        config_problem,
        *_pointer_problems(store, current),
        _damage_problem(context.home),
        _interrupted(running, pid),
        *_room_problems(context, config),
    ]
    queued = store.ledger.batches("queued")
    if queued and pid is None and config is not None:
        from daemon.probes import lacking  # brings what a status without a queue can do without

        problems += [f"nothing that is queued can be published: {lack}" for lack in lacking(context.home, config)]
    progress = read_progress(context.home) if pid is not None else {}
    replicas = replica_views(store, config)
    problems += degraded_problems(replicas)
    return Standing(
        current=current,
        previous=store.previous(),
        candidate=_candidate(store),
        held=store.held,
        paused=store.paused,
        running=running,
        waiting_rounds=store.ledger.rounds("queued"),
        queued=queued,
        batch_names=_running_name(store, running),
        progress=progress,
        num_waiting=_num_waiting(inbox_path(context, config)),
        num_quarantined=len(store.quarantined()),
        num_versions=store.ledger.next_number(VersionRow),
        service_pid=pid,
        free_bytes=_free_bytes(context.home),
        replicas=replicas,
        problems=[problem for problem in problems if problem] + _told_problems(progress),
        base_metrics=base_metrics(store) if current.state == "base" else {},
    )


def names(store: Store, versions: Sequence[VersionRow]) -> Names:
    """What these versions are called besides their number: batches, tags, reasons; and what the base measured."""
    tags: dict[int, list[str]] = {}
    for tag in store.ledger.tags():
        tags.setdefault(tag.version, []).append(tag.name)
    batches = store.ledger.with_keys(BatchRow, [row.batch for row in versions if row.batch])
    rounds = store.ledger.with_keys(RoundRow, [row.round for row in versions if row.round])
    return Names(
        current=store.current().id,
        batch_names={row.sha256: row.name for row in batches},
        tags=tags,
        round_reasons={row.id: row.reason for row in rounds if row.reason},
        taken_out={row.id: row.target for row in rounds if row.target is not None},
        consolidations={row.id for row in rounds if row.kind == "consolidation"},
        base_metrics=base_metrics(store),
    )


def base_metrics(store: Store) -> dict[str, Any]:
    """What the newest round that made a version measured on the base, or the newest at all; empty when none came so far."""
    rounds = store.ledger.rounds_past("evaluate", limit=_LOOK_BACK)
    rounds = sorted(rounds, key=lambda row: row.version is None)  # what was refused moves no figure of what is there
    return next(filter(None, (measured(row.artefacts, "base") for row in rounds)), {})


def read_progress(home: Path) -> dict[str, Any]:
    """What the service last said about itself; empty when it said nothing readable."""
    try:
        value = json.loads((home / PROGRESS_FILE).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def inbox_path(context: Context, config: Config | None) -> Path:
    """The watched folder."""
    return context.home / (config.inbox.path if config else "inbox")


def _settings(context: Context) -> tuple[Config | None, str]:
    from daemon.config import ConfigError

    try:
        return context.config(), ""
    except ConfigError as err:
        return None, f"{err}; `alignd config check` after mending it"


def _first(rows: list[RoundRow]) -> RoundRow | None:
    return rows[0] if rows else None


def _candidate(store: Store) -> VersionRow | None:
    try:
        return store.resolve("candidate")
    except NotFoundError:
        return None


def _running_name(store: Store, running: RoundRow | None) -> dict[str, str]:
    batch = store.ledger.batch(running.batch) if running and running.batch else None
    return {batch.sha256: batch.name} if batch else {}


def _pointer_problems(store: Store, current: VersionRow) -> list[str]:
    link = store.current_link
    points_to = link.readlink().name if link.is_symlink() else "nothing"
    problems = []
    if points_to != current.name:
        problems.append(f"{link} points to {points_to} and not to {current.name}; {remedy(store, link)}")
    if not store.is_materialized(current.id):
        folder = store.model_path(current.id)
        problems.append(f"the model folder of {current.name} is missing; {remedy(store, folder)}")
    return problems


def _damage_problem(home: Path) -> str:
    """What the last check of the store found; a check that finds nothing takes it back."""
    from state import verified

    last = verified.last(home)
    return f"{last.in_short()}; {last.findings[0].remedy}" if last and last.findings else ""


def _interrupted(running: RoundRow | None, pid: int | None) -> str:
    if running is None or pid is not None:
        return ""
    return f"{running.id} was interrupted; it goes on when the service starts"


def _room_problems(context: Context, config: Config | None) -> list[str]:
    problems = []
    inbox = inbox_path(context, config)
    if not inbox.is_dir():
        problems.append(f"{inbox} is missing; nothing can be dropped")
    free, floor = _free_bytes(context.home), config.inbox.min_free_bytes if config else 0
    if free is not None and free < floor:
        problems.append(f"{free} bytes of disk are free, below inbox.min_free_bytes ({floor}); nothing more is claimed")
    return problems


def _free_bytes(home: Path) -> int | None:
    from state.durable import free_bytes

    try:
        return free_bytes(home)
    except OSError:
        return None


def _num_waiting(inbox: Path) -> int:
    from daemon.arrival import is_ignored, marker_of

    try:
        names = {entry.name for entry in inbox.iterdir()}
    except OSError:
        return 0
    return sum(1 for name in names if not is_ignored(name) and not marker_of(name, names))


def _told_problems(progress: dict[str, Any]) -> list[str]:
    inbox = progress.get("inbox")
    told = inbox.get("problems") if isinstance(inbox, dict) else None
    return [f"inbox: {problem}" for problem in told] if isinstance(told, list) else []
