"""How the tensors of two model folders differ: counts and sizes, without torch, in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from state.tensors import ModelFolder, to_float32

if TYPE_CHECKING:
    from numpy import float64, unsignedinteger
    from numpy.typing import NDArray

    from state.overlay import Edit

CHUNK_ENTRIES: Final = 1 << 22


@dataclass(frozen=True)
class TensorDifference:
    """How one tensor differs."""

    name: str
    num_entries: int
    """Entries whose bytes differ."""
    l2: float
    """Euclidean norm of the difference."""
    max_abs: float
    """Largest absolute difference of one entry."""


def touched(parent: ModelFolder, edits: Mapping[str, Edit]) -> dict[str, Any]:
    """How much of the model some edits change: entries, share of all entries, and entries of each tensor."""
    total = sum(tensor.num_entries for tensor in parent.tensors.values())
    per_tensor = {name: len(edit.indices) for name, edit in edits.items()}
    num = sum(per_tensor.values())
    return {"num_entries": num, "fraction": num / total, "per_tensor": per_tensor}


def differing_tensors(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """Names of the tensors whose digests differ, or that one side lacks, in the order of `after`."""
    missing = [name for name in before if name not in after]
    return [name for name in after if before.get(name) != after[name]] + missing


def compare(before: ModelFolder, after: ModelFolder, names: Iterable[str]) -> list[TensorDifference]:
    """The differences of some tensors, most changed entries first; tensors that are equal are left out."""
    found = [_compare_tensor(before, after, name) for name in names]
    return sorted((item for item in found if item.num_entries), key=lambda item: -item.num_entries)


def _compare_tensor(before: ModelFolder, after: ModelFolder, name: str) -> TensorDifference:
    dtype = after.tensors[name].dtype
    old, new = before.read_raw(name), after.read_raw(name)
    count, squares, largest = 0, 0.0, 0.0
    for start in range(0, len(new), CHUNK_ENTRIES):
        part = slice(start, start + CHUNK_ENTRIES)
        delta = _changed_by(old[part], new[part], dtype)
        if len(delta):
            count += len(delta)
            squares += float((delta**2).sum())
            largest = max(largest, float(abs(delta).max()))
    return TensorDifference(name, count, math.sqrt(squares), largest)


def _changed_by(old: NDArray[unsignedinteger], new: NDArray[unsignedinteger], dtype: str) -> NDArray[float64]:
    changed = old != new
    delta: NDArray[float64] = to_float32(new[changed], dtype).astype("float64") - to_float32(old[changed], dtype)
    return delta
