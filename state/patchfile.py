"""Merged-in patch entries, kept with their provenance under the digest of their bytes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from state.errors import StoreCorruptError
from state.gaps import GapFile, named_by_content
from state.layout import Layout

KINDS = "#kinds"
BOTH = 3
"""Written by the safety patch and by the over-safety patch."""
N = TypeVar("N", bound=np.generic)
Entries = tuple[NDArray[np.int64], NDArray[np.float32]]


def save(
    store: Layout,
    entries: Mapping[str, Entries],
    provenance: Mapping[str, str],
    *,
    kinds: Mapping[str, NDArray[np.uint8]] | None = None,
    folder: Path | None = None,
) -> str:
    """Keep `{name: (int64 strictly rising flat indices (n,), float32 deltas (n,))}` and return its digest.

    Equal arguments give the same digest.

    Args:
        kinds: of each entry, uint8 (n,), which kind of patch wrote it; without it `load_kinds` says `BOTH` everywhere.
        folder: where the file is written, as `<digest>.safetensors`; among the store's patches when left out.
    Raises:
        ValueError: indices do not rise, or shapes or dtypes differ from the above.
    """
    with named_by_content(folder or store.patches, provenance) as writer:
        for name in entries:
            indices, deltas = entries[name]
            if deltas.dtype != np.float32:
                raise ValueError(f"{name}: deltas are {deltas.dtype}, expected float32")
            writer.add(name, indices, deltas)
            if kinds is not None:
                writer.add(name + KINDS, indices, kinds[name])
    return writer.digest


def load(store: Layout, digest: str) -> dict[str, Entries]:
    """The entries of a patch: `{name: (int64 indices, float32 deltas)}`.

    Raises:
        StoreCorruptError: there is no such patch file, or it is damaged; names it.
    """
    found = GapFile(store.patch_path(digest))
    return {name: _typed(found, name, np.float32) for name in found if not name.endswith(KINDS)}


def load_kinds(store: Layout, digest: str) -> dict[str, tuple[NDArray[np.int64], NDArray[np.uint8]]]:
    """Which kind of patch wrote each entry: `{name: (int64 indices, uint8 kinds)}`; errors as in `load`."""
    found = GapFile(store.patch_path(digest))
    told = {name.removesuffix(KINDS): _typed(found, name, np.uint8) for name in found if name.endswith(KINDS)}
    if told:
        return told
    return {name: (indices, np.full(len(indices), BOTH, np.uint8)) for name, (indices, _) in found.items()}


def _typed(found: GapFile, name: str, dtype: type[N]) -> tuple[NDArray[np.int64], NDArray[N]]:
    indices, values = found[name]
    if values.dtype != dtype:
        raise StoreCorruptError(f"{found.path}: {name}: values are {values.dtype}, expected {np.dtype(dtype)}")
    return indices, values


def provenance(store: Layout, digest: str) -> dict[str, str]:
    """What was saved with a patch."""
    return GapFile(store.patch_path(digest)).metadata
