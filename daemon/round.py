"""One round, top to bottom: a batch becomes a candidate with verdicts, or a reason why not.

Every step leaves its artefacts in the round's scratch folder and then reports its result; a round that is started again
skips what it finds done. The supervisor, which survives this process, turns the outcome into a version.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from msgspec.structs import replace as with_fields

from daemon import judging, probes
from daemon.candidate import Candidate, MergedEdits, keep_patch, sparse_entries, write_candidate
from daemon.config import Config, GatesSection, to_dict
from daemon.groundwork import sound_models
from daemon.intake import TakenIn, UnusableBatchError, join, take_in, together
from daemon.lineage import (
    Lineage,
    claims,
    earlier_batches,
    ground_folder,
    lineage_of,
    rebuilt_edits,
    remerge_edits,
    written,
)
from daemon.making import make_patch
from daemon.measuring import counts, gate_results, gate_sets, judged_by, measure_sets, metrics
from daemon.patching import Patching
from daemon.probes import ProbeFiles
from daemon.progress import Outcome, Reporter
from daemon.resume import INPUTS, settle
from daemon.searching import keeps_all
from daemon.workbench import Workbench
from patches.merge import SparsePatch
from patches.model import load_model
from policies.decision import Decision
from policies.gates import decide
from state.digests import Digests
from state.rows import RoundRow
from state.store import Store
from state.tensors import ModelFolder


@dataclass
class Round:
    """One attempt, as its worker sees it."""

    store: Store
    config: Config
    row: RoundRow
    reporter: Reporter
    files: ProbeFiles
    results: dict[str, dict[str, Any]]
    """What each finished step recorded, in this start or an earlier one."""

    def done(self, step: str, work: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """The step's recorded result, from an earlier start or from doing the work now."""
        if step not in self.results:
            self.reporter.progress(step, 0.0)
            self.results[step] = json.loads(json.dumps(dict(work())))
            self.reporter.step(step, self.results[step])
        return self.results[step]

    def progress(self, step: str) -> Callable[..., None]:
        """A callback that reports fraction and loss of a step."""
        return lambda fraction, loss=None: self.reporter.progress(step, fraction, loss)


def run(store: Store, config: Config, row: RoundRow, reporter: Reporter) -> Outcome:
    """Take one round to its outcome: ready with a candidate, rejected by the gates, or its batch quarantined."""
    files = judging.noted(probes.load(store.home, config), config.judge, store.home)
    row = settle(store, config, row, files)
    round_ = Round(store, config, row, reporter, files, dict(row.artefacts))
    with sound_models(store, row):
        return _KINDS[row.kind](round_)


def _batch(round_: Round) -> Outcome:
    store, config, row = round_.store, round_.config, round_.row
    assert row.batch is not None
    lineage = lineage_of(store, row.parent)
    earlier = earlier_batches(store, config, lineage, round_.files)
    try:
        batches = join(earlier, row.batch, take_in(store, config, row.batch, round_.files))
    except UnusableBatchError as err:
        return Outcome("quarantined", err.reasons, err.stats)
    taken = batches[row.batch]
    round_.done("parse", lambda: taken.stats | taken.split.counts() | {INPUTS: round_.files.digests})

    bench = _open_bench(round_, batches)
    claimed = partial(claims, store, lineage)
    work = Patching(bench, store.scratch(row.id), taken=taken, earlier=earlier, seed=_seed(row, config))
    patch = make_patch(work, claimed, done=round_.done, progress=round_.progress)
    merge = round_.done("merge", lambda: _merge(round_, patch))
    return _judge(round_, bench, batches, merge, lineage=lineage.then(merge["patch"], row.batch))


def _revert(round_: Round) -> Outcome:
    """Take one round's patch out and merge the others again; no training."""
    store, row = round_.store, round_.row
    target = store.version(row.target if row.target is not None else row.parent)
    lineage = lineage_of(store, row.parent).without(target.patch or "")
    if not lineage.patches:
        return _nothing_left(round_)
    merge = round_.done("remerge", lambda: _remerge(round_, lineage) | {INPUTS: round_.files.digests})
    batches = earlier_batches(store, round_.config, lineage, round_.files)
    return _judge(round_, _open_bench(round_, batches), batches, merge, lineage=lineage)


def _nothing_left(round_: Round) -> Outcome:
    ground, target = round_.store.ground_in_words(round_.row.parent), round_.row.target
    what = f"without v{target} no round is left" if target is not None else "there is no batch to learn"
    return Outcome("rejected", (f"{what}: the model is {ground}",))


def _consolidate(round_: Round) -> Outcome:
    """Derive one pair of patches from all batches together, from where the first round began; without one, if it is to go.

    What tells harm from lookalikes is learnt better from many categories at once than from one and repairs behind it.
    """
    store, row = round_.store, round_.row
    lineage = lineage_of(store, row.parent)
    if row.target is not None:
        lineage = lineage.without_batch(store.version(row.target).batch or "")
    if not lineage.batches:
        return _nothing_left(round_)
    if row.target is None and len(lineage.batches) == 1:  # a revert came first
        return Outcome("rejected", (f"v{row.parent} was made from 1 batch: there is nothing to learn together",))
    batches = earlier_batches(store, round_.config, lineage, round_.files)
    merge = _learn_together(round_, lineage, batches)
    return _judge(round_, _open_bench(round_, batches), batches, merge, lineage=lineage.consolidated(merge["patch"]))


def _learn_together(round_: Round, lineage: Lineage, batches: Mapping[str, TakenIn]) -> Mapping[str, Any]:
    """What the merge of a consolidation recorded, from an earlier start or from training now."""
    store, config, row = round_.store, round_.config, round_.row
    taken = together(batches, config.derive.max_rows)
    round_.done("gather", lambda: taken.stats | {INPUTS: round_.files.digests})
    if "merge" in round_.results:
        return round_.results["merge"]
    bench = _open_bench(round_, batches, ground_folder(store, lineage, store.scratch(row.id)))
    claimed = partial(claims, store, replace(lineage, patches=(), batches=(), num_together=0))
    # nothing where a batch is left out: not even which entries are trained is to depend on that one
    before = partial(written, store, lineage)
    scratch, seed = store.scratch(row.id), _seed(row, config)
    work = Patching(bench, scratch, taken=taken, earlier={}, seed=seed, written=before)
    patch = make_patch(work, claimed, done=round_.done, progress=round_.progress)
    return round_.done("merge", lambda: _merge_anew(round_, patch, lineage))


def _merge(round_: Round, patch: SparsePatch) -> dict[str, Any]:
    parent = ModelFolder.open(round_.store.model_path(round_.row.parent))
    edits = MergedEdits(parent, sparse_entries(patch))
    provenance = {"round": round_.row.id, "batch": round_.row.batch or "", "parent": f"v{round_.row.parent}"}
    digest = keep_patch(round_.store, patch, provenance, folder=round_.store.scratch(round_.row.id))
    return _plain(_write(round_, edits, digest))


def _merge_anew(round_: Round, patch: SparsePatch, lineage: Lineage) -> dict[str, Any]:
    """The candidate is the ground with this patch alone; its overlay undoes what earlier rounds wrote."""
    store, row = round_.store, round_.row
    edits = rebuilt_edits(store, lineage, ModelFolder.open(store.model_path(row.parent)), [sparse_entries(patch)])
    provenance = {"round": row.id, "batches": " ".join(lineage.batches), "parent": f"v{row.parent}"}
    return _plain(_write(round_, edits, keep_patch(store, patch, provenance, folder=store.scratch(row.id))))


def _remerge(round_: Round, lineage: Lineage) -> dict[str, Any]:
    parent = ModelFolder.open(round_.store.model_path(round_.row.parent))
    return _plain(_write(round_, remerge_edits(round_.store, lineage, parent), None))


def _write(round_: Round, edits: Mapping[str, Any], patch: str | None) -> Candidate:
    store, row = round_.store, round_.row
    return write_candidate(store, row.parent, store.scratch(row.id), edits=edits, patch=patch)


def _plain(candidate: Candidate) -> dict[str, Any]:
    return {
        "staging_model": candidate.model.name,
        "overlay": candidate.overlay.name,
        **candidate.digests.to_record(),
        "touched": candidate.touched,
        "patch": candidate.patch,
    }


def _judge(
    round_: Round, bench: Workbench, batches: Mapping[str, TakenIn], merge: Mapping[str, Any], *, lineage: Lineage
) -> Outcome:
    """Measure candidate, current version and v0 on the same gate probes; the gates decide."""
    folder = round_.store.scratch(round_.row.id) / merge["staging_model"]
    numbers = round_.done("evaluate", lambda: _evaluate(round_, bench, batches, folder))
    gate = round_.done("gate", lambda: _decide(round_, numbers))
    if not gate["accepted"]:
        return Outcome("rejected", tuple(gate["reasons"]))
    measured = {name: numbers[name] for name in ("candidate", "current", "base")}
    record = _record(round_, merge, lineage)
    record |= {"metrics": measured["candidate"], "gates": gate["gates"], "measured": measured}
    record["judge"] = numbers.get("judge")  # none where it was measured under an older alignd
    patch = round_.store.patch_path(merge["patch"]).name if merge["patch"] else None
    made = {"staging_model": merge["staging_model"], "overlay": merge["overlay"], "patch": patch, "record": record}
    return Outcome("ready", tuple(gate["reasons"]), made)


def _evaluate(round_: Round, bench: Workbench, batches: Mapping[str, TakenIn], folder: Path) -> dict[str, Any]:
    """The metrics of the candidate, of the current version and of v0, and the candidate's counts."""
    sets = gate_sets({sha256: taken.gate() for sha256, taken in batches.items()}, round_.files, round_.config)
    progress = round_.progress("evaluate")
    model = load_model(folder, dtype=round_.config.model.dtype, device=bench.device)
    candidate = measure_sets(bench, sets, model=model, progress=lambda done: progress(done / 3))
    del model
    current = measure_sets(bench, sets, progress=lambda done: progress((1 + done) / 3))
    with bench.base_model() as model:
        base = (
            current
            if model is bench.model
            else measure_sets(bench, sets, model=model, progress=lambda done: progress((2 + done) / 3))
        )
    return {
        "candidate": metrics(candidate),
        "current": metrics(current),
        "base": metrics(base),
        "counts": counts(candidate, round_.row.batch),
        "judge": judged_by(candidate, round_.config.judge, round_.files),
    }


def _decide(round_: Round, numbers: Mapping[str, Any]) -> dict[str, Any]:
    """The verdict of every gate on what was measured, and the decision they come to."""
    results = gate_results(numbers["counts"], numbers, _gates(round_))
    verdict = decide(results)
    if verdict.accepted and round_.row.kind == "consolidation" and round_.row.target is None:
        kept = keeps_all(round_.config, numbers)
        verdict = Decision(kept.accepted, (*verdict.reasons, *kept.reasons) if kept.accepted else kept.reasons)
    return {"accepted": verdict.accepted, "reasons": verdict.reasons, "gates": [result.to_dict() for result in results]}


def _gates(round_: Round) -> GatesSection:
    """The configured gates. What takes a batch out may bring refusals back, and that batch's harm; never the others'."""
    gates = round_.config.gates
    if round_.row.target is None:
        return gates
    lenient = {name: with_fields(getattr(gates, name), klass="wanted") for name in ("over_safety", "right")}
    return with_fields(gates, **lenient)


def _record(round_: Round, merge: Mapping[str, Any], lineage: Lineage) -> dict[str, Any]:
    """What VERSION.json says beside identity, gates and metrics."""
    steps = {name: result for name, result in round_.results.items() if name not in ("merge", "remerge")}
    return {
        "kind": round_.row.kind,
        **Digests.of_record(merge).to_record(),
        "touched": merge["touched"],
        "patch": merge["patch"],
        "lineage": lineage.to_dict(),
        "config": to_dict(round_.config),
        "seeds": {"round": _seed(round_.row, round_.config)},
        INPUTS: round_.files.digests,
        "steps": steps,
    }


def _open_bench(round_: Round, batches: Mapping[str, TakenIn], start: Path | None = None) -> Workbench:
    """Args: start: folder of the model that is trained and measured; the current version's when left out."""
    store, config = round_.store, round_.config
    harmful = [row.response for taken in batches.values() for row in taken.rows]
    bench = Workbench.open(
        config,
        start or store.model_path(round_.row.parent),
        store.model_path(0),
        round_.files,
        harmful=harmful,
        scorer=judging.scorer_of(config, store.home, round_.files),
    )
    bench.learn_judge()
    return bench


def _seed(row: RoundRow, config: Config) -> int:
    """One seed a round: the configured one and the round's number."""
    return config.seed * 1_000_003 + int(row.id.removeprefix("r"))


_KINDS: Final[Mapping[str, Callable[[Round], Outcome]]] = {
    "batch": _batch,
    "revert": _revert,
    "consolidation": _consolidate,
}
