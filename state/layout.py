"""Where everything lies under one home."""

from pathlib import Path

PROGRESS_FILE = Path("run", "progress.json")
"""What the service does right now, for `status`; relative to the home."""

CHECKED_FILE = Path("run", "checked.jsonl")
"""What a check of the store that is under way has found whole; relative to the home."""

VERIFIED_FILE = Path("run", "verified.json")
"""What the last check of the store found; relative to the home."""


class Layout:
    """The paths of one home. Nothing is created or read here."""

    def __init__(self, home: Path) -> None:
        self.home = Path(home).absolute()

    @property
    def root(self) -> Path:
        """The store proper; it exists if and only if the home was initialised."""
        return self.home / "store"

    @property
    def ledger_path(self) -> Path:
        """SQLite, WAL, synchronous=FULL: batches, rounds (step, artefacts), versions, holds."""
        return self.root / "ledger.db"

    @property
    def audit_path(self) -> Path:
        """Hash-chained, fsynced: who published, rolled back, approved, pinned, collected, and why."""
        return self.root / "audit.jsonl"

    @property
    def service_lock(self) -> Path:
        """Held for the life of a service."""
        return self.root / "service.lock"

    @property
    def serving_lock(self) -> Path:
        """Held while replicas are told something, by the service or by a command where none runs."""
        return self.root / "serving.lock"

    @property
    def store_lock(self) -> Path:
        """Held for each change of the store, by anybody."""
        return self.root / "store.lock"

    @property
    def reserve_path(self) -> Path:
        """Disk space kept back so that a rollback still works on a full disk."""
        return self.root / "reserve"

    @property
    def spool(self) -> Path:
        """Drops taken out of the inbox and not yet claimed; entry names are unique per drop."""
        return self.root / "spool"

    @property
    def batches(self) -> Path:
        """`<sha256>/` holds a batch's files byte for byte, 0600, while it may be tried again or any version refers to it.

        Only `quarantine drop` deletes one, and not one that a version was made with.
        """
        return self.root / "batches"

    @property
    def signatures(self) -> Path:
        """`<sha256 of the batch>.<of the signature>.sig`: who vouched for a batch, as it came; one file a signature."""
        return self.root / "signatures"

    @property
    def quarantine(self) -> Path:
        """`<id>/reason.json` and `<id>/data/`, the drop as it came."""
        return self.home / "quarantine"

    @property
    def patches(self) -> Path:
        """`<digest>.safetensors`: merged-in entries only (indices, values, which kind of patch wrote each), with provenance.

        Moved here from scratch when its version is committed. A version's `lineage` lists its patches in order: `revert`
        leaves one out.
        """
        return self.root / "patches"

    @property
    def versions(self) -> Path:
        """`v<N>/VERSION.json` and `v<N>/overlay.safetensors`: parent, recipe, seeds, settings, gate results, BLAKE3 of
        every file of the full model and of every tensor (SHA-256 of both, or of files, in stores begun before the evening of
        2026-11-28), for v0 and imports SHA-256 of files too; and the entries that differ from the parent.
        """
        return self.root / "versions"

    @property
    def models(self) -> Path:
        """`v<N>/`: a version as a complete model folder, as any engine loads it; read-only.

        Kept for base, current, previous, pinned, tagged and the newest `keep_materialized`; rebuilt bit for bit from
        base and overlays when it is wanted.
        """
        return self.home / "models"

    @property
    def current_link(self) -> Path:
        """A link to the version in service, replaced by one rename."""
        return self.models / "current"

    @property
    def scratch_root(self) -> Path:
        """`<round>/`: a round's private files, 0700, gone when it has ended."""
        return self.root / "scratch"

    def scratch(self, round_id: str) -> Path:
        """The private folder of one round; swept when the round has ended."""
        return self.scratch_root / round_id

    def batch_path(self, sha256: str) -> Path:
        return self.batches / sha256

    def batch_content(self, sha256: str) -> Path:
        """Where a batch's files lie now: aside in quarantine, or at `batch_path`, where they need not exist."""
        aside = self.quarantine / sha256 / "data"
        return aside if aside.exists() else self.batch_path(sha256)

    def patch_path(self, digest: str) -> Path:
        return self.patches / f"{digest}.safetensors"

    def model_path(self, version_id: int) -> Path:
        return self.models / f"v{version_id}"

    def version_path(self, version_id: int) -> Path:
        return self.versions / f"v{version_id}"

    def record_path(self, version_id: int) -> Path:
        return self.version_path(version_id) / "VERSION.json"

    def overlay_path(self, version_id: int) -> Path:
        return self.version_path(version_id) / "overlay.safetensors"
