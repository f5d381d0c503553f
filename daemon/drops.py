"""One drop, as the inbox sees it from scan to scan."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from daemon.arrival import Snapshot
from state.text import printable

ITS_WRITER: Final = "its writer to close it"
ITS_SIGNATURE: Final = "its signature"
SIGNATURE_BYTES: Final = 64
"""Of Ed25519; a file with fewer is still being written."""


@dataclass(frozen=True, slots=True)
class Drop:
    """One top-level entry of the inbox."""

    name: str
    path: Path
    snapshot: Snapshot
    since: datetime
    """Nothing about it has changed since then."""
    seen_times: int = 1
    lacks: str = "to stand still"
    """What it waits for; empty when it is complete."""
    is_settled: bool = False
    """It stood still for settle_s."""
    problem: str = ""
    """Why it is left where it is, for a person to mend."""
    marker: Path | None = None
    """The sibling file that says it is complete."""
    signature: Path | None = None
    """The sibling file that says who vouches for it."""

    @property
    def label(self) -> str:
        """Its name, safe to print."""
        return printable(self.name)

    @property
    def is_complete(self) -> bool:
        """It may be claimed."""
        return not self.lacks and not self.problem

    @property
    def is_stuck(self) -> bool:
        """What it lacks will not come by itself."""
        return self.is_settled and self.lacks not in ("", ITS_WRITER) and not self.lacks.startswith(ITS_SIGNATURE)

    @property
    def is_signed(self) -> bool:
        """Its signature is there, whole."""
        try:
            return self.signature is not None and self.signature.lstat().st_size >= SIGNATURE_BYTES
        except OSError:
            return False
