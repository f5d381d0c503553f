"""The middle of a round: from rows to two scored patches, each step leaving its tensors in the scratch folder.

The scratch folder is the only place where an over-safety patch ever lies; it is removed with the round.
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from daemon.choosing import choose_round_entries
from daemon.forgetting import ForgettingTerms, derive_safety, forgetting_terms
from daemon.intake import TakenIn
from daemon.loosening import derive_over_safety
from daemon.material import Material, Teachers, own_refusals, record_teachers, references, wrapped_rows
from daemon.measuring import ProbeSets, development_sets
from daemon.probes import development_part, thin
from daemon.workbench import Workbench, batch_pairs, retain_pairs
from patches.backends import TaskVector
from patches.derive import Derivation
from patches.mask import Masks, overlap, sizes, top_masks
from patches.merge import Claims, Patches, Setting, masks
from patches.model import decoder_linears
from patches.snip import scores
from state import durable

SAFETY_FILE, OVER_SAFETY_FILE = "safety.safetensors", "over_safety.safetensors"
ENTRIES_FILE, SCORES_FILE = "entries.safetensors", "scores.safetensors"
_OS_ERROR = re.compile(r"\(os error (\d+)\)")
Progress = Callable[..., None]
Shapes = Mapping[str, torch.Size]


@dataclass
class Patching:
    """Both patches of one round in the making."""

    bench: Workbench
    scratch: Path
    taken: TakenIn
    earlier: Mapping[str, TakenIn]
    seed: int
    written: Callable[[Shapes], Masks] = lambda shapes: {}
    """What the patches write that this round's is to stand in place of: chosen before other entries, each of which would make
    the version larger."""

    @cached_property
    def material(self) -> Material:
        """The rows that the patches are made from, sampled with the round's seed."""
        settings = self.bench.config.derive
        draw = random.Random(self.seed)
        old = [pair for taken in self.earlier.values() for pair in batch_pairs(taken.train())]
        replay = draw.sample(old, min(len(old), settings.retain.replay_rows))
        standing = [row for row in development_part(self.bench.files.harm) if row.response]
        new = batch_pairs(self.taken.train())
        batch = new if len(new) <= settings.max_rows else draw.sample(new, settings.max_rows)
        retain = retain_pairs(self.bench.files)
        return Material(
            batch=batch,
            replay=replay,
            standing=references(thin(standing, settings.retain.standing_rows)),
            retain=retain,
            wrapped=wrapped_rows(self.bench, batch, retain, seed=self.seed),
            lookalikes=development_part(self.bench.files.over_safety),
            refusals=own_refusals(self.bench, batch),
        )

    @cached_property
    def teachers(self) -> Teachers:
        """What v0 says to what must stay."""
        return record_teachers(self.bench, self.material)

    @cached_property
    def safety(self) -> TaskVector:
        """The safety patch, from the scratch folder."""
        return load_file(self.scratch / SAFETY_FILE)

    @cached_property
    def over_safety(self) -> TaskVector:
        """The over-safety patch, from the scratch folder."""
        return load_file(self.scratch / OVER_SAFETY_FILE)

    def teach(self, progress: Progress) -> dict[str, Any]:
        """Record the teachers; the counts of rows that the patches are made from."""
        found = self.material
        progress(0.5)
        held = self.teachers
        return {
            "num_batch": len(found.batch),
            "num_replay": len(found.replay),
            "num_standing": len(found.standing),
            "num_retain": len(held.retain.rows),
            "num_wrapped": len(held.wrapped.rows),
            "num_lookalikes": len(found.lookalikes),
            "num_standing_refusals": len(held.standing_refusals.rows),
            "num_batch_refusals": len(held.batch_refusals.rows),
        }

    @cached_property
    def entries(self) -> Masks | None:
        """The entries that may be trained, from the scratch folder; None where all may."""
        path = self.scratch / ENTRIES_FILE
        return load_file(path) if path.exists() else None

    def choose(self, progress: Progress, claimed: Callable[[Shapes], Claims]) -> dict[str, Any]:
        """Choose and keep the entries that both patches are trained on, where the back end trains some only.

        Args:
            claimed: the entries that earlier rounds wrote, given the tensors' shapes; asked only where they are protected.
        """
        if self.bench.config.derive.backend != "sparse":
            return {"fraction": 1.0, "sizes": {}}
        shapes = {name: weight.shape for name, weight in decoder_linears(self.bench.model).items()}
        is_protected = self.bench.config.merge.accumulate == "protect"
        taken = _either(claimed(shapes)) if is_protected else None
        chosen = choose_round_entries(self.bench, self.material, progress, taken=taken, first=self.written(shapes))
        _save(chosen, self.scratch / ENTRIES_FILE)
        return {"fraction": self.bench.config.derive.sparse_fraction, "sizes": _rounded(sizes(chosen))}

    def derive_over_safety(self, progress: Progress) -> dict[str, Any]:
        """Train and keep the over-safety patch; a zero one where nothing is left to loosen."""
        made = derive_over_safety(
            self.bench, self.material, self.teachers, seed=self.seed, progress=progress, entries=self.entries
        )
        return self._keep(made, OVER_SAFETY_FILE)

    @cached_property
    def forgetting(self) -> ForgettingTerms:
        """What the safety patch is trained with."""
        return forgetting_terms(self.bench, self.material, self.teachers, self.over_safety, seed=self.seed)

    def derive_safety(self, progress: Progress) -> dict[str, Any]:
        """Train and keep the safety patch."""
        made = derive_safety(
            self.bench, self.forgetting, self.over_safety, seed=self.seed, progress=progress, entries=self.entries
        )
        return self._keep(made, SAFETY_FILE)

    def score(self, progress: Progress) -> dict[str, Any]:
        """Score both patches where the setting says; the patches of a joint mask need none."""
        settings = self.bench.config.merge
        if settings.mask == "joint":
            return {"kind": "none", "num_rows": 0}
        rows = self.bench.encode(thin(self.material.batch, settings.score_rows))
        kind, runner = settings.score, self.bench.runner()
        over = scores(runner, rows, self.over_safety, kind=kind, progress=lambda done: progress(done / 2))
        safety = scores(runner, rows, self.safety, kind=kind, progress=lambda done: progress((1 + done) / 2))
        _save_both(safety, over, self.scratch / SCORES_FILE)
        return {"kind": kind, "num_rows": len(rows)}

    def patches(self, claimed: Callable[[Shapes], Claims]) -> Patches:
        """Patches, scores and earlier claims: what every merge of the search is made from.

        Args:
            claimed: the entries that earlier rounds wrote, given the tensors' shapes; asked only where masks accumulate.
        """
        settings = self.bench.config.merge
        joint = settings.mask == "joint"
        safety_scores, over_scores = ({}, {}) if joint else _load_both(self.scratch / SCORES_FILE)
        shapes = {name: delta.shape for name, delta in self.safety.items()}
        return Patches(
            self.safety,
            self.over_safety,
            safety_scores,
            over_scores,
            joint=joint,
            accumulate=settings.accumulate,
            rescale=settings.rescale,
            claims=claimed(shapes) if settings.accumulate != "off" else {},
            seed=self.seed,
        )

    def describe_masks(self, patches: Patches, setting: Setting) -> dict[str, Any]:
        """Size of both sets of a merge, and the overlap of the top sets that they come from, as shares of each matrix."""
        safety, over_safety = masks(patches, setting)
        shared = {} if patches.joint else _top_overlap(patches, setting)
        return {
            "safety_sizes": _rounded(sizes(safety)),
            "over_safety_sizes": _rounded(sizes(over_safety)),
            "overlap": _rounded(shared),
        }

    def development_sets(self) -> ProbeSets:
        """What the search measures on."""
        batches = {sha256: taken.development() for sha256, taken in self.earlier.items()}
        return development_sets({**batches, "new": self.taken.development()}, self.bench.files, self.bench.config)

    def _keep(self, made: Derivation, name: str) -> dict[str, Any]:
        _save({key: delta.contiguous() for key, delta in made.task_vector.items()}, self.scratch / name)
        return made.report.to_dict()


def _top_overlap(patches: Patches, setting: Setting) -> dict[str, float]:
    safety = top_masks(patches.safety_scores, setting.safety_fraction)
    return overlap(safety, top_masks(patches.over_safety_scores, setting.over_safety_fraction))


def _save_both(safety: TaskVector, over_safety: TaskVector, path: Path) -> None:
    """What there is of each patch, in one file."""
    both = {f"safety:{name}": value.contiguous() for name, value in safety.items()}
    _save(both | {f"over_safety:{name}": value.contiguous() for name, value in over_safety.items()}, path)


def _load_both(path: Path) -> tuple[TaskVector, TaskVector]:
    """(safety, over_safety) of a file that `_save_both` wrote."""
    both = load_file(path)
    parts = ("safety:", "over_safety:")
    safety, over = ({k.removeprefix(p): v for k, v in both.items() if k.startswith(p)} for p in parts)
    return safety, over


def _either(claims: Claims) -> Masks:
    """The entries that patches of either kind wrote."""
    return {name: by_safety | by_over for name, (by_safety, by_over) in claims.items()}


def _save(tensors: TaskVector, path: Path) -> None:
    """Write tensors so that the step may be reported. Raises OSError as any other writer does."""
    try:
        save_file(tensors, path)
    except SafetensorError as err:
        code = _OS_ERROR.search(str(err))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from err
    durable.flush_file(path)


def _rounded(values: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 5) for name, value in values.items()}
