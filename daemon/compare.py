"""How two versions differ: the batches that each is made with, and their tensors, without torch, in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from state.rows import RoundRow, VersionRow
from state.tensors import ModelFolder, to_float32

if TYPE_CHECKING:
    from numpy import float64, unsignedinteger
    from numpy.typing import NDArray

    from state.store import Store

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


def batches_of(store: Store, row: VersionRow) -> dict[str, str]:
    """The batches that a version is made with, oldest first, each with the version that brought it in.

    A batch that a revert took out is not among them, unless it was learnt anew after that.
    """
    line = store.lineage(row.id)
    rounds = store.ledger.with_keys(RoundRow, [ancestor.round for ancestor in line if ancestor.round])
    targets = {round_.id: round_.target for round_ in rounds if round_.target is not None}
    taken_out = {version.id: version.batch for version in store.ledger.with_keys(VersionRow, [*targets.values()])}
    found: dict[str, str] = {}
    for ancestor in line:
        if ancestor.round in targets:
            found.pop(taken_out[targets[ancestor.round]] or "", None)
        elif ancestor.batch is not None:
            found[ancestor.batch] = ancestor.name
    return found


def batches_between(store: Store, before: VersionRow, after: VersionRow) -> list[dict[str, Any]]:
    """The batches that one of two versions is made with and the other is not.

    Each says which version `has` it and which `lacks` it, and by which version it came in; `change` is `without` for
    what `after` lacks and `with` for what it has.
    """
    old, new = batches_of(store, before), batches_of(store, after)
    names = {row.sha256: row.name for row in store.ledger.batches()}
    sides = (("without", old, new, before.name, after.name), ("with", new, old, after.name, before.name))
    return [
        {"change": change, "version": made_by, "batch": sha256, "name": names.get(sha256), "has": has, "lacks": lacks}
        for change, own, others, has, lacks in sides
        for sha256, made_by in own.items()
        if sha256 not in others
    ]


def touched(parent: ModelFolder, per_tensor: Mapping[str, int]) -> dict[str, Any]:
    """How much of the model is changed: entries, share of all entries, and entries of each tensor."""
    total = sum(tensor.num_entries for tensor in parent.tensors.values())
    num = sum(per_tensor.values())
    return {"num_entries": num, "fraction": num / total, "per_tensor": dict(sorted(per_tensor.items()))}


def differing_tensors(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """Names of the tensors whose digests differ, or that one side lacks, in the order of `after`."""
    missing = [name for name in before if name not in after]
    return [name for name in after if before.get(name) != after[name]] + missing


def compare(before: ModelFolder, after: ModelFolder, names: Iterable[str]) -> list[TensorDifference]:
    """The differences of some tensors, most changed entries first; tensors that are equal are left out."""
    found = [_compare_tensor(before, after, name) for name in names]
    return sorted((item for item in found if item.num_entries), key=lambda item: (-item.num_entries, item.name))


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
