"""From one schema of the ledger to the next: one step a number, in order. What is here is never changed again.

A step knows the tables as they were then, so it names their columns itself and uses nothing of `state.rows`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from state.errors import StoreCorruptError
from state.schema import seal


class Run(Protocol):
    """Runs one statement in the transaction of the upgrade and gives its rows."""

    def __call__(self, sql: str, parameters: Sequence[Any] = (), /) -> list[tuple[Any, ...]]: ...


@dataclass(frozen=True)
class Step:
    """How a ledger of schema `to - 1` becomes one of schema `to`."""

    to: int
    what: str
    """What is different then, for whoever upgrades."""
    apply: Callable[[Run, Path], None]
    """Changes the tables, inside a transaction that somebody else commits; the path is for its messages."""


def check_seals(run: Run, path: Path, table: str, columns: Sequence[str]) -> None:
    """Refuse a table of which a row is not what was written: a new seal over it would hide that for good.

    Raises:
        StoreCorruptError: names the first such row.
    """
    for *values, written in run(f"SELECT {_quoted(columns)}, seal FROM {table}"):
        if seal(values) != written:
            raise StoreCorruptError(
                f"{path}: table {table}: row {values[0]} is not what was written; nothing was changed",
                "restore the ledger from a backup, then upgrade that",
            )


_VERSIONS_2 = (
    "id", "parent", "state", "batch", "round", "created_at", "metrics", "touched_fraction", "blocked", "pinned",
    "overlay", "patch", "record",
)  # fmt: skip
_VERSIONS_1 = (*_VERSIONS_2[:10], "confirmed", *_VERSIONS_2[10:])


_VERSIONS_TABLE_2 = """CREATE TABLE versions_2 (
    id INTEGER PRIMARY KEY, parent INTEGER REFERENCES versions, state TEXT NOT NULL,
    batch TEXT REFERENCES batches, "round" TEXT REFERENCES rounds DEFERRABLE INITIALLY DEFERRED,
    created_at TEXT NOT NULL, metrics TEXT NOT NULL, touched_fraction REAL NOT NULL,
    blocked INTEGER NOT NULL, pinned INTEGER NOT NULL, overlay TEXT, patch TEXT, record TEXT NOT NULL, seal TEXT NOT NULL)"""


def _without_confirmed(run: Run, path: Path) -> None:
    # the table is made anew: SQLite drops a column since 3.35 only
    check_seals(run, path, "versions", _VERSIONS_1)
    run(_VERSIONS_TABLE_2)
    for values in run(f"SELECT {_quoted(_VERSIONS_2)} FROM versions"):
        run(f"INSERT INTO versions_2 VALUES ({', '.join('?' * len(values))}, ?)", [*values, seal(list(values))])
    run("DROP TABLE versions")
    run("ALTER TABLE versions_2 RENAME TO versions")
    run("CREATE INDEX versions_state ON versions (state)")


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)


STEPS: tuple[Step, ...] = (Step(2, "versions have no flag `confirmed`, which nothing ever set", _without_confirmed),)
