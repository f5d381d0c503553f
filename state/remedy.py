"""What to do about a damaged thing of the store: one answer, whoever found it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from state.core import StoreCore

_BASE = "put it back from a backup or the model's source, before all else: every version is rebuilt from it"
_RECIPE = "put it back from a backup; without one `alignd rollback REF` goes to a version that is not made with it"
BATCH = "put it back from a backup or its source, byte for byte; where a version was made with it, `alignd revert` takes that out"
LEDGER = "restore the ledger from a backup"
_OTHER = "put it back from a backup"
_MODEL = re.compile(r"v([0-9]+)")


def remedy(store: StoreCore, path: Path) -> str:
    """How a path that is missing, or not what was written, is mended.

    Args:
        path: of the store or its models, or anything inside them.
    """
    folder = _below(path, store.models)
    if folder == store.current_link.name:
        return (
            f"`alignd promote {store.current().name} --reason WHY` points it anew, and so does a start of the service"
        )
    if folder and _MODEL.fullmatch(folder):
        return _model_remedy(store, int(folder.removeprefix("v")))
    if _below(path, store.versions) or _below(path, store.patches):
        return _RECIPE
    if _below(path, store.batches) or _below(path, store.quarantine):
        return BATCH
    return LEDGER if path == store.ledger_path else _OTHER


def _model_remedy(store: StoreCore, version_id: int) -> str:
    """A model folder is made of v0 and the overlays, and so may go; v0's is made of nothing."""
    if version_id == 0:
        return _BASE
    away = f"move {store.model_path(version_id)} away" if store.is_materialized(version_id) else ""
    if version_id != store.current().id:
        return f"{away}: it is rebuilt from v0 and the overlays when it is wanted" if away else ""
    rebuild = f"`alignd promote v{version_id} --reason WHY` rebuilds it from v0 and the overlays"
    return f"{away}, then {rebuild}" if away else rebuild


def _below(path: Path, folder: Path) -> str:
    """The entry of a folder that a path is, or is in; empty where it is elsewhere."""
    return path.relative_to(folder).parts[0] if folder in path.parents else ""
