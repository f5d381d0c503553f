"""Detached signatures of drops: kept beside the batches, for as long as the store lives, so that auditors can check again.

A signature comes into the store before its drop leaves the inbox, under the name of the drop's spool entry, and is called by
the batch's digest once there is one. `settle` finishes, or clears away, what a crash left between the two.
"""

from __future__ import annotations

from typing import Final

from state import durable
from state.core import StoreCore
from state.layout import Layout

ENDING: Final = ".sig"
STAMP_LENGTH: Final = 32
"""Of a spool entry's name, what makes it unique."""


def keep(store: Layout, entry: str, signature: bytes) -> None:
    """Keep the signature of the drop that goes into the spool as ``entry``."""
    durable.make_folder(store.signatures)
    durable.write_file(store.signatures / (entry + ENDING), signature, 0o400)


def belongs_to(store: Layout, entry: str, sha256: str) -> None:
    """The drop has become a batch; earlier signatures of the same content stay beside this one."""
    path = store.signatures / (entry + ENDING)
    if path.exists():
        durable.move(path, store.signatures / f"{sha256}.{entry[:STAMP_LENGTH]}{ENDING}")


def signatures_of(store: Layout, sha256: str) -> list[bytes]:
    """The signatures that came with drops of this content, unchecked, the newest first."""
    found = sorted(store.signatures.glob(f"{sha256}.*{ENDING}"), key=lambda path: -path.stat().st_mtime_ns)
    return [path.read_bytes() for path in found]


def settle(store: StoreCore) -> None:
    """Give the signatures that a crash left behind to their batches; one whose drop never came in goes."""
    if not store.signatures.is_dir():
        return
    waiting = {entry.name for entry in store.spool.iterdir()}
    duplicates = {row.source: row.sha256 for row in store.ledger.duplicates()}
    for path in sorted(store.signatures.iterdir()):
        if path.name.startswith(durable.TEMPORARY_PREFIX):
            durable.remove_tree(path)
            continue
        entry = path.name.removesuffix(ENDING)
        if entry in waiting or store.ledger.batch(entry.partition(".")[0]) is not None:
            continue
        batches = [row.sha256 for row in store.ledger.batches_from(entry)] or [duplicates.get(entry, "")]
        if batches[0]:
            belongs_to(store, entry, batches[0])
        else:
            durable.remove_tree(path)
