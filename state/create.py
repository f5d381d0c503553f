"""How a store comes to be: all of it beside its place, then one rename."""

from __future__ import annotations

import hashlib
from pathlib import Path

from state import durable, lock, materialize, tensors
from state.core import StoreCore, fill_reserve
from state.digests import Digests, Kinds
from state.errors import RefusedError
from state.layout import Layout
from state.ledger import Ledger
from state.remedy import LEDGER
from state.rows import PointerRow, VersionRow


class _Nursery(StoreCore):
    """The store while it is made: everything at its final place but the root."""

    @property
    def root(self) -> Path:
        return self.home / f"{durable.TEMPORARY_PREFIX}store"


def create(layout: Layout, base: Path, *, actor: str, now: str) -> None:
    """Make the store of a home with `base` copied in as v0; see `Store.create`."""
    durable.make_folder(layout.home, 0o755)
    with lock.hold(layout.home / ".create.lock", "create the store"):
        if layout.root.exists():
            hint = "use it, or choose another folder" if layout.ledger_path.exists() else LEDGER
            raise RefusedError(f"{layout.root} exists already", hint)
        nursery = Path(layout.home) / f"{durable.TEMPORARY_PREFIX}store"
        for stale in (nursery, layout.current_link, layout.model_path(0)):
            durable.remove_tree(stale)  # left by an attempt that died
        digests = _import_base(layout, base)
        _furnish(layout, nursery, digests, actor=actor, now=now)
        durable.publish_folder(nursery, layout.root)


def _import_base(layout: Layout, base: Path) -> Digests:
    folder = tensors.ModelFolder.open(base, follow_links=True)
    tensors.check_finite(folder)
    durable.make_folder(layout.models, 0o755)
    staging = layout.models / f"{durable.TEMPORARY_PREFIX}v0"
    durable.remove_tree(staging)
    digests = materialize.build_folder(folder, {}, staging, kinds=Kinds(with_sha256=True))
    durable.publish_folder(staging, layout.model_path(0))
    return digests


def _furnish(layout: Layout, nursery: Path, digests: Digests, *, actor: str, now: str) -> None:
    durable.make_folder(layout.quarantine)
    for name in ("spool", "batches", "patches", "scratch", "versions/v0"):
        durable.make_folder(nursery / name)
    ledger = Ledger.create(nursery / "ledger.db")
    try:
        store = _Nursery(layout.home, ledger)
        record = _base_record(digests, now)
        durable.write_file(store.record_path(0), record, 0o444)
        fill_reserve(store)
        with store._transaction("store_created", "v0", actor=actor, now=now):
            digest = hashlib.sha256(record).hexdigest()
            ledger.save(VersionRow(0, None, "base", None, None, now, record=digest))
            ledger.save(PointerRow(1, 0, None, "create", actor, "", now))
    finally:
        ledger.close()


def _base_record(digests: Digests, now: str) -> bytes:
    return durable.json_bytes(
        {
            "format": 1,
            "id": 0,
            "parent": None,
            "batch": None,
            "round": None,
            "created_at": now,
            "overlay": None,
            "metrics": {},
            "touched": {"num_entries": 0, "fraction": 0.0, "per_tensor": {}},
            **digests.to_record(),
        }
    )
