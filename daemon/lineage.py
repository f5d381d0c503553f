"""What a round builds on: the batches and patches that the current version is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from daemon.config import Config, ConfigError
from daemon.intake import TakenIn, UnusableBatchError, apart, take_in
from daemon.probes import ProbeFiles
from patches.mask import Masks
from patches.merge import OVER_SAFETY, SAFETY, Claims
from state import durable, overlay, patchfile
from state.batches import file_sha256, identity
from state.core import StoreCore
from state.errors import StoreCorruptError
from state.materialize import build_folder, chain
from state.overlay import Edit
from state.patchfile import Entries
from state.remedy import remedy
from state.store import Store
from state.tensors import ModelFolder, from_float32, to_float32


@dataclass(frozen=True)
class Lineage:
    """The recipe of a version: its ground, then these patches in this order."""

    patches: tuple[str, ...]
    """Digests of patch files, oldest first."""
    batches: tuple[str, ...]
    """The batch behind each of them; of a consolidation's patch, which is the first then, all that it was made from."""
    ground: int = 0
    """The version that they were merged into: the base, or one that was imported."""
    num_together: int = 0
    """How many of the first batches a consolidation made the first patch from; 0 where there was none."""

    def then(self, patch: str, batch: str) -> Lineage:
        """The recipe with one more round."""
        return replace(self, patches=(*self.patches, patch), batches=(*self.batches, batch))

    def consolidated(self, patch: str) -> Lineage:
        """The recipe with one patch in place of all, made from the same batches."""
        return replace(self, patches=(patch,), num_together=len(self.batches))

    def without(self, patch: str) -> Lineage:
        """The recipe with one patch taken out, and what it was made from."""
        kept = [(p, batches) for p, batches in self._rounds() if p != patch]
        return replace(
            self,
            patches=tuple(p for p, _ in kept),
            batches=tuple(batch for _, batches in kept for batch in batches),
            num_together=0 if self.patches[:1] == (patch,) else self.num_together,
        )

    def without_batch(self, batch: str) -> Lineage:
        """The batches but one, and no patches: what is left is to be learnt together."""
        return replace(self, patches=(), batches=tuple(b for b in self.batches if b != batch), num_together=0)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for VERSION.json."""
        on_import = {"ground": f"v{self.ground}"} if self.ground else {}
        together = {"num_together": self.num_together} if self.num_together else {}
        return {"patches": list(self.patches), "batches": list(self.batches), **on_import, **together}

    def _rounds(self) -> list[tuple[str, tuple[str, ...]]]:
        """Each patch with the batches behind it."""
        first = max(1, self.num_together)
        behind = [self.batches[:first], *((batch,) for batch in self.batches[first:])]
        return list(zip(self.patches, behind, strict=True)) if self.patches else []


def lineage_of(store: Store, version_id: int) -> Lineage:
    """The recipe of a version; empty for v0 and for an import."""
    recipe = store.version_record(version_id).get("lineage") or {}
    patches, batches = tuple(recipe.get("patches", ())), tuple(recipe.get("batches", ()))
    return Lineage(patches, batches, store.ground(version_id).id, recipe.get("num_together", 0))


def earlier_batches(store: StoreCore, config: Config, lineage: Lineage, files: ProbeFiles) -> dict[str, TakenIn]:
    """The rows of every batch that the version is made of, split as in their own rounds while probes and settings last.

    Oldest first, and each without the rows that an older one has on another side.

    Raises:
        StoreCorruptError: a stored batch is missing, or is not what was received.
        ConfigError: a stored batch is whole, and cannot be read under the settings any more.
    """
    taken = {}
    for sha256 in lineage.batches:
        try:
            taken[sha256] = take_in(store, config, sha256, files, is_learnt=True)
        except (UnusableBatchError, FileNotFoundError) as err:
            raise _unreadable(store, sha256, err) from err
    return apart(taken)


def _unreadable(store: StoreCore, sha256: str, err: Exception) -> StoreCorruptError | ConfigError:
    path = store.batch_content(sha256)
    what = f"batch {sha256[:12]}, which the current version was made with,"
    if not path.exists():
        return StoreCorruptError(f"{what} is missing: {path}", remedy(store, path))
    if identity(path) != sha256:
        return StoreCorruptError(f"{what} is not what was received: {path}", remedy(store, path))
    return ConfigError(
        f"{what} cannot be read under the settings any more: {err}; mend them, then `alignd abort` and `alignd retry`, or "
        "asking for the round again, begin it with them"
    )


def written(store: Store, lineage: Lineage, shapes: Mapping[str, torch.Size]) -> Masks:
    """Per tensor, the entries that the patches of a recipe write; of tensors that have a shape here."""
    found: Masks = {}
    for digest in lineage.patches:
        for name, (indices, _) in patchfile.load_kinds(store, digest).items():
            if name in shapes:
                found.setdefault(name, _empty(shapes[name])).view(-1)[torch.from_numpy(indices)] = True
    return found


def claims(store: Store, lineage: Lineage, shapes: Mapping[str, torch.Size]) -> Claims:
    """Per tensor, the entries that earlier rounds' safety and over-safety patches wrote; both, what an import brought."""
    found: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for digest in lineage.patches:
        for name, (indices, kinds) in patchfile.load_kinds(store, digest).items():
            by_safety, by_over = found.setdefault(name, (_empty(shapes[name]), _empty(shapes[name])))
            at, kind = torch.from_numpy(indices), torch.from_numpy(kinds)
            by_safety.view(-1)[at] |= (kind & SAFETY) > 0
            by_over.view(-1)[at] |= (kind & OVER_SAFETY) > 0
    ground = ground_edits(store, lineage)
    for name in ground.keys() & shapes.keys():  # an import may have changed what no round here may touch
        edit = ground[name]
        # which patch of the other home wrote an entry is not known here: it is both kinds'
        for claimed in found.setdefault(name, (_empty(shapes[name]), _empty(shapes[name]))):
            claimed.view(-1)[torch.from_numpy(edit.indices)] = True
    return found


def remerge_edits(store: Store, lineage: Lineage, parent: ModelFolder) -> dict[str, Edit]:
    """Edits that turn a version into its ground with these patches merged again in order, each rounded as it was."""
    return rebuilt_edits(store, lineage, parent, [patchfile.load(store, digest) for digest in lineage.patches])


def rebuilt_edits(
    store: StoreCore, lineage: Lineage, parent: ModelFolder, patches: Sequence[Mapping[str, Entries]]
) -> dict[str, Edit]:
    """Edits that turn a version into its ground with other patches than the recipe's merged in order."""
    base = ModelFolder.open(store.model_path(0))
    ground = ground_edits(store, lineage)
    edits = {}
    for name, tensor in parent.tensors.items():
        raw = np.array(base.read_raw(name))
        if name in ground:
            raw[ground[name].indices] = ground[name].values
        for entries in patches:
            if name in entries:
                indices, deltas = entries[name]
                raw[indices] = from_float32(to_float32(raw[indices], tensor.dtype) + deltas, tensor.dtype)
        edit = overlay.diff(parent.read_raw(name), raw)
        if len(edit.indices):
            edits[name] = edit
    return edits


def ground_folder(store: Store, lineage: Lineage, scratch: Path) -> Path:
    """The model that the rounds of a recipe start from; built in the scratch folder where the store has let go of it."""
    if store.is_materialized(lineage.ground):
        return store.model_path(lineage.ground)
    folder = scratch / "ground"
    durable.remove_tree(folder)
    build_folder(ModelFolder.open(store.model_path(0)), ground_edits(store, lineage), folder)
    return folder


def ground_edits(store: StoreCore, lineage: Lineage) -> Mapping[str, Edit]:
    """What an imported ground changes of the base; nothing where the base is the ground."""
    for row in store.lineage(lineage.ground)[1:]:
        path = store.overlay_path(row.id)
        if file_sha256(path) != row.overlay:
            raise StoreCorruptError(f"{path} is not what was written", remedy(store, path))
    return chain(store, lineage.ground)


def _empty(shape: torch.Size) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.bool)
