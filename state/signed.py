"""Detached signatures of drops: kept beside the batches, for as long as the store lives, so that auditors can check again.

A signature comes into the store before its drop leaves the inbox, under the name of the drop's spool entry. When the drop is
claimed it is filed under the batch's digest and its own, so that a changed one shows; equal ones are kept once.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection
from pathlib import Path
from typing import Final

from state import durable
from state.layout import Layout

ENDING: Final = ".sig"
NOT_VOUCHED: Final = "nobody who is trusted vouches for it: "
"""How the reason begins of a batch that is quarantined for want of a signature that holds."""
_FILED: Final = re.compile(r"([0-9a-f]{64})\.([0-9a-f]{32})\.sig")


def keep(store: Layout, entry: str, signature: bytes) -> None:
    """Keep the signature of the drop that goes into the spool as ``entry``."""
    durable.make_folder(store.signatures)
    durable.write_file(store.signatures / (entry + ENDING), signature, 0o400)


def came_with(store: Layout, entry: str) -> bool:
    """Whether the drop in the spool brought a signature, and is no batch yet."""
    return (store.signatures / (entry + ENDING)).exists()


def forget(store: Layout, entry: str) -> None:
    """The drop stays in the inbox, and so does its signature."""
    durable.remove_tree(store.signatures / (entry + ENDING))


def belongs_to(store: Layout, entry: str, sha256: str) -> None:
    """The drop is of this content; earlier signatures of it stay beside this one."""
    path = store.signatures / (entry + ENDING)
    if not path.exists():
        return
    target = store.signatures / f"{sha256}.{_digest(path)}{ENDING}"
    if target.exists():
        durable.remove_tree(path)
    else:
        durable.move(path, target)


def signatures_of(store: Layout, sha256: str) -> list[bytes]:
    """The signatures that came with drops of this content, unchecked, the oldest first."""
    found = store.signatures.glob(f"{sha256}.*{ENDING}")
    return [path.read_bytes() for path in sorted(found, key=lambda path: (path.stat().st_mtime_ns, path.name))]


def damaged(store: Layout) -> list[Path]:
    """Filed signatures that are not what came."""
    filed = [(path, _FILED.fullmatch(path.name)) for path in sorted(store.signatures.glob(f"*{ENDING}"))]
    return [path for path, name in filed if name is not None and name[2] != _digest(path)]


def settle(store: Layout, waiting: Collection[str]) -> None:
    """Clear away what a crash left: unfinished files, and signatures of drops that never came in.

    Args:
        waiting: spool entries that are there, or lie in quarantine and may come back.
    """
    if not store.signatures.is_dir():
        return
    for path in sorted(store.signatures.iterdir()):
        is_needed = _FILED.fullmatch(path.name) or path.name.removesuffix(ENDING) in waiting
        if not is_needed:
            durable.remove_tree(path)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:32]
