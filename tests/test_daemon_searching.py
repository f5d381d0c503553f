"""The coefficient search: where it starts, where it ends, and that it leaves nothing behind in the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from daemon.config_method import SearchSection
from daemon.measuring import development_sets
from daemon.probes import load
from daemon.searching import search_merge
from daemon.workbench import Workbench
from patches.generate import Generation, Generator
from patches.merge import OldValues, Patches, Setting, merged_patch
from patches.model import decoder_linears
from tests.round_world import config_of, write_probes
from tests.tiny_model import assert_same, snapshot

SPACE = {
    "top_fractions": [0.3, 0.2],
    "alphas": [1.0, 0.5],
    "repair_alphas": [0.9, 0.2],
    "betas": [1.0, 0.0],
    "retention_rates": [1.0, 0.5],
}


def _bench(home: Path, model: Path, **search: Any) -> Workbench:
    write_probes(home)
    config = config_of({"merge": {"mask": search.pop("mask", "joint"), "search": {**SPACE, **search}}})
    return Workbench.open(config, model, model, load(home, config))


def _patches(bench: Workbench) -> Patches:
    generator = torch.Generator().manual_seed(3)
    made = [
        {
            name: torch.randn(weight.shape, generator=generator) * 0.01
            for name, weight in decoder_linears(bench.model).items()
        }
        for _ in range(4)
    ]
    scores = [{name: value.abs() for name, value in vector.items()} for vector in made[2:]]
    joint = bench.config.merge.mask == "joint"
    return Patches(
        made[0], made[1], scores[0], scores[1], joint=joint, accumulate="off", rescale=False, claims={}, seed=5
    )


def _without(patches: Patches, *kinds: str) -> Patches:
    """The same round with a patch that changes nothing."""
    zero = {name: torch.zeros_like(delta) for name, delta in patches.safety.items()}
    for kind in kinds:
        patches = replace(patches, safety=zero) if kind == "safety" else replace(patches, over_safety=zero)
    return patches


def _search(bench: Workbench, progress: Callable[[float], None] = lambda _: None) -> dict[str, Any]:
    return search_merge(bench, _patches(bench), development_sets({}, bench.files, bench.config), progress)


def test_it_starts_at_the_first_value_of_each_and_stops_after_so_many_trials(tmp_path: Path, tiny_folder: Path) -> None:
    seen: list[float] = []
    found = _search(_bench(tmp_path, tiny_folder, trials=3), seen.append)
    assert found["num_trials"] == len(found["trials"]) == 3
    assert found["trials"][0]["point"] == {
        "retention_rate": 1.0, "safety_fraction": 0.3, "over_safety_fraction": 0.3, "alpha": 1.0, "beta": 1.0
    }  # fmt: skip
    assert found["winner"] in found["trials"] and found["reasons"]
    assert seen == [pytest.approx(n / 3) for n in (1, 2, 3)]
    Setting(**found["winner"]["point"])


def test_as_shipped_it_takes_most_of_the_safety_patch_and_only_tries_to_loosen_less(
    tmp_path: Path, tiny_folder: Path
) -> None:
    shipped = {name: getattr(SearchSection(), name) for name in SPACE}
    found = _search(_bench(tmp_path, tiny_folder, **shipped))
    points = [trial["point"] for trial in found["trials"]]
    assert [(point["alpha"], point["beta"]) for point in points] == [(0.95, 1.0), (0.95, 0.9), (0.95, 0.0)]


def test_the_winner_has_the_best_score_and_the_first_of_equals_wins(tmp_path: Path, tiny_folder: Path) -> None:
    found = _search(_bench(tmp_path, tiny_folder, trials=8))
    assert found["winner"]["score"] == max(trial["score"] for trial in found["trials"])


def test_one_trial_is_made_even_without_time_and_no_more(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = count()
    monkeypatch.setattr("daemon.searching.time.monotonic", lambda: next(ticks) * 100.0)
    assert _search(_bench(tmp_path, tiny_folder, trials=8, max_s=0))["num_trials"] == 1
    assert _search(_bench(tmp_path, tiny_folder, trials=8, max_s=250))["num_trials"] == 3


def test_it_ends_when_everything_near_the_best_was_tried(tmp_path: Path, tiny_folder: Path) -> None:
    bench = _bench(
        tmp_path, tiny_folder, trials=64, alphas=[1.0], betas=[1.0], retention_rates=[1.0], top_fractions=[0.3]
    )
    assert _search(bench)["num_trials"] == 1


def test_a_joint_mask_has_no_second_fraction_to_search(tmp_path: Path, tiny_folder: Path) -> None:
    joint = _search(_bench(tmp_path, tiny_folder, trials=40))
    assert {trial["point"]["over_safety_fraction"] for trial in joint["trials"]} == {0.3}
    apart = _search(_bench(tmp_path, tiny_folder, trials=40, mask="difference"))
    assert {trial["point"]["over_safety_fraction"] for trial in apart["trials"]} == {0.3, 0.2}


def test_of_a_repair_the_smallest_factor_that_leaves_the_least_harm_is_taken(tmp_path: Path, tiny_folder: Path) -> None:
    one = {"retention_rates": [1.0], "top_fractions": [0.3], "repair_below": 1.0, "min_gain": 100.0}
    bench = _bench(tmp_path, tiny_folder, trials=40, **one)
    sets = development_sets({}, bench.files, bench.config)
    found = search_merge(bench, _without(_patches(bench), "over_safety"), sets, lambda _: None)
    harm = {trial["point"]["alpha"]: trial["axes"]["harm_rate"] for trial in found["trials"]}
    assert set(harm) == {0.9, 0.2}
    assert found["winner"]["point"]["alpha"] == min(alpha for alpha in harm if harm[alpha] == min(harm.values())) == 0.2


@pytest.mark.parametrize(
    ("zero", "below", "alphas", "betas"),
    [
        ([], 1.0, {1.0, 0.5}, {1.0, 0.0}),
        (["over_safety"], 1.0, {0.9, 0.2}, {1.0}),
        (["over_safety"], 0.0, {1.0, 0.5}, {1.0}),
        (["safety"], 1.0, {1.0}, {0.0}),
    ],
)
def test_a_patch_that_changes_nothing_has_no_coefficient_and_a_repair_has_its_own(
    tmp_path: Path, tiny_folder: Path, zero: list[str], below: float, alphas: set[float], betas: set[float]
) -> None:
    bench = _bench(tmp_path, tiny_folder, trials=40, retention_rates=[1.0], repair_below=below)
    sets = development_sets({}, bench.files, bench.config)
    found = search_merge(bench, _without(_patches(bench), *zero), sets, lambda _: None)
    points = [trial["point"] for trial in found["trials"]]
    assert {point["alpha"] for point in points} == alphas and {point["beta"] for point in points} == betas
    nothing = search_merge(bench, _without(_patches(bench), "safety", "over_safety"), sets, lambda _: None)
    assert nothing["num_trials"] == 1


@pytest.mark.parametrize("mask", ["joint", "difference"])
def test_an_over_safety_patch_is_never_merged_alone(tmp_path: Path, tiny_folder: Path, mask: str) -> None:
    bench = _bench(tmp_path, tiny_folder, trials=40, mask=mask)
    sets = development_sets({}, bench.files, bench.config)
    patches = _without(_patches(bench), "safety")
    found = search_merge(bench, patches, sets, lambda _: None)
    assert found["num_trials"] == 1
    assert found["reasons"][-1] == "nothing is forgotten, so nothing is loosened: the over-safety patch is left out"
    merged = merged_patch(patches, Setting(**found["winner"]["point"]))
    assert all(len(delta.indices) == 0 for delta in merged.values())


def test_the_model_is_the_same_to_the_last_bit_afterwards(tmp_path: Path, tiny_folder: Path) -> None:
    bench = _bench(tmp_path, tiny_folder, trials=4)
    before = snapshot(bench.model)
    _search(bench)
    assert_same(bench.model, before)


def test_it_measures_each_merge_and_not_the_model_it_started_from(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[torch.Tensor] = []

    def answer(self: Generator, prompts: Any, progress: Any = None) -> list[Generation]:
        asked.append(decoder_linears(self.model)["model.layers.0.mlp.up_proj.weight"].clone())
        return [Generation("zim grolt", True) for _ in prompts]

    bench = _bench(tmp_path, tiny_folder, trials=3)
    assert bench.judge  # v0 is asked for its refusals before
    monkeypatch.setattr(Generator, "answer", answer)
    _search(bench)
    own = decoder_linears(bench.model)["model.layers.0.mlp.up_proj.weight"]
    assert len(asked) == 3 and not any(torch.equal(own, weights) for weights in asked)
    assert not torch.equal(asked[0], asked[1])


def test_the_same_search_twice_finds_the_same(tmp_path: Path, tiny_folder: Path) -> None:
    first, second = (_search(_bench(tmp_path, tiny_folder, trials=5)) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("mask", ["joint", "difference"])
def test_what_merges_at_the_same_places_replace_is_read_once_a_search(
    tmp_path: Path, tiny_folder: Path, mask: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[OldValues] = []

    def noted(*values: Any) -> OldValues:
        read.append(OldValues(*values))
        return read[-1]

    whole = {"top_fractions": [1.0] if mask == "joint" else [0.5], "retention_rates": [1.0], "betas": [1.0]}
    bench = _bench(tmp_path, tiny_folder, trials=2, mask=mask, alphas=[1.0, 0.5], **whole)
    monkeypatch.setattr("patches.merge.OldValues", noted)
    assert _search(bench)["num_trials"] == 2
    assert len(read) == len(decoder_linears(bench.model)) * (1 if mask == "joint" else 2)
