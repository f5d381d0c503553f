"""From a merged patch to a candidate on disk: patch file, overlay against the parent, complete model folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from daemon.compare import touched
from patches.merge import SparsePatch
from state import durable, overlay, patchfile
from state.core import StoreCore
from state.materialize import Digests, build_folder
from state.overlay import Edit
from state.tensors import ModelFolder, from_float32, to_float32

Entries = Mapping[str, tuple[np.ndarray, np.ndarray]]
"""Per tensor: int64 flat indices, float32 deltas."""
OVERLAY_FILE, MODEL_FOLDER = "overlay.safetensors", "candidate"


@dataclass(frozen=True)
class Candidate:
    """What `state.store.Store.commit_version` takes, beside gates and metrics."""

    model: Path
    overlay: Path
    digests: Digests
    touched: dict[str, Any]
    patch: str | None
    """Digest of the patch file, in the scratch folder until the version is committed."""


def write_candidate(
    store: StoreCore, parent_id: int, scratch: Path, *, edits: Mapping[str, Edit], patch: str | None
) -> Candidate:
    """A complete model folder with the edits assigned, and its overlay; started again from nothing if it was there."""
    parent = ModelFolder.open(store.model_path(parent_id))
    known = store.version_record(parent_id)
    target, overlay_path = scratch / MODEL_FOLDER, scratch / OVERLAY_FILE
    durable.remove_tree(target)
    digests = build_folder(
        parent, edits, target, known=Digests(dict(known["files"]), dict(known["tensors"])), link=True
    )
    overlay.write(overlay_path, edits, {"parent": f"v{parent_id}"})
    return Candidate(target, overlay_path, digests, touched(parent, edits), patch)


def merge_edits(parent: ModelFolder, entries: Entries) -> dict[str, Edit]:
    """The entries' new raw values: parent plus delta in float32, rounded once; those that round to no change left out."""
    edits = {}
    for name, (indices, deltas) in entries.items():
        edit = _merge_tensor(parent, name, indices, deltas)
        if len(edit.indices):
            edits[name] = edit
    return edits


def sparse_entries(patch: SparsePatch) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """A merged patch as numpy arrays."""
    return {name: (delta.indices.numpy(), delta.deltas.numpy()) for name, delta in patch.items() if len(delta.indices)}


def keep_patch(
    store: StoreCore, patch: SparsePatch, provenance: Mapping[str, str], *, folder: Path | None = None
) -> str:
    """Store a merged patch, so that a later round can leave it out or weigh it anew; its digest.

    Args:
        folder: a round's scratch folder, from which `commit_version` takes it; among the store's patches when left out.
    """
    kinds = {name: delta.kinds.numpy() for name, delta in patch.items() if len(delta.indices)}
    mixed = any(bool((kind != patchfile.BOTH).any()) for kind in kinds.values())
    return patchfile.save(store, sparse_entries(patch), provenance, kinds=kinds if mixed else None, folder=folder)


def _merge_tensor(parent: ModelFolder, name: str, indices: np.ndarray, deltas: np.ndarray) -> Edit:
    dtype = parent.tensors[name].dtype
    old = parent.read_raw(name)[indices]
    new = from_float32(to_float32(old, dtype) + deltas.astype(np.float32), dtype)
    changed = new != old
    return Edit(indices[changed], new[changed])
