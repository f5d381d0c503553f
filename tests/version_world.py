"""Versions of a real tiny model, made of plain changes of its weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from daemon.compare import touched
from state import materialize, overlay
from state.digests import Digests
from state.rows import VersionRow
from state.store import Store
from state.tensors import ModelFolder, from_float32, to_float32
from tests.state_world import NOW, begin

Change = np.ndarray
"""float32, of the tensor's number of entries; added to it."""


def changed_version(store: Store, seed: int, changes: Mapping[str, Change]) -> VersionRow:
    """The next version: the current one with these changes."""
    round_id = begin(store, seed)
    scratch = store.scratch(round_id)
    scratch.mkdir(exist_ok=True)
    parent = ModelFolder.open(store.model_path(store.round(round_id).parent))
    edits = {name: _edit(parent, name, change) for name, change in changes.items()}
    overlay.write(scratch / "overlay.safetensors", edits, {})
    known = store.version_record(store.round(round_id).parent)
    digests = materialize.build_folder(parent, edits, scratch / "model", known=Digests.of_record(known), link=True)
    record = {
        **digests.to_record(),
        "touched": touched(parent, {name: len(edit.indices) for name, edit in edits.items()}),
        "metrics": {"harm_rate": 0.1},
    }
    return store.commit_version(
        round_id,
        scratch / "model",
        overlay=scratch / "overlay.safetensors",
        record=record,
        state="published",
        now=NOW,
    )


def _edit(parent: ModelFolder, name: str, change: Change) -> overlay.Edit:
    dtype, old = parent.tensors[name].dtype, np.array(parent.read_raw(name))
    return overlay.diff(old, from_float32(to_float32(old, dtype) + change.astype(np.float32).reshape(-1), dtype))


def noise(folder: Path, name: str, *, rank: int = 0, scale: float = 0.02, seed: int = 0) -> Change:
    """A random change of a tensor, of some rank where one is given."""
    shape = ModelFolder.open(folder).tensors[name].shape
    rng = np.random.default_rng(seed)
    if rank:
        return (scale * rng.normal(size=(shape[0], rank)) @ rng.normal(size=(rank, shape[1]))).astype(np.float32)
    return (scale * rng.normal(size=shape)).astype(np.float32)
