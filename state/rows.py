"""The rows of the ledger as frozen records. Times are UTC ISO-8601 strings."""

from dataclasses import dataclass, field
from typing import Any, Literal

BatchState = Literal[
    "queued",
    "running",
    "published",
    "rejected",
    "quarantined",
    "rolled_back",
    "reverted",
    "awaiting_approval",
]
RoundKind = Literal["batch", "revert", "consolidation"]
RoundState = Literal[
    "queued", "running", "published", "rejected", "failed", "superseded", "awaiting_approval", "aborted"
]
VersionState = Literal["base", "published", "awaiting_approval", "rejected", "rolled_back"]


@dataclass(frozen=True)
class BatchRow:
    """One drop that was claimed; identity is the SHA-256 of its content."""

    sha256: str
    name: str
    seq: int
    state: BatchState
    received_at: str
    num_bytes: int
    num_files: int
    source: str
    """Name of the spool entry it came from: tells a repeated claim from a second drop."""
    attempts: int = 0
    reason: str = ""
    stats: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RoundRow:
    """One attempt to turn a batch, a request to revert one, or all batches together into a version."""

    id: str
    kind: RoundKind
    batch: str | None
    target: int | None
    """Version to take out, of a `revert`; also of a `consolidation` that is to do without its batch."""
    parent: int
    state: RoundState
    step: str | None
    """Last finished step."""
    started_at: str
    ended_at: str | None = None
    reason: str = ""
    version: int | None = None
    attempts: int = 0
    artefacts: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Finished step -> what it recorded."""
    config: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class VersionRow:
    """An accepted model state; everything but its standing (state and flags) is immutable."""

    id: int
    parent: int | None
    state: VersionState
    batch: str | None
    round: str | None
    created_at: str
    metrics: dict[str, Any] = field(default_factory=dict)
    touched_fraction: float = 0.0
    blocked: bool = False
    pinned: bool = False
    overlay: str | None = None
    """SHA-256 of the overlay file; None for the base."""
    patch: str | None = None
    """Digest of the patch file, if one was kept."""
    record: str = ""
    """SHA-256 of VERSION.json."""

    @property
    def name(self) -> str:
        """The name of its folders, e.g. `v3`."""
        return f"v{self.id}"

    @property
    def is_import(self) -> bool:
        """Whether another home made it: no round here did."""
        return self.round is None and self.parent is not None


@dataclass(frozen=True)
class PointerRow:
    """One change of `current`; the last one is what is in service."""

    seq: int
    version: int
    previous: int | None
    """Where a rollback from here leads by default."""
    action: str
    actor: str
    reason: str
    at: str


@dataclass(frozen=True)
class ControlRow:
    """A switch that is on: `held` (nothing is published) or `paused` (no round starts)."""

    name: str
    reason: str
    actor: str
    since: str


@dataclass(frozen=True)
class TagRow:
    """A name given to a version."""

    name: str
    version: int
    at: str


@dataclass(frozen=True)
class DuplicateRow:
    """A drop whose content was already known."""

    seq: int
    sha256: str
    name: str
    source: str
    at: str


@dataclass(frozen=True)
class AuditRow:
    """One audit line: who did what to which subject, chained to the line before."""

    seq: int
    at: str
    actor: str
    action: str
    subject: str
    details: dict[str, Any]
    prev: str
    hash: str
