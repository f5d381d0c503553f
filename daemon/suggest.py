"""What a word of the command line may be: names of this home, each with a few words, for completions.

Each function takes a context. Nothing here is heavy: a shell asks at every press of Tab.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from daemon.command import Context
from daemon.views import version_name
from state.core import UNNAMED
from state.errors import NotFoundError
from state.quarantine import Quarantined
from state.queue import RETRY_STATES
from state.rows import BatchRow, VersionRow
from state.store import Store

Words = Mapping[str, str]
"""A word -> what it is."""

MAX_ROWS: Final = 200
"""The newest that many of a kind are offered: more would be read by nobody."""
_TYPEABLE: Final = re.compile(r"[^\W-][\w@%+=:,. -]*")
_ID_CHARS: Final = 12


def files(context: Context) -> Words:
    """Stands for files and folders, which the shell completes by itself."""
    return {}


def versions(context: Context) -> Words:
    """Selectors of versions: those of fixed name, tags, and each version."""
    with context.store() as store:
        return _selectors(store) | _versions(store)


def candidates(context: Context) -> Words:
    """Versions that wait for approval."""
    with context.store() as store:
        return {row.name: row.state for row in store.ledger.versions("awaiting_approval")}


def tags(context: Context) -> Words:
    """The names that versions were given."""
    with context.store() as store:
        return {tag.name: f"v{tag.version}" for tag in store.ledger.tags()}


def retriable(context: Context) -> Words:
    """Batches that can be tried again, by name and id."""
    with context.store() as store:
        return _batches(store.ledger.newest(BatchRow, MAX_ROWS, states=RETRY_STATES))


def entries(context: Context) -> Words:
    """What lies in quarantine, by name and id."""
    with context.store() as store:
        return _entries(store.quarantined())


def everything(context: Context) -> Words:
    """All that `show` explains: versions, rounds, batches, what lies in quarantine."""
    with context.store() as store:
        rounds = {row.id: row.state for row in store.ledger.newest_rounds(MAX_ROWS)}
        batches = _batches(store.ledger.newest(BatchRow, MAX_ROWS))
        return _selectors(store) | _versions(store) | rounds | _entries(store.quarantined()) | batches


def _selectors(store: Store) -> dict[str, str]:
    found = {}
    for name in ("current", *UNNAMED, "base"):
        try:
            found[name] = store.resolve(name).name
        except NotFoundError:
            continue
    return found | {f"@{tag.name}": version_name(tag.version) or "" for tag in store.ledger.tags()}


def _versions(store: Store) -> dict[str, str]:
    return {row.name: row.state for row in store.ledger.newest(VersionRow, MAX_ROWS)}


def _batches(rows: list[BatchRow]) -> dict[str, str]:
    named = {row.name: row.state for row in rows if _TYPEABLE.fullmatch(row.name)}
    return named | {row.sha256[:_ID_CHARS]: f"{row.name}, {row.state}" for row in rows}


def _entries(found: list[Quarantined]) -> dict[str, str]:
    named = {entry.name: "quarantined" for entry in found if _TYPEABLE.fullmatch(entry.name)}
    return named | {entry.id[:_ID_CHARS]: f"{entry.name}, quarantined" for entry in found}
