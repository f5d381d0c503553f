"""What an interrupted check of the store had found whole, so that the next one may go on behind it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from state import durable, verified
from state.layout import CHECKED_FILE
from state.store import Store
from state.verified import Finding
from state.verify import ALWAYS, parts, verify

MAX_AGE_S: Final = 7 * 24 * 3600.0
"""What was found whole longer ago is looked at again."""


class Checked:
    """run/checked.jsonl: the parts, one a line, with the time. Not flushed: what a loss of power takes is checked again."""

    def __init__(self, home: Path, *, deep: bool) -> None:
        self._path = home / CHECKED_FILE
        self._deep = deep

    def parts(self, now_s: float | None = None) -> frozenset[str]:
        """Parts that were found whole, as thoroughly as is asked now, in the last seven days."""
        since = (time.time() if now_s is None else now_s) - MAX_AGE_S
        try:
            lines = self._path.read_text().splitlines()
        except (FileNotFoundError, UnicodeDecodeError):
            return frozenset()
        found = [entry for line in lines if (entry := _entry(line)) is not None]
        return frozenset(part for part, deep, at in found if at >= since and (deep or not self._deep))

    def add(self, part: str) -> None:
        """One more part is whole; on a read-only disk that is not kept."""
        if durable.is_read_only(self._path.parent.parent):
            return
        self._path.parent.mkdir(mode=0o700, exist_ok=True)
        with self._path.open("a") as file:
            file.write(json.dumps([part, self._deep, time.time()]) + "\n")

    def clear(self) -> None:
        """The check has come to its end, or begins anew."""
        if self._path.exists() and not durable.is_read_only(self._path):
            self._path.unlink()


def verify_on(store: Store, *, deep: bool, progress: Callable[[float], None], anew: bool = False) -> list[Finding]:
    """`verify`, behind what a check that was cut short has found whole; what that found wrong is looked at again.

    Args:
        anew: whether what an earlier check found is passed by.
        progress: told the share of all parts that are checked, in [0, 1].
    """
    checked, names = Checked(store.home, deep=deep), parts(store)
    if anew:
        checked.clear()
    known = frozenset() if anew else checked.parts().intersection(names)
    num_seen = len(known)

    def seen(part: str, findings: list[Finding]) -> None:
        nonlocal num_seen
        num_seen += 1
        progress(min(1.0, num_seen / len(names)))  # a version may have come since they were counted
        if not findings and part not in ALWAYS:
            checked.add(part)

    found = verify(store, deep=deep, passed_over=known, seen=seen)
    checked.clear()
    verified.note(store.home, found)
    return found


def _entry(line: str) -> tuple[str, bool, float] | None:
    """A line of the file; None for one that a kill has torn."""
    try:
        part, deep, at = json.loads(line)
        return str(part), bool(deep), float(at)
    except (ValueError, TypeError):
        return None
