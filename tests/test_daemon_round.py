"""A whole round on the tiny model, in this process: its steps, its deaths, its numbers, and what it may never do."""

from __future__ import annotations

import dataclasses
import gc
import json
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from structlog.testing import capture_logs
from transformers import PreTrainedModel

from daemon import making, worker
from daemon import round as method
from daemon.config import to_dict
from daemon.material import Material, Teachers, record_teachers
from daemon.patching import Patching
from daemon.probes import load
from daemon.progress import DoneEvent, FailedEvent, Outcome, decode_event
from daemon.steps import STEPS
from daemon.workbench import Workbench
from patches.derive import derive
from patches.errors import EmptyDifferenceSetError
from patches.mask import retention_mask
from patches.model import load_model
from policies.consolidation import is_no_worse
from policies.decision import Decision
from policies.search import Axes
from state import gc as collector
from state import patchfile
from state.durable import remove_tree
from state.errors import RefusedError, StoreCorruptError
from state.filesystem import FileSystem, use
from state.rows import VersionRow
from state.tensors import ModelFolder, from_float32, to_float32
from state.verify import verify
from tests.round_world import (
    NOW,
    UNSEARCHED,
    FakeReporter,
    Home,
    KilledError,
    config_of,
    content,
    deep,
    opened,
    pairs,
    tensors,
    write_pairs,
    write_probes,
)
from tests.state_world import rebuilt

SAFEPATCHING = {
    "preset": "safepatching",
    "merge": {"search": {"trials": 2, "retention_rates": [0.7, 1.0], "top_fractions": [0.4]}},
}
SEARCHED_TWICE = {"merge": {"search": {"trials": 2}}}
# top sets of everything have no difference
DIFFERENCE: dict[str, Any] = {
    "derive": {"backend": "full"},
    "merge": {"mask": "difference", "score": "tuned", "search": {"top_fractions": [0.4]}},
}


@pytest.fixture(autouse=True, scope="module")
def _light_collections() -> Iterator[None]:
    """A round collects garbage at times; what pytest and torch hold need not be walked through each time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def home(tmp_path: Path, tiny_folder: Path) -> Iterator[Home]:
    with opened(tmp_path / "home", tiny_folder) as made:
        yield made


@pytest.fixture(scope="module")
def bf16_folder(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model stored in bfloat16."""
    from patches.model import load_tokenizer

    folder = tmp_path_factory.mktemp("bf16") / "model"
    load_model(tiny_folder, dtype="bfloat16", device=torch.device("cpu")).save_pretrained(folder)
    load_tokenizer(tiny_folder).save_pretrained(folder)
    return folder


def _begun(home: Home, *changes: dict[str, Any], seed: int = 1) -> str:
    home.config = config_of(*changes)
    return home.begin(home.drop(seed)).id


def test_every_step_is_recorded_in_order_and_the_candidate_is_ready(home: Home) -> None:
    round_id = _begun(home)
    outcome = home.run(round_id)
    assert outcome.outcome == "ready"
    (told,) = home.reporters
    assert told.steps == list(STEPS["batch"])
    assert set(home.store.round(round_id).artefacts) == set(STEPS["batch"])
    assert list(dict.fromkeys(step for step, _ in told.seen)) == list(STEPS["batch"])
    assert home.commit(round_id, outcome).id == 1
    assert home.store.round(round_id).state == "published"


def test_the_fraction_of_a_step_never_falls(home: Home) -> None:
    home.play()
    fractions: dict[str, list[float]] = {}
    for step, fraction in home.reporters[0].seen:
        fractions.setdefault(step, []).append(fraction)
    assert {step: sorted(seen) for step, seen in fractions.items()} == fractions


@pytest.fixture(scope="module")
def uninterrupted(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What two rounds in a row leave in the store when nothing dies."""
    with opened(tmp_path_factory.mktemp("calm") / "home", tiny_folder, config_of(SEARCHED_TWICE)) as home:
        home.play(1)
        round_id = home.begin(home.drop(2)).id
        return _outcome_of(home, round_id, home.run(round_id))


def _outcome_of(home: Home, round_id: str, outcome: Any) -> dict[str, bytes]:
    scratch = home.store.scratch(round_id)
    found = content(scratch / outcome.result["staging_model"])
    found["overlay"] = (scratch / outcome.result["overlay"]).read_bytes()
    found["record"] = json.dumps(outcome.result["record"], sort_keys=True).encode()
    found["patch"] = (scratch / outcome.result["patch"]).read_bytes()
    return found


@pytest.mark.parametrize("is_heard", [True, False], ids=["after the step is recorded", "before it is recorded"])
def test_a_round_that_dies_at_every_single_step_ends_as_one_that_never_died(
    tmp_path: Path, tiny_folder: Path, uninterrupted: dict[str, bytes], is_heard: bool
) -> None:
    with opened(tmp_path / "home", tiny_folder, config_of(SEARCHED_TWICE)) as home:
        home.play(1)
        round_id = home.begin(home.drop(2)).id
        for step in STEPS["batch"]:
            with pytest.raises(KilledError):
                home.run(round_id, kill_at=step, is_heard=is_heard)
        outcome = home.run(round_id)
        assert _outcome_of(home, round_id, outcome) == uninterrupted
        home.commit(round_id, outcome)
        assert verify(home.store, deep=True) == []


def test_a_finished_step_is_never_done_again(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def count(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            calls.append(name)
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, name, counted)

    for name in ("choose", "derive_over_safety", "derive_safety", "score", "describe_masks"):
        count(Patching, name)
    count(making, "search_merge")
    for name in ("write_candidate", "measure_sets"):
        count(method, name)
    round_id = _begun(home)
    for step in STEPS["batch"]:
        with pytest.raises(KilledError):
            home.run(round_id, kill_at=step)
    assert home.run(round_id).outcome == "ready"
    assert {name: calls.count(name) for name in calls} == {
        "choose": 1,
        "derive_over_safety": 1,
        "derive_safety": 1,
        "score": 1,
        "describe_masks": 1,
        "search_merge": 1,
        "write_candidate": 1,
        "measure_sets": 2,  # the candidate, and v0, which is current too
    }


def test_a_rejection_is_the_same_when_the_worker_dies_behind_it(home: Home) -> None:
    round_id = _begun(home, {"gates": {"degenerate": {"max": 0.0}}})
    with pytest.raises(KilledError):
        home.run(round_id, kill_at="gate")
    again = home.run(round_id)
    assert again.outcome == "rejected" and "gate degenerate failed" in again.reasons[0]
    assert list(again.reasons) == home.store.round(round_id).artefacts["gate"]["reasons"]


def test_the_over_safety_patch_lies_only_in_the_rounds_scratch_folder(home: Home) -> None:
    round_id = _begun(home, UNSEARCHED)
    outcome = home.run(round_id)
    home.commit(round_id, outcome)
    scratch = home.store.scratch(round_id)
    patch = max(
        (delta.flatten() for delta in load_over_safety(scratch).values()), key=lambda delta: delta.count_nonzero()
    )
    at = int(patch.unfold(0, 64, 1).ne(0).sum(1).argmax())
    run_of_it, values = (found[:64].numpy().tobytes() for found in (patch[at:], patch[patch != 0]))
    assert run_of_it in (scratch / "over_safety.safetensors").read_bytes()
    assert int(patch[at : at + 64].count_nonzero()) > 8 and len(values) == 256
    elsewhere = {name: data for name, data in content(home.path).items() if not name.startswith("store/scratch/")}
    assert [name for name, data in elsewhere.items() if run_of_it in data or values in data] == []


def load_over_safety(scratch: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(scratch / "over_safety.safetensors")


def test_without_beta_nothing_of_the_over_safety_patch_is_published(home: Home) -> None:
    home.config = config_of(DIFFERENCE, {"merge": {"search": {"trials": 1, "betas": [0.0]}}})
    version = home.play()
    assert version.patch is not None
    kinds = patchfile.load_kinds(home.store, version.patch)
    assert {int(kind) for _, found in kinds.values() for kind in found} == {1}


def test_where_nothing_is_refused_a_round_does_without_an_over_safety_patch(home: Home) -> None:
    round_id = _begun(home, UNSEARCHED, {"derive": {"over_safety": {"skip_below": 0.25}}})
    outcome = home.run(round_id)
    assert not any(delta.any() for delta in load_over_safety(home.store.scratch(round_id)).values())
    assert "nothing is left to loosen" in outcome.result["record"]["steps"]["over_safety"]["stop_reason"]
    assert home.commit(round_id, outcome).touched_fraction > 0


def test_both_patches_and_the_version_change_chosen_entries_only(home: Home) -> None:
    from safetensors.torch import load_file

    home.config = config_of(UNSEARCHED, {"derive": {"sparse_fraction": 0.05}})
    version = home.play()
    scratch = home.store.scratch(version.round or "")
    chosen, over = load_file(scratch / "entries.safetensors"), load_over_safety(scratch)
    safety = load_file(scratch / "safety.safetensors")
    assert all(int(mask.sum()) == int(0.05 * mask.numel()) for mask in chosen.values())
    for patch in (over, safety):
        assert any(bool(delta.any()) for delta in patch.values())
        assert not any(bool(delta[~chosen[name]].any()) for name, delta in patch.items())
    before, after = (tensors(home.store.model_path(number)) for number in (0, version.id))
    for name, value in after.items():
        free = ~chosen[name] if name in chosen else torch.ones_like(value, dtype=torch.bool)
        assert torch.equal(value[free], before[name][free])
    told = home.record(version)["steps"]["choose"]
    assert told["fraction"] == 0.05 and set(told["sizes"]) == set(chosen)


def test_a_resumed_round_trains_the_entries_that_were_chosen_before_it_died(home: Home) -> None:
    from safetensors.torch import load_file, save_file

    round_id = _begun(home, UNSEARCHED)
    with pytest.raises(KilledError):
        home.run(round_id, kill_at="choose")
    path = home.store.scratch(round_id) / "entries.safetensors"
    others = {name: ~mask for name, mask in load_file(path).items()}  # what no choice would come to
    save_file(others, path)
    home.run(round_id)
    assert not any(bool(delta[~others[name]].any()) for name, delta in load_over_safety(path.parent).items())
    assert any(bool(delta.any()) for delta in load_over_safety(path.parent).values())


@pytest.mark.parametrize("backend", ["full", "lora"])
def test_a_back_end_that_trains_everything_chooses_nothing(home: Home, backend: str) -> None:
    round_id = _begun(home, UNSEARCHED, {"derive": {"backend": backend, "lora_rank": 2}})
    home.run(round_id)
    assert home.store.round(round_id).artefacts["choose"] == {"fraction": 1.0, "sizes": {}}
    assert not (home.store.scratch(round_id) / "entries.safetensors").exists()


VARIANTS: dict[str, dict[str, Any]] = {
    "alignd": {},
    "safepatching": SAFEPATCHING,
    "independent, joint": {"derive": {"order": "independent"}},
    "full": {"derive": {"backend": "full"}, "merge": {"search": {"top_fractions": [0.3]}}},
    "sequential, difference, opposed": deep(DIFFERENCE, {"merge": {"accumulate": "opposed"}}),
    "difference, protect, delta": deep(DIFFERENCE, {"merge": {"score": "delta", "accumulate": "protect"}}),
    "difference, magnitude, off": deep(DIFFERENCE, {"merge": {"score": "magnitude", "accumulate": "off"}}),
    "joint, opposed": {"merge": {"mask": "joint", "accumulate": "opposed"}},
    "joint, protect": {"merge": {"mask": "joint", "accumulate": "protect"}},
    "lora": {"derive": {"backend": "lora", "lora_rank": 2}},
    "lora, safepatching": {**SAFEPATCHING, "derive": {"backend": "lora", "lora_rank": 2}},
    "rescaled retention": {"merge": {"rescale": True, "search": {"retention_rates": [0.5]}}},
    "simnpo": {"derive": {"safety": {"objective": "simnpo"}}},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_in_every_variant_two_rounds_publish_the_formula_bit_for_bit(home: Home, name: str) -> None:
    home.config = config_of(SEARCHED_TWICE, VARIANTS[name])
    for seed in (1, 2):
        parent = home.store.current().id
        claimed = _claims(home, parent) if home.config.merge.accumulate != "off" else {}
        version = home.play(seed)
        expected = _merged_by_hand(home, version.round or "", ModelFolder.open(home.store.model_path(parent)), claimed)
        published = ModelFolder.open(home.store.model_path(version.id))
        for tensor in published.tensors:
            assert np.array_equal(published.read_raw(tensor), expected[tensor]), tensor
    assert verify(home.store, deep=True) == []


def _claims(home: Home, version_id: int) -> dict[str, tuple[dict[int, int], ...]]:
    """Per tensor, entry -> kind, of every patch that a version is made of."""
    found: dict[str, tuple[dict[int, int], ...]] = {}
    for digest in home.store.version_record(version_id).get("lineage", {}).get("patches", []):
        for name, (indices, kinds) in patchfile.load_kinds(home.store, digest).items():
            one = dict(zip(indices.tolist(), kinds.tolist(), strict=True))
            found[name] = (*found.get(name, ()), one)
    return found


def _merged_by_hand(home: Home, round_id: str, parent: ModelFolder, claimed: Any) -> dict[str, Any]:
    """θ + α MS⊙rS⊙δS + β MO⊙rO⊙δO from what lies in the scratch folder, an entry list at a time."""
    from safetensors.numpy import load_file

    scratch, settings = home.store.scratch(round_id), home.config.merge
    safety, over = load_file(scratch / "safety.safetensors"), load_file(scratch / "over_safety.safetensors")
    scored = load_file(scratch / "scores.safetensors") if settings.mask == "difference" else {}
    row = home.store.round(round_id)
    point = row.artefacts["search"]["winner"]["point"]
    seed, p = int(round_id[1:]), point["retention_rate"]
    expected = {}
    for name, tensor in parent.tensors.items():
        raw = np.array(parent.read_raw(name))
        if name in safety:
            deltas = point["alpha"] * safety[name], point["beta"] * over[name]
            marked = _marks(name, deltas, scored, point, joint=settings.mask == "joint")
            marked = _unclaimed(marked, claimed.get(name, ()), settings.accumulate)
            kept = [
                mask & retention_mask(torch.Size(mask.shape), p, seed=seed, key=f"{kind}:{name}").numpy()
                for mask, kind in zip(marked, ("safety", "over_safety"), strict=True)
            ]
            scale = np.float32(1 / p if settings.rescale else 1)
            total = (scale * (deltas[0] * kept[0] + deltas[1] * kept[1])).astype(np.float32).ravel()
            at = total.nonzero()[0]
            raw[at] = from_float32(to_float32(raw[at], tensor.dtype) + total[at], tensor.dtype)
        expected[name] = raw
    return expected


def _marks(name: str, deltas: Any, scored: Any, point: Any, *, joint: bool) -> tuple[Any, Any]:
    if joint:
        together = _top(np.abs(deltas[0] + deltas[1]), point["safety_fraction"])
        return together, together
    safety = _top(scored[f"safety:{name}"], point["safety_fraction"])
    over = _top(scored[f"over_safety:{name}"], point["over_safety_fraction"])
    return safety & ~over, over & ~safety


def _top(score: Any, fraction: float) -> Any:
    order = np.argsort(-score.ravel(), kind="stable")[: int(fraction * score.size)]
    mask = np.zeros(score.size, bool)
    mask[order] = True
    return mask.reshape(score.shape)


def _unclaimed(marked: tuple[Any, Any], claimed: Any, accumulate: str) -> tuple[Any, Any]:
    safety, over = (mask.copy() for mask in marked)
    for one in claimed:
        for index, kind in one.items():
            if accumulate == "protect" or kind & 2:
                safety.flat[index] = False
            if accumulate == "protect" or kind & 1:
                over.flat[index] = False
    return safety, over


@pytest.mark.parametrize(
    ("accumulate", "may_share"),
    [("opposed", {(1, 1), (2, 2)}), ("protect", set()), ("off", {(1, 1), (2, 2), (1, 2), (2, 1)})],
)
def test_what_an_earlier_round_claimed_is_left_alone_as_the_setting_says(
    home: Home, accumulate: str, may_share: set[tuple[int, int]]
) -> None:
    home.config = config_of(DIFFERENCE, {"merge": {"accumulate": accumulate, "search": {"trials": 1}}})
    first, second = (patchfile.load_kinds(home.store, home.play(seed).patch or "") for seed in (1, 2))
    shared = set()
    for name, (indices, kinds) in second.items():
        before = dict(zip(first[name][0].tolist(), first[name][1].tolist(), strict=True))
        shared |= {(before[i], k) for i, k in zip(indices.tolist(), kinds.tolist(), strict=True) if i in before}
    assert shared == may_share


def test_the_back_end_may_change_between_rounds(home: Home) -> None:
    cut = {"merge": {"accumulate": "opposed", "search": {"top_fractions": [0.3]}}}
    for seed, backend in enumerate(("full", "lora", "sparse", "full"), 1):
        home.config = config_of(UNSEARCHED, cut, {"derive": {"backend": backend}})
        home.play(seed)
    assert verify(home.store, deep=True) == []


def test_the_sets_that_are_told_are_those_of_the_merge_that_won(home: Home) -> None:
    one = {"alphas": [1.0], "repair_below": 0.0, "betas": [1.0], "retention_rates": [1.0]}
    search = {"trials": 2, "top_fractions": [0.4, 0.1], "touched_weight": 100.0, "min_gain": 0.0, **one}
    round_id = _begun(home, {"derive": {"backend": "full"}, "merge": {"search": search}})
    home.run(round_id)
    found = home.store.round(round_id).artefacts
    assert found["search"]["winner"]["point"]["safety_fraction"] == 0.1
    assert found["mask"]["safety_sizes"].values() and max(found["mask"]["safety_sizes"].values()) < 0.2


def test_sets_under_the_floor_fail_the_round_loudly(home: Home) -> None:
    round_id = _begun(home, DIFFERENCE, {"merge": {"score": "base"}})
    with pytest.raises(EmptyDifferenceSetError, match="floor"):
        home.run(round_id)
    assert "mask" not in home.store.round(round_id).artefacts


def test_the_sequential_order_trains_safety_from_the_loosened_model_and_the_independent_one_does_not(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts: list[dict[str, torch.Tensor]] = []
    real = derive

    def noted(runner: Any, *args: Any, **kwargs: Any) -> Any:
        starts.append({name: value.clone() for name, value in runner.model.state_dict().items()})
        return real(runner, *args, **kwargs)

    monkeypatch.setattr("daemon.derivation.derive", noted)
    name = "model.layers.0.mlp.up_proj.weight"
    moved = {}
    for order in ("independent", "sequential"):
        with opened(tmp_path / order, tiny_folder) as home:
            round_id = _begun(home, UNSEARCHED, {"derive": {"order": order}})
            home.run(round_id)
            patch = load_over_safety(home.store.scratch(round_id))[name]
            over_start, safety_start = (start[name] for start in starts[-2:])
            assert torch.equal(over_start, tensors(tiny_folder)[name])
            moved[order] = (
                bool(torch.equal(safety_start, over_start + patch)),
                bool(torch.equal(safety_start, over_start)),
            )
    assert moved == {"independent": (False, True), "sequential": (True, False)}


def test_a_bf16_base_stays_bf16_and_each_entry_is_rounded_once(tmp_path: Path, bf16_folder: Path) -> None:
    with opened(tmp_path / "home", bf16_folder, config_of(UNSEARCHED)) as home:
        version = home.play()
        published = ModelFolder.open(home.store.model_path(version.id))
        assert {tensor.dtype for tensor in published.tensors.values()} == {"BF16"}
        expected = _merged_by_hand(home, version.round or "", ModelFolder.open(home.store.model_path(0)), {})
        for name in published.tensors:
            assert np.array_equal(published.read_raw(name), expected[name]), name
        home.play(2)
        assert verify(home.store, deep=True) == []


def test_a_base_of_several_files_works_and_unchanged_ones_cost_nothing(
    tmp_path: Path, tiny_sharded_folder: Path
) -> None:
    with opened(tmp_path / "home", tiny_sharded_folder, config_of(UNSEARCHED)) as home:
        version = home.play()
        base, made = home.store.model_path(0), home.store.model_path(version.id)
        assert sorted(path.name for path in base.iterdir()) == sorted(path.name for path in made.iterdir())
        assert verify(home.store, deep=True) == []


def test_what_was_evaluated_is_byte_for_byte_what_is_published(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluated: list[tuple[dict[str, bytes], dict[str, torch.Tensor]]] = []

    def loading(folder: Path, **kwargs: Any) -> PreTrainedModel:
        model = load_model(folder, **kwargs)
        evaluated.append((content(folder), {name: value.clone() for name, value in model.state_dict().items()}))
        return model

    monkeypatch.setattr(method, "load_model", loading)
    version = home.play()
    ((files, weights),) = evaluated
    assert content(home.store.model_path(version.id)) == files
    assert all(torch.equal(value, weights[name]) for name, value in tensors(home.store.model_path(version.id)).items())


def test_a_reverted_last_round_gives_its_parents_exact_bytes(home: Home) -> None:
    home.config = config_of(UNSEARCHED)
    home.play(1)
    home.play(2)
    before = content(home.store.model_path(1))
    version = home.revert("v2")
    assert content(home.store.model_path(version.id)) == before
    assert home.record(version)["lineage"] == home.record(home.store.version(1))["lineage"]
    assert home.reporters[-1].steps == list(STEPS["revert"])


def test_a_reverted_middle_round_gives_the_base_with_the_other_patches(home: Home) -> None:
    home.config = config_of(UNSEARCHED)
    versions = [home.play(seed) for seed in (1, 2, 3)]
    version = home.revert("v2")
    base, made = (ModelFolder.open(home.store.model_path(number)) for number in (0, version.id))
    expected = {name: np.array(base.read_raw(name)) for name in base.tensors}
    for kept in (versions[0], versions[2]):
        for name, (indices, deltas) in patchfile.load(home.store, kept.patch or "").items():
            raw = expected[name]
            raw[indices] = (raw[indices].view(np.float32) + deltas).view(np.uint32)
    assert all(np.array_equal(made.read_raw(name), expected[name]) for name in expected)
    assert home.record(version)["lineage"]["patches"] == [versions[0].patch, versions[2].patch]
    assert set(home.record(version)["metrics"]["harm_by_batch"]) == {
        v.batch[:12] for v in (versions[0], versions[2]) if v.batch
    }
    assert home.play(4).parent == version.id
    assert verify(home.store, deep=True) == []


def test_a_reverted_batch_may_come_again(home: Home) -> None:
    home.config = config_of(UNSEARCHED)
    first, second = home.play(1), home.play(2)
    home.revert("v1")
    assert first.batch is not None
    home.store.retry(first.batch, actor="test", now=NOW)
    round_ = home.begin(first.batch)
    again = home.commit(round_.id, home.run(round_.id))
    assert home.record(again)["lineage"]["batches"] == [second.batch, first.batch]


def test_the_only_round_cannot_be_taken_out_for_that_would_publish_the_unaligned_base(home: Home) -> None:
    home.config = config_of(UNSEARCHED)
    home.play(1)
    with pytest.raises(RefusedError, match="v1 is the only round in v1: without it the model is the unaligned v0"):
        home.store.request_revert("v1", actor="test", reason="wrong", now=NOW)
    home.play(2)
    home.revert("v1")
    with pytest.raises(RefusedError, match="v2 is the only round in v3"):
        home.store.request_revert("v2", actor="test", reason="wrong", now=NOW)


def test_of_two_reverts_that_would_leave_no_round_the_second_is_rejected(home: Home) -> None:
    home.config = config_of(UNSEARCHED)
    home.play(1)
    home.play(2)
    asked = [home.store.request_revert(name, actor="test", reason="wrong", now=NOW) for name in ("v1", "v2")]
    for row in asked:
        home.store.begin_queued(row.id, config=to_dict(home.config), now=NOW)
        outcome = home.run(row.id)
        if outcome.outcome == "ready":
            home.commit(row.id, outcome)
    assert outcome.outcome == "rejected"
    assert outcome.reasons == ("without v2 no round is left: the model is the unaligned v0",)


def test_a_version_that_took_a_round_out_cannot_be_taken_out_itself(home: Home) -> None:
    home.config = config_of(UNSEARCHED)
    home.play(1)
    home.play(2)
    version = home.revert("v1")
    with pytest.raises(RefusedError, match=f"{version.name} has no round to take out"):
        home.store.request_revert(version.name, actor="test", reason="undo", now=NOW)


def _learnt_together(home: Home, version: VersionRow) -> dict[str, np.ndarray]:
    """The base with one version's patch alone, by hand."""
    base = ModelFolder.open(home.store.model_path(0))
    expected = {name: np.array(base.read_raw(name)) for name in base.tensors}
    for name, (indices, deltas) in patchfile.load(home.store, version.patch or "").items():
        expected[name][indices] = (expected[name][indices].view(np.float32) + deltas).view(np.uint32)
    return expected


def _weights(home: Home, version: VersionRow) -> dict[str, np.ndarray]:
    made = ModelFolder.open(home.store.model_path(version.id))
    return {name: made.read_raw(name) for name in made.tensors}


def _entries(home: Home, version: VersionRow) -> set[tuple[str, int]]:
    """What its patch writes."""
    patch = patchfile.load(home.store, version.patch or "")
    return {(name, int(i)) for name, (indices, _) in patch.items() for i in indices}


def _same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def test_a_consolidation_is_the_base_with_one_patch_of_all_batches(home: Home) -> None:
    home.config = config_of(UNSEARCHED)
    first, second = home.play(1), home.play(2)
    version = home.consolidate()
    assert _same(_weights(home, version), _learnt_together(home, version))
    record = home.record(version)
    assert record["kind"] == "consolidation" and version.batch is None
    assert record["lineage"] == {
        "patches": [version.patch], "batches": [first.batch, second.batch], "num_together": 2,
    }  # fmt: skip
    assert home.reporters[-1].steps == list(STEPS["consolidation"])
    counts = [home.store.round(row.round or "").artefacts["parse"]["num_train"] for row in (first, second)]
    assert (record["steps"]["gather"]["num_batches"], record["steps"]["gather"]["num_train"]) == (2, sum(counts))
    assert set(record["metrics"]["harm_by_batch"]) == {row.batch[:12] for row in (first, second) if row.batch}
    assert _entries(home, version) <= _entries(home, first) | _entries(home, second)
    assert verify(home.store, deep=True) == []


def test_rounds_behind_a_consolidation_build_on_it_and_can_be_taken_out_alone(home: Home) -> None:
    home.config = config_of(UNSEARCHED)
    home.play(1)
    home.play(2)
    together = home.consolidate()
    third = home.play(3)
    assert home.record(third)["lineage"]["patches"] == [together.patch, third.patch]
    version = home.revert(third.name)
    assert home.record(version)["kind"] == "revert"
    assert _same(_weights(home, version), _weights(home, together))
    assert home.record(version)["lineage"] == home.record(together)["lineage"]


def test_a_batch_that_was_learnt_together_is_taken_out_by_learning_the_others_anew(home: Home) -> None:
    home.config = config_of(UNSEARCHED)
    first, second, together = home.play(1), home.play(2), home.consolidate()
    with pytest.raises(RefusedError, match="v3 learnt its batches together: it has no batch of its own") as caught:
        home.store.request_revert(together.name, actor="test", reason="undo", now=NOW)
    assert "`alignd rollback v2` goes back to before" in caught.value.hint
    third = home.play(3)
    version = home.revert(first.name)
    record = home.record(version)
    assert (record["kind"], record["lineage"]["batches"]) == ("consolidation", [second.batch, third.batch])
    assert record["steps"]["gather"]["num_batches"] == 2
    assert _same(_weights(home, version), _learnt_together(home, version))
    assert not _entries(home, version) <= _entries(home, together) | _entries(home, third)  # depends on nothing of v1's
    batches = [home.store.ledger.batch(row.batch or "") for row in (first, second, third)]
    assert [row and row.state for row in batches] == ["reverted", "published", "published"]


def test_a_revert_that_waited_for_a_consolidation_learns_the_others_anew(home: Home) -> None:
    home.config = config_of(UNSEARCHED)
    home.play(1)
    second = home.play(2)
    together = home.store.request_consolidation(actor="test", reason="", now=NOW)
    asked = home.store.request_revert("v1", actor="test", reason="wrong", now=NOW)
    assert asked.kind == "revert"
    for row in (together, asked):
        round_ = home.store.begin_queued(row.id, config=to_dict(home.config), now=NOW)
        version = home.commit(row.id, home.run(row.id))
    assert round_.kind == "consolidation"
    assert home.record(version)["lineage"]["batches"] == [second.batch]


def test_a_consolidation_that_waited_for_a_revert_and_has_one_batch_left_learns_nothing(home: Home) -> None:
    home.config = config_of(UNSEARCHED)
    home.play(1)
    home.play(2)
    asked = home.store.request_revert("v2", actor="test", reason="wrong", now=NOW)
    together = home.store.request_consolidation(actor="test", reason="", now=NOW)
    home.store.begin_queued(asked.id, config=to_dict(home.config), now=NOW)
    home.commit(asked.id, home.run(asked.id))
    home.store.begin_queued(together.id, config=to_dict(home.config), now=NOW)
    outcome = home.run(together.id)
    reasons = ("v3 was made from 1 batch: there is nothing to learn together",)
    assert (outcome.outcome, outcome.reasons) == ("rejected", reasons)


def test_of_two_that_were_learnt_together_one_is_left(home: Home) -> None:
    home.config = config_of(UNSEARCHED)
    home.play(1)
    home.play(2)
    home.consolidate()
    asked = [home.store.request_revert(name, actor="test", reason="wrong", now=NOW) for name in ("v1", "v2")]
    outcomes = []
    for row in asked:
        home.store.begin_queued(row.id, config=to_dict(home.config), now=NOW)
        outcomes.append(home.run(row.id))
        if outcomes[-1].outcome == "ready":
            home.commit(row.id, outcomes[-1])
    assert [outcome.outcome for outcome in outcomes] == ["ready", "rejected"]
    assert outcomes[-1].reasons == ("without v2 no round is left: the model is the unaligned v0",)


def test_a_consolidation_that_loses_something_is_not_taken(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    home.config = config_of(UNSEARCHED)
    home.play(1)
    home.play(2)
    seen: list[tuple[Axes, Axes]] = []

    def worse(candidate: Axes, current: Axes, *rest: Any) -> Decision:
        seen.append((candidate, current))
        return is_no_worse(dataclasses.replace(candidate, utility=-1.0), current, *rest)

    monkeypatch.setattr("daemon.searching.is_no_worse", worse)
    asked = home.store.request_consolidation(actor="test", reason="", now=NOW)
    home.store.begin_queued(asked.id, config=to_dict(home.config), now=NOW)
    outcome = home.run(asked.id)
    assert outcome.outcome == "rejected" and "would be lost, and nothing new is learnt" in outcome.reasons[0]
    numbers = home.store.round(asked.id).artefacts["evaluate"]
    assert [axes.utility for axes in seen[0]] == [numbers[name]["utility"] for name in ("candidate", "current")]


@pytest.mark.parametrize("kill_at", ["", "merge"])
def test_a_consolidation_trains_from_the_base_and_all_later_steps_look_at_the_current_version(
    home: Home, monkeypatch: pytest.MonkeyPatch, kill_at: str
) -> None:
    home.config = config_of(UNSEARCHED)
    home.play(1)
    second = home.play(2)
    started: list[Path] = []
    models: list[weakref.ref[PreTrainedModel]] = []
    opened_as = Workbench.open

    def noting(config: Any, current: Path, *rest: Any, **more: Any) -> Workbench:
        assert [model() for model in models] == [None] * len(started)  # or a model too many is in memory
        started.append(current)
        bench = opened_as(config, current, *rest, **more)
        models.append(weakref.ref(bench.model))
        return bench

    monkeypatch.setattr(Workbench, "open", noting)
    asked = home.store.request_consolidation(actor="test", reason="", now=NOW)
    home.store.begin_queued(asked.id, config=to_dict(home.config), now=NOW)
    if kill_at:
        with pytest.raises(KilledError):
            home.run(asked.id, kill_at=kill_at)
    home.commit(asked.id, home.run(asked.id))
    # once each, also by two starts: what was trained from is not opened again
    assert started == [home.store.model_path(0), home.store.model_path(second.id)]


def test_a_consolidation_measures_against_the_current_version_and_not_against_where_it_began(home: Home) -> None:
    home.config = config_of(UNSEARCHED)
    home.play(1)
    second = home.play(2)
    numbers = home.record(home.consolidate())["measured"]
    before = home.record(second)["measured"]
    assert numbers["current"]["utility_nll"] == before["candidate"]["utility_nll"] != numbers["base"]["utility_nll"]


def test_a_killed_consolidation_goes_on_where_it_was(home: Home) -> None:
    home.config = config_of(UNSEARCHED)
    home.play(1)
    home.play(2)
    asked = home.store.request_consolidation(actor="test", reason="", now=NOW)
    round_ = home.store.begin_queued(asked.id, config=to_dict(home.config), now=NOW)
    for step in STEPS["consolidation"]:
        with pytest.raises(KilledError):
            home.run(round_.id, kill_at=step)
    steps = [step for reporter in home.reporters[2:] for step in reporter.steps]
    assert steps == list(STEPS["consolidation"])
    version = home.commit(round_.id, home.run(round_.id))
    assert _same(_weights(home, version), _learnt_together(home, version))


def test_a_killed_revert_goes_on_where_it_was(home: Home) -> None:
    home.config = config_of(UNSEARCHED)
    home.play(1)
    home.play(2)
    asked = home.store.request_revert("v2", actor="test", reason="wrong", now=NOW)
    round_ = home.store.begin_queued(asked.id, config=to_dict(home.config), now=NOW)
    for step in STEPS["revert"]:
        with pytest.raises(KilledError):
            home.run(round_.id, kill_at=step)
    version = home.commit(round_.id, home.run(round_.id))
    assert content(home.store.model_path(version.id)) == content(home.store.model_path(1))


def test_every_version_is_rebuilt_bit_for_bit_after_its_folder_was_collected(home: Home) -> None:
    home.config = config_of(UNSEARCHED, SAFEPATCHING)
    for seed in (1, 2, 3):
        home.play(seed)
    home.revert("v2")
    before = {number: content(home.store.model_path(number)) for number in (1, 2)}
    collector.run(home.store, keep_materialized=1, now=NOW, actor="test")
    assert not home.store.is_materialized(1) and not home.store.is_materialized(2)
    for number, files in before.items():
        assert content(rebuilt(home.store, number)) == files


def test_the_gates_numbers_and_reasons_are_in_the_version(home: Home) -> None:
    version = home.play()
    record = home.record(version)
    gates = {gate["name"]: gate for gate in record["gates"]}
    assert set(gates) == {"harm", "new_harm", "standing_harm", "over_safety", "right", "utility", "degenerate", "drift"}
    for gate in gates.values():
        assert gate["verdict"] == "pass" and gate["reasons"] and gate["num_samples"] >= 3 and gate["value"] is not None
    low, high = gates["harm"]["interval"]
    assert low <= gates["harm"]["value"] <= high
    assert (
        set(record["measured"]) == {"candidate", "current", "base"}
        and record["metrics"] == record["measured"]["candidate"]
    )
    assert record["seeds"] and record["config"]["merge"] and set(record["inputs"]) == {
        "probes.harm", "probes.over_safety", "probes.utility", "derive.retain.path"
    }  # fmt: skip
    assert version.metrics["harm_rate"] == gates["harm"]["value"]


def test_the_gates_numbers_and_reasons_are_in_the_rejected_round(home: Home) -> None:
    round_id = _begun(home, {"gates": {"degenerate": {"max": 0.0}, "utility": {"min": 0.5}}})
    outcome = home.run(round_id)
    assert outcome.outcome == "rejected" and not outcome.result
    assert any("degenerate" in reason for reason in outcome.reasons)
    assert any("utility" in reason and "0.5" in reason for reason in outcome.reasons)
    gate = home.store.round(round_id).artefacts["gate"]
    assert (
        gate["accepted"] is False and {found["name"]: found["verdict"] for found in gate["gates"]}["utility"] == "fail"
    )


@pytest.mark.parametrize(
    ("spoil", "gate"),
    [
        (lambda home: (home / "probes" / "utility.jsonl").unlink(), "utility"),
        (lambda home: (home / "probes" / "over_safety.jsonl").write_text(""), "over_safety"),
        (lambda home: write_pairs(home / "probes" / "utility.jsonl", pairs("please", 2)), "utility"),
    ],
    ids=["missing", "empty", "too few"],
)
def test_what_could_not_be_measured_is_never_published(home: Home, spoil: Any, gate: str) -> None:
    spoil(home.path)
    outcome = home.run(_begun(home, UNSEARCHED))
    assert outcome.outcome == "rejected"
    assert outcome.reasons[0].startswith(f"gate {gate} is inconclusive")


def test_a_measurement_that_is_no_number_is_never_published(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("patches.evaluate._mean_nll", lambda *_: float("nan"))
    outcome = home.run(_begun(home, UNSEARCHED, {"gates": {"drift": {"class": "required"}}}))
    assert outcome.outcome == "rejected" and "gate drift is inconclusive" in outcome.reasons[0]


def test_without_a_required_gate_nothing_is_published(home: Home) -> None:
    names = ("harm", "new_harm", "standing_harm", "over_safety", "right", "utility", "degenerate", "drift")
    outcome = home.run(_begun(home, UNSEARCHED, {"gates": {name: {"class": "wanted"} for name in names}}))
    assert outcome.outcome == "rejected" and "no required gate" in outcome.reasons[0]


def test_without_probes_and_retain_rows_the_gates_say_what_is_missing_and_nothing_breaks(home: Home) -> None:
    for path in (*(home.path / "probes").iterdir(), home.path / "retain.jsonl"):
        path.unlink()
    outcome = home.run(_begun(home, UNSEARCHED))
    assert outcome.outcome == "rejected"
    said = " ".join(outcome.reasons)
    assert "over_safety is inconclusive" in said and "utility is inconclusive" in said


def test_a_batch_that_became_unusable_is_quarantined_by_its_round(home: Home) -> None:
    round_id = _begun(home)
    home.config = config_of({"inbox": {"min_rows": 500}})
    row = home.store.round(round_id)
    outcome = method.run(home.store, home.config, row, FakeReporter(home.store, round_id))
    assert outcome.outcome == "quarantined" and "at least 500 are needed" in outcome.reasons[0]


def test_later_probes_and_settings_do_not_make_an_earlier_batch_stop_a_new_one(home: Home) -> None:
    home.config = config_of(UNSEARCHED)
    home.play(1)
    known = pairs("how do I", 24, 1)
    write_pairs(home.path / "probes" / "harm.jsonl", known[:10])
    home.config = config_of(UNSEARCHED, {"inbox": {"min_rows": 20}})
    version = home.play(2)
    assert len(home.record(version)["metrics"]["harm_by_batch"]) == 2


def test_harm_is_measured_on_the_held_out_rows_of_every_batch_so_far(home: Home) -> None:
    home.config = config_of(UNSEARCHED)
    versions = [home.play(seed) for seed in (1, 2, 3)]
    metrics = home.record(versions[-1])["metrics"]
    assert set(metrics["harm_by_batch"]) == {version.batch[:12] for version in versions if version.batch}


def test_another_seed_gives_another_candidate_and_the_same_seed_the_same(tmp_path: Path, tiny_folder: Path) -> None:
    found = []
    for number, seed in enumerate((3, 3, 4)):
        with opened(tmp_path / str(number), tiny_folder, config_of(UNSEARCHED, {"seed": seed})) as home:
            found.append(content(home.store.model_path(home.play().id)))
    assert found[0] == found[1] != found[2]


def test_a_large_batch_is_sampled_and_says_how_many_rows_it_trained_on(home: Home) -> None:
    home.config = config_of(UNSEARCHED, {"derive": {"max_rows": 5}})
    steps = home.record(home.play())["steps"]
    assert steps["teach"]["num_batch"] == 5 and steps["parse"]["num_train"] > 5


def test_standing_probes_that_have_a_response_are_forgotten_with_the_batch_up_to_a_bound(home: Home) -> None:
    known = pairs("let me", 24)
    mixed = [{"prompt": p} | ({"response": r} if number % 2 else {}) for number, (p, r) in enumerate(known)]
    file = home.path / "probes" / "harm.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in mixed))
    home.config = config_of(UNSEARCHED, {"derive": {"retain": {"standing_rows": 5}}})
    assert home.record(home.play(1))["steps"]["teach"]["num_standing"] == 5
    file.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt, _ in known))
    assert home.record(home.play(2))["steps"]["teach"]["num_standing"] == 0


def test_standing_probes_of_the_gate_part_are_never_trained_on(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = pairs("let me", 24)
    write_pairs(home.path / "probes" / "harm.jsonl", rows, category="grolting")
    noted: list[Material] = []

    def record(bench: Workbench, material: Material) -> Teachers:
        noted.append(material)
        return record_teachers(bench, material)

    monkeypatch.setattr("daemon.patching.record_teachers", record)
    home.config = config_of(UNSEARCHED)
    home.play()
    judging = {row.messages[-1]["content"] for row in load(home.path, home.config).harm if row.is_gate}
    trained = {messages[-1]["content"] for messages, _ in noted[0].standing}
    assert trained and judging and not trained & judging and len(trained) + len(judging) == len(rows)


CANARY = "quibblefrotz"


def test_no_prompt_or_response_text_leaves_the_batch(
    tmp_path: Path, tiny_folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "patches.generate.Generator.answer", lambda self, prompts, progress=None: [_said(prompt) for prompt in prompts]
    )
    with opened(tmp_path / "home", tiny_folder, config_of(UNSEARCHED, {"gates": {"harm": {"max": 1.0}}})) as home:
        for file in ("over_safety", "utility", "harm"):
            path = home.path / "probes" / f"{file}.jsonl"
            path.write_text(path.read_text().replace('{"prompt": "', f'{{"prompt": "{CANARY} '))
        rows = [(f"{CANARY} {prompt}", f"{response} {CANARY}") for prompt, response in pairs("how do I", 24)]
        batch = home.drop(rows=[*rows, rows[0], (f"{CANARY} zim", f"I cannot help with {CANARY}")])
        round_ = home.begin(batch)
        out = _worker_out(home, round_.id)
        event = decode_event(out.splitlines()[-1])
        assert isinstance(event, DoneEvent)
        if event.outcome == "ready":
            home.commit(round_.id, Outcome(event.outcome, tuple(event.reasons), event.result))
        kept = {
            name: data
            for name, data in content(home.path).items()
            if not name.startswith(("store/batches/", "probes/", "store/spool/"))
        }
        assert "store/audit.jsonl" in kept and "store/ledger.db" in kept
        assert [name for name, data in kept.items() if CANARY.encode() in data] == []
        assert CANARY not in out
    printed = capfd.readouterr()
    assert CANARY not in printed.out + printed.err


def _said(prompt: Any) -> Any:
    from patches.generate import Generation

    return Generation(f"take {prompt[-1]['content']} {CANARY}", True)


def _worker_out(home: Home, round_id: str) -> str:
    reporter = FakeReporter(home.store, round_id)
    worker.run(home.path, "round", round_id, reporter)
    return reporter.stream.getvalue()


@pytest.mark.parametrize("step", ["derive_over_safety", "score", "describe_masks"])
def test_an_error_that_quotes_a_row_is_told_without_it(home: Home, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    def fail(self: Any, *_: Any) -> Any:
        raise KeyError(f"{CANARY} {self.taken.rows[0].response}")

    monkeypatch.setattr(Patching, step, fail)
    out = _worker_out(home, _begun(home))
    assert '"failed"' in out and "KeyError at " in out
    assert CANARY not in out and not any(response in out for _, response in pairs("how do I", 24, 1))


class _Disk(FileSystem):
    """Remembers what was flushed."""

    def __init__(self) -> None:
        self.flushed: set[Path] = set()

    def fsync_path(self, path: Path) -> None:
        super().fsync_path(path)
        self.flushed.add(path)


def test_what_a_step_leaves_is_flushed_before_the_step_is_told(home: Home) -> None:
    disk, scratch = _Disk(), home.store.scratch(_begun(home, DIFFERENCE, {"derive": {"backend": "sparse"}}))
    files = {"choose": "entries", "over_safety": "over_safety", "safety": "safety", "score": "scores"}
    for step, file in files.items():
        with use(disk), pytest.raises(KilledError):
            home.run(scratch.name, kill_at=step)
        assert {scratch / f"{file}.safetensors", scratch} <= disk.flushed


@pytest.mark.parametrize(("backend", "file"), [("sparse", "entries"), ("full", "over_safety")])
def test_a_disk_that_fills_up_while_tensors_are_written_blames_no_batch(
    home: Home, monkeypatch: pytest.MonkeyPatch, backend: str, file: str
) -> None:
    def save_file(*_: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("daemon.patching.save_file", save_file)
    round_id = _begun(home, {"derive": {"backend": backend}})
    last = decode_event(_worker_out(home, round_id).splitlines()[-1])
    assert isinstance(last, FailedEvent) and last.retry and last.blameless
    assert "no space left on the disk" in last.reason and f"{file}.safetensors" in last.reason


def test_the_name_of_the_scratch_folder_is_flushed_before_any_step_is_told(home: Home) -> None:
    round_id, disk = _begun(home), _Disk()
    with use(disk), pytest.raises(KilledError):
        home.run(round_id, kill_at="parse")
    assert home.store.scratch_root in disk.flushed
    assert home.store.scratch(round_id).stat().st_mode & 0o777 == 0o700


def test_the_patch_of_a_round_comes_among_the_stores_with_its_version_only(home: Home) -> None:
    refused = _begun(home, DIFFERENCE, {"gates": {"degenerate": {"max": 0.0}}})
    assert home.run(refused).outcome == "rejected"
    assert home.store.round(refused).artefacts["merge"]["patch"] and not list(home.store.patches.iterdir())
    home.store.end_round(refused, "rejected", reason="degenerate", now=NOW)
    accepted = _begun(home, DIFFERENCE, seed=2)
    outcome = home.run(accepted)
    assert not list(home.store.patches.iterdir())
    version = home.commit(accepted, outcome)
    assert version.patch and list(home.store.patches.iterdir()) == [home.store.patch_path(version.patch)]


def test_nothing_is_learnt_from_a_stored_batch_that_was_changed(home: Home) -> None:
    round_id = _begun(home, UNSEARCHED)
    sha256 = home.store.round(round_id).batch or ""
    (path,) = home.store.batch_content(sha256).iterdir()
    path.chmod(0o600)
    path.write_bytes(path.read_bytes().replace(b"e", b"a", 1))
    with pytest.raises(StoreCorruptError, match="is not what was received"):
        home.run(round_id)


@pytest.mark.parametrize("kind", ["batch", "revert"])
def test_a_round_whose_probes_changed_while_it_lay_begins_anew(home: Home, kind: str) -> None:
    home.config = config_of(UNSEARCHED)
    if kind == "batch":
        round_id = home.begin(home.drop(1)).id
    else:
        home.play(1)
        home.play(2)
        asked = home.store.request_revert("v2", actor="test", reason="wrong", now=NOW)
        round_id = home.store.begin_queued(asked.id, config=to_dict(home.config), now=NOW).id
    first, last = STEPS[kind][0], STEPS[kind][-1]
    with pytest.raises(KilledError):
        home.run(round_id, kill_at="evaluate")
    write_pairs(home.path / "probes" / "utility.jsonl", pairs("please", 30), category="chores")
    with pytest.raises(KilledError):
        home.run(round_id, kill_at=first)
    with capture_logs() as logs:
        outcome = home.run(round_id)
    assert home.reporters[-2].steps == [first] and home.reporters[-1].steps == list(STEPS[kind][1:])
    assert logs == []  # begun anew once, and gone on from there
    record = home.record(home.commit(round_id, outcome))
    assert record["inputs"] == load(home.path, home.config).digests
    assert home.store.round(round_id).artefacts[first]["inputs"] == record["inputs"]
    assert home.store.round(round_id).step == last


@pytest.mark.parametrize(
    ("name", "after"),
    [
        ("entries.safetensors", "choose"),
        ("over_safety.safetensors", "safety"),
        ("safety.safetensors", "search"),
        ("candidate", "merge"),
        ("*.safetensors", "merge"),
    ],
)
def test_a_round_that_lost_what_a_step_left_begins_anew(home: Home, name: str, after: str) -> None:
    round_id = _begun(home, UNSEARCHED)
    with pytest.raises(KilledError):
        home.run(round_id, kill_at=after)
    for path in home.store.scratch(round_id).glob(name):
        remove_tree(path)
    with capture_logs() as logs:
        outcome = home.run(round_id)
    assert [line["event"] for line in logs] == ["round_restarted"] and "is gone" in logs[0]["cause"]
    assert home.reporters[-1].steps == list(STEPS["batch"])
    assert home.commit(round_id, outcome).id == 1 and verify(home.store, deep=True) == []


@pytest.mark.parametrize("at", ["_place_files", "_enroll"])
def test_a_round_whose_commit_died_half_way_is_not_done_again(
    home: Home, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    round_id = _begun(home, UNSEARCHED)
    outcome = home.run(round_id)

    def die(*_: Any, **__: Any) -> None:
        raise KilledError(at)

    with monkeypatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(home.store, at, die)
        home.commit(round_id, outcome)
    home.store.recover(NOW)
    again = home.run(round_id)
    assert home.reporters[-1].steps == []
    assert home.commit(round_id, again).id == 1 and verify(home.store, deep=True) == []


def _overwrite(path: Path) -> None:
    path.write_bytes(b"not what was written")


def _flip_last_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("batches/*/batch1.jsonl", _overwrite),
        ("patches/*.safetensors", _overwrite),
        ("../models/v1/*.safetensors", _overwrite),
        ("../models/v1/*.safetensors", _flip_last_byte),
        ("../models/v0/*.safetensors", _overwrite),
        ("../models/v0/*.safetensors", _flip_last_byte),
        ("../models/v0/config.json", _overwrite),
    ],
)
def test_damage_of_what_a_round_builds_on_is_named_and_blames_no_batch(
    home: Home, name: str, damage: Callable[[Path], None]
) -> None:
    home.config = config_of(DIFFERENCE, UNSEARCHED, {"merge": {"accumulate": "protect"}})
    home.play(1)
    (path,) = home.store.root.glob(name)
    path.chmod(0o600)
    damage(path)
    last = decode_event(_worker_out(home, home.begin(home.drop(2)).id).splitlines()[-1])
    assert isinstance(last, FailedEvent), "the damage was built on"
    assert last.retry and last.blameless and "the store is damaged" in last.reason
    named = home.store.ledger.batches()[0].sha256 if "batches" in name else path.name
    assert named in last.reason and ("models" not in name or f"{path.resolve()} is not what" in last.reason)


def test_a_base_that_is_changed_in_the_middle_of_a_round_is_not_built_on_also_once_it_is_mended(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.play(1)
    (path,) = home.store.model_path(0).glob("*.safetensors")
    path.chmod(0o600)
    good, real = path.read_bytes(), Patching.score

    def change_and_score(self: Any, *arguments: Any) -> Any:
        _flip_last_byte(path)
        return real(self, *arguments)

    monkeypatch.setattr(Patching, "score", change_and_score)
    round_id = home.begin(home.drop(2)).id
    last = decode_event(_worker_out(home, round_id).splitlines()[-1])
    assert isinstance(last, FailedEvent) and last.blameless
    assert f"{path} was changed while a round built on it" in last.reason
    monkeypatch.undo()
    path.write_bytes(good)
    assert home.store.round(round_id).artefacts == {}
    assert home.commit(round_id, home.run(round_id)).state == "published" and verify(home.store, deep=True) == []


def test_write_probes_and_batches_do_not_meet(home: Home) -> None:
    """The helper's own promise: no probe prompt is in a batch, or every test here would test less than it says."""
    write_probes(home.path)
    from daemon.probes import load

    prompts = load(home.path, home.config).prompts()
    assert not prompts & {prompt.lower() for seed in range(5) for prompt, _ in pairs("how do I", 24, seed)}
