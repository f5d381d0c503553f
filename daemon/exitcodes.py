"""Exit codes of `alignd`; scripts may rely on them. An unknown code other than 0 means failure; codes may be added."""

from __future__ import annotations

from typing import Final

OK: Final = 0
FAILED: Final = 1
USAGE: Final = 2
DEGRADED: Final = 3
NOT_FOUND: Final = 4
REFUSED: Final = 5
INTEGRITY: Final = 6
NO_STORE: Final = 10
LOCKED: Final = 11
NO_SERVICE: Final = 12
OTHER_SCHEMA: Final = 13
TRY_AGAIN: Final = 75
CONFIG: Final = 78
INTERRUPTED: Final = 130
TERMINATED: Final = 143

MEANINGS: Final[dict[int, str]] = {
    OK: "done, or healthy",
    FAILED: "failed, or there was nothing to do",
    USAGE: "wrong usage",
    DEGRADED: "works, but something needs attention",
    NOT_FOUND: "no such version, batch, round or tag",
    REFUSED: "refused by a gate, a hold or a block",
    INTEGRITY: "stored bytes are not what was written",
    NO_STORE: "there is no store here",
    LOCKED: "another process holds the lock",
    NO_SERVICE: "no service is running here",
    OTHER_SCHEMA: "the store is of an older or a newer alignd",
    TRY_AGAIN: "not finished in time; try again",
    CONFIG: "service.toml or the base model cannot be used",
    INTERRUPTED: "interrupted",
    TERMINATED: "terminated",
}


def describe() -> str:
    """The table of codes, as the main help shows it."""
    return "\n".join(f"  {code:>3}  {meaning}" for code, meaning in MEANINGS.items())
