"""Log lines: how they look, and the names of everything that is ever logged.

Nothing else configures structlog. Facts are keys with units; batch text is never one of them.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Mapping, MutableMapping
from typing import Any, Final, Literal, TextIO

import structlog

Format = Literal["auto", "json", "console"]

SERVICE_STARTED: Final = "service_started"
"""The service is ready."""
SERVICE_STOPPED: Final = "service_stopped"
"""The service ended in an orderly way."""
SERVICE_RECOVERED: Final = "service_recovered"
"""What a crash or a fault of the disk had left half done was finished or swept."""
STORE_UPGRADED: Final = "store_upgraded"
"""The store of an older alignd was brought up to date; a copy of its ledger lies beside it."""
SERVICE_FAILED: Final = "service_failed"
"""The service cannot go on, or a part of it cannot until the disk or the ledger is mended."""
CONFIG_RELOADED: Final = "config_reloaded"
"""service.toml was read again."""
CONFIG_REFUSED: Final = "config_refused"
"""service.toml was not read again: it cannot be used. The old settings stay."""
WATCHER_STARTED: Final = "watcher_started"
"""The inbox is watched."""
WATCHER_LOST: Final = "watcher_lost"
"""The watcher ended by itself and is started again; the inbox is rescanned."""
TIMER_FAILED: Final = "timer_failed"
"""A timer's job failed or came too late."""
LIBRARY_WARNED: Final = "library_warned"
"""A library or Python warned; the words are left out where they may hold data."""
INBOX_RECREATED: Final = "inbox_recreated"
"""The inbox was gone and was made again."""
INBOX_PROBLEM_FOUND: Final = "inbox_problem_found"
"""A drop cannot be taken as it lies there."""
BATCH_SEEN: Final = "batch_seen"
"""A drop is in the inbox and is waited for until it is whole."""
BATCH_CLAIMED: Final = "batch_claimed"
"""A drop was taken in as a new batch."""
BATCH_RETURNED: Final = "batch_returned"
"""A batch that was set aside came back."""
BATCH_DUPLICATED: Final = "batch_duplicated"
"""A drop with known content was taken in and not queued again."""
BATCH_ACCEPTED: Final = "batch_accepted"
"""A batch was parsed and screened, and is queued."""
BATCH_QUARANTINED: Final = "batch_quarantined"
"""A batch or a drop cannot be used; the reason lies beside it."""
CLAIMING_STOPPED: Final = "claiming_stopped"
"""Nothing is claimed: the disk is full, or the inbox or the store cannot be used."""
CLAIMING_RESUMED: Final = "claiming_resumed"
"""Claiming goes on."""
ROUND_STARTED: Final = "round_started"
"""A round began."""
ROUND_RESUMED: Final = "round_resumed"
"""An interrupted round goes on after its last finished step."""
ROUND_RESTARTED: Final = "round_restarted"
"""A round began anew with its first step."""
ROUND_HELD_BACK: Final = "round_held_back"
"""A round does not start or go on, and why."""
STEP_FINISHED: Final = "step_finished"
"""A step of a worker is done."""
ROUND_REJECTED: Final = "round_rejected"
"""The gates said no."""
ROUND_FAILED: Final = "round_failed"
"""A round failed; it is tried again or given up."""
ROUND_ABANDONED: Final = "round_abandoned"
"""A round was ended because something else happened: a rollback, an abort."""
VERSION_COMMITTED: Final = "version_committed"
"""A version is in the store."""
VERSION_PUBLISHED: Final = "version_published"
"""A version is in service."""
VERSION_HELD_BACK: Final = "version_held_back"
"""A version waits for approval, or could not be published."""
WORKER_STARTED: Final = "worker_started"
"""A worker process began."""
WORKER_DIED: Final = "worker_died"
"""A worker ended without an outcome."""
WORKER_SILENCED: Final = "worker_silenced"
"""A worker reported nothing for too long and was ended."""
WORKER_FAILED: Final = "worker_failed"
"""A worker told of a failure."""
WORKER_BABBLED: Final = "worker_babbled"
"""A worker wrote something that is no report; the text itself is left out."""
STORE_VERIFIED: Final = "store_verified"
"""What is stored is what was written, as far as was looked."""
STORE_DAMAGED: Final = "store_damaged"
"""A check found damage."""
STORE_COLLECTED: Final = "store_collected"
"""Model folders and leftovers that are not needed were removed."""
REPLICA_SYNCED: Final = "replica_synced"
"""A replica serves the version that it was told to, and was seen to."""
REPLICA_FAILED: Final = "replica_failed"
"""A replica could not be told or looked at, or did not serve what it should."""
REPLICA_RESTORED: Final = "replica_restored"
"""A replica serves the old version again, after a hand-over that failed."""
REPLICA_DRIFTED: Final = "replica_drifted"
"""A replica serves something else than when it was last looked at; it is told again."""
METRICS_STARTED: Final = "metrics_started"
"""The metrics endpoint listens."""
METRICS_FAILED: Final = "metrics_failed"
"""The metrics endpoint cannot listen, or the file cannot be written; all else goes on."""
WEB_STARTED: Final = "web_started"
"""The page is served."""
WEB_FAILED: Final = "web_failed"
"""The page cannot be served; all else goes on."""
WEB_ANSWERED_WITH_ERROR: Final = "web_answered_with_error"
"""The page had no answer to a request."""
WEB_REFUSED: Final = "web_refused"
"""A request was refused: no token, another name, or another site."""
WEB_CHANGED: Final = "web_changed"
"""Somebody changed something by the page."""

EVENTS: Final[tuple[str, ...]] = tuple(
    value for name, value in list(globals().items()) if name.isupper() and isinstance(value, str)
)
"""Every event name, as a test freezes them; nothing is logged under another name."""

_PRIORITIES: Final = {"critical": 2, "error": 3, "warning": 4, "info": 6, "debug": 7}


def configure(stream: TextIO, *, form: Format, env: Mapping[str, str], level: int = logging.INFO) -> None:
    """Sends log lines to ``stream``: JSON for the journal or on request, else for eyes.

    Under the journal every line starts with its ``<N>`` priority. Warnings of libraries come along.
    """
    to_journal = _is_journal(stream, env)
    as_json = form == "json" or (form == "auto" and (to_journal or not stream.isatty()))
    structlog.configure(
        processors=_processors(as_json=as_json, prefix=to_journal, colors=stream.isatty() and "NO_COLOR" not in env),
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=stream),
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(handlers=[_LibraryHandler()], level=logging.WARNING, force=True)
    warnings.showwarning = _warn
    # watchdog's count of its own watches is off where a folder goes and comes again, which `Watcher.is_healthy` sees
    warnings.filterwarnings("ignore", "Callback with id .* already exists", RuntimeWarning)


def _processors(*, as_json: bool, prefix: bool, colors: bool) -> list[Any]:
    chain: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if not as_json:
        return [*chain, structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=_plain_traceback)]
    chain += [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)]
    return [_PriorityPrefix(chain)] if prefix else chain


class _PriorityPrefix:
    """Runs a chain that ends in one line and puts the sd-daemon priority before it."""

    def __init__(self, chain: list[Any]) -> None:
        self._chain = chain

    def __call__(self, logger: Any, method: str, event: MutableMapping[str, Any]) -> str:
        line: Any = event
        for processor in self._chain:
            line = processor(logger, method, line)
        return f"<{_PRIORITIES.get(method, 6)}>{line}"


def _plain_traceback(stream: TextIO, exc_info: Any) -> None:
    # structlog's pretty printers show local variables, which may hold batch text
    structlog.dev.plain_traceback(stream, exc_info)


class _LibraryHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        # the template only: its arguments may be data
        structlog.get_logger().warning(LIBRARY_WARNED, library=record.name, message=str(record.msg))


def _warn(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    # where it was said, not what: the words may hold data
    structlog.get_logger().warning(LIBRARY_WARNED, library=f"{filename}:{lineno}", message=category.__name__)


def _is_journal(stream: TextIO, env: Mapping[str, str]) -> bool:
    device, _, inode = env.get("JOURNAL_STREAM", "").partition(":")
    try:
        stat = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return (device, inode) == (str(stat.st_dev), str(stat.st_ino))
