"""What the last check of the store came to, for whoever looks later: `status` and `doctor` tell of it until it is mended."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from state import durable
from state.layout import VERIFIED_FILE, Layout

MAX_KEPT = 20


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong."""

    path: Path
    what: str
    remedy: str = ""
    """How it is mended."""


@dataclass(frozen=True)
class Verified:
    """The end of one check."""

    at: str
    num_findings: int
    findings: tuple[Finding, ...]
    """The first of them."""

    def in_short(self) -> str:
        """The first finding, how many there are, and since when that is known; empty where nothing was wrong."""
        if not self.findings:
            return ""
        more = f", and {self.num_findings - 1} more" if self.num_findings > 1 else ""
        first = self.findings[0]
        return f"{first.path}: {first.what}{more}; found by `alignd verify` at {self.at}"


def note(home: Path, findings: Sequence[Finding]) -> None:
    """Keep what a check found; where the disk cannot take it, it is as if nobody had checked."""
    if durable.is_read_only(home):
        return
    serving = Layout(home).current_link.resolve()
    findings = sorted(findings, key=lambda finding: serving not in finding.path.parents)  # what is served comes first
    kept = [asdict(finding) | {"path": str(finding.path)} for finding in findings[:MAX_KEPT]]
    now = datetime.now(UTC).isoformat(timespec="seconds")
    with contextlib.suppress(OSError):
        durable.make_folder(home / VERIFIED_FILE.parent)
        durable.write_json(home / VERIFIED_FILE, {"at": now, "num_findings": len(findings), "findings": kept})


def last(home: Path) -> Verified | None:
    """The last check that is known of; None when there is none."""
    try:
        value = json.loads((home / VERIFIED_FILE).read_bytes())
        found = tuple(Finding(Path(item["path"]), str(item["what"]), str(item["remedy"])) for item in value["findings"])
        return Verified(str(value["at"]), int(value["num_findings"]), found)
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
