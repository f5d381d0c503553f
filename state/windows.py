"""Reads of the ledger that hold few rows, however many there are."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from state.connection import Tables
from state.rows import BatchRow, RoundRow, VersionRow
from state.schema import KEYS, Row

_MAX_KEYS = 500
_TOP = 1 << 62


class Windows(Tables):
    """What `ledger.Ledger` has beside its reads of whole tables."""

    def newest(
        self, kind: type[Row], limit: int, *, below: int | None = None, every: int = 1, states: Sequence[str] = ()
    ) -> list[Row]:
        """At most `limit` rows of a table that is numbered (`id` or `seq`), newest first.

        Args:
            below: only rows with a smaller number.
            every: only rows whose number is a multiple of this.
            states: only rows in one of these; all when none is named.
        """
        number = "seq" if kind is BatchRow else "id"
        where, *values = in_states(tuple(states))
        below = _TOP if below is None else below
        where += f" AND {number} < ? AND {number} % ? = 0"
        return self._select(kind, where, *values, below, every, limit, order=f"{number} DESC LIMIT ?")

    def with_keys(self, kind: type[Row], keys: Iterable[str | int]) -> list[Row]:
        """The rows that have one of these keys, in no order."""
        wanted, found = list(dict.fromkeys(keys)), []
        for start in range(0, len(wanted), _MAX_KEYS):
            part = wanted[start : start + _MAX_KEYS]
            found += self._select(kind, f"{KEYS[kind]} IN ({', '.join('?' * len(part))})", *part)
        return found

    def batches_starting(self, prefixes: Iterable[str]) -> dict[str, BatchRow]:
        """The batches whose sha256 starts so, by that start; what names none is left out."""
        found = {}
        for prefix in prefixes:
            for row in self._select(
                BatchRow, "sha256 >= ? AND sha256 < ?", prefix, prefix + "g", order="sha256 LIMIT 1"
            ):
                found[prefix] = row
        return found

    def versions_of(self, *batches: str) -> list[VersionRow]:
        """Versions that were made of these batches, oldest first."""
        return self._select(VersionRow, f"batch IN ({', '.join('?' * len(batches))})", *batches, order="id")

    def line(self, version_id: int) -> list[VersionRow]:
        """A version and its ancestors, oldest first; empty when there is no such version."""
        ancestors = (
            "WITH RECURSIVE line(number) AS (SELECT ? UNION "
            "SELECT parent FROM versions JOIN line ON id = number WHERE parent IS NOT NULL) SELECT number FROM line"
        )
        return self._select(VersionRow, f"id IN ({ancestors})", version_id, order="id")

    def newest_rounds(self, limit: int) -> list[RoundRow]:
        """The rounds that were asked for last, newest first."""
        return self._select(RoundRow, "1", limit, order="id DESC LIMIT ?")

    def rounds_of(self, batch: str) -> list[RoundRow]:
        """The rounds that tried a batch, oldest first."""
        return self._select(RoundRow, "batch = ?", batch, order="id")

    def rounds_past(self, step: str, limit: int) -> list[RoundRow]:
        """At most `limit` rounds that recorded something under this step, newest first."""
        return self._select(RoundRow, "instr(artefacts, ?)", json.dumps(step), limit, order="id DESC LIMIT ?")


def in_states(states: tuple[str, ...]) -> tuple[str, ...]:
    """The condition of being in one of these states (in any when none is named), and its parameters."""
    return (f"state IN ({', '.join('?' * len(states))})", *states) if states else ("1",)
