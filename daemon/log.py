"""Log lines: how they look, and the names of everything that is ever logged.

Nothing else configures structlog. Facts are keys with units; batch text is never one of them.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, MutableMapping
from typing import Any, Final, Literal, TextIO

import structlog

Format = Literal["auto", "json", "console"]

SERVICE_STARTED: Final = "service_started"
SERVICE_STOPPED: Final = "service_stopped"
SERVICE_RECOVERED: Final = "service_recovered"
SERVICE_FAILED: Final = "service_failed"
CONFIG_RELOADED: Final = "config_reloaded"
CONFIG_REFUSED: Final = "config_refused"
WATCHER_STARTED: Final = "watcher_started"
WATCHER_LOST: Final = "watcher_lost"
TIMER_FAILED: Final = "timer_failed"
LIBRARY_WARNED: Final = "library_warned"
INBOX_RECREATED: Final = "inbox_recreated"
INBOX_PROBLEM_FOUND: Final = "inbox_problem_found"
BATCH_SEEN: Final = "batch_seen"
BATCH_CLAIMED: Final = "batch_claimed"
BATCH_RETURNED: Final = "batch_returned"
BATCH_DUPLICATED: Final = "batch_duplicated"
BATCH_ACCEPTED: Final = "batch_accepted"
BATCH_QUARANTINED: Final = "batch_quarantined"
CLAIMING_STOPPED: Final = "claiming_stopped"
CLAIMING_RESUMED: Final = "claiming_resumed"
ROUND_STARTED: Final = "round_started"
ROUND_RESUMED: Final = "round_resumed"
ROUND_RESTARTED: Final = "round_restarted"
ROUND_HELD_BACK: Final = "round_held_back"
STEP_FINISHED: Final = "step_finished"
ROUND_REJECTED: Final = "round_rejected"
ROUND_FAILED: Final = "round_failed"
ROUND_ABANDONED: Final = "round_abandoned"
VERSION_COMMITTED: Final = "version_committed"
VERSION_PUBLISHED: Final = "version_published"
VERSION_HELD_BACK: Final = "version_held_back"
WORKER_STARTED: Final = "worker_started"
WORKER_DIED: Final = "worker_died"
WORKER_SILENCED: Final = "worker_silenced"
WORKER_FAILED: Final = "worker_failed"
WORKER_BABBLED: Final = "worker_babbled"
STORE_VERIFIED: Final = "store_verified"
STORE_DAMAGED: Final = "store_damaged"
STORE_COLLECTED: Final = "store_collected"
REPLICA_SYNCED: Final = "replica_synced"
REPLICA_FAILED: Final = "replica_failed"
REPLICA_RESTORED: Final = "replica_restored"
REPLICA_DRIFTED: Final = "replica_drifted"
METRICS_STARTED: Final = "metrics_started"
METRICS_FAILED: Final = "metrics_failed"

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


def _is_journal(stream: TextIO, env: Mapping[str, str]) -> bool:
    device, _, inode = env.get("JOURNAL_STREAM", "").partition(":")
    try:
        stat = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return (device, inode) == (str(stat.st_dev), str(stat.st_ino))
