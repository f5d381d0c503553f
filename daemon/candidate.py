"""From a merged patch to a candidate on disk: patch file, overlay against the parent, complete model folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from daemon.compare import touched
from patches.merge import SparsePatch
from state import durable, overlay, patchfile
from state.core import StoreCore
from state.digests import Digests
from state.materialize import build_folder
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
    """A complete model folder with the edits assigned, and its overlay; started again from nothing if it was there.

    Each edit is looked up once, and is in memory only while its tensor is written.
    """
    parent = ModelFolder.open(store.model_path(parent_id))
    known = store.version_record(parent_id)
    target, overlay_path = scratch / MODEL_FOLDER, scratch / OVERLAY_FILE
    durable.remove_tree(target)
    with overlay.OverlayWriter(overlay_path, {"parent": f"v{parent_id}"}) as out:
        noted = _NotedEdits(edits, out)
        digests = build_folder(parent, noted, target, known=Digests.of_record(known), link=True)
    return Candidate(target, overlay_path, digests, touched(parent, noted.per_tensor), patch)


class MergedEdits(Mapping[str, Edit]):
    """The entries' new raw values: parent plus delta in float32, rounded once; those that round to no change left out.

    Worked out when it is looked up, a tensor at a time; of a tensor in which nothing changes the edit is empty.
    """

    def __init__(self, parent: ModelFolder, entries: Entries) -> None:
        self._parent = parent
        self._entries = entries

    def __getitem__(self, name: str) -> Edit:
        indices, deltas = self._entries[name]
        dtype = self._parent.tensors[name].dtype
        old = self._parent.read_raw(name)[indices]
        new = from_float32(to_float32(old, dtype) + deltas.astype(np.float32), dtype)
        changed = new != old
        return Edit(indices[changed], new[changed])

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


class _NotedEdits(Mapping[str, Edit]):
    """Edits that go into an overlay, and are counted, when they are looked up; each is, once."""

    def __init__(self, edits: Mapping[str, Edit], out: overlay.OverlayWriter) -> None:
        self._edits = edits
        self._out = out
        self.per_tensor: dict[str, int] = {}

    def __getitem__(self, name: str) -> Edit:
        edit = self._edits[name]
        if len(edit.indices):
            self._out.add(name, edit)
            self.per_tensor[name] = len(edit.indices)
        return edit

    def __iter__(self) -> Iterator[str]:
        return iter(self._edits)

    def __len__(self) -> int:
        return len(self._edits)


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
