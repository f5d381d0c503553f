"""Which entries are chosen, against a naive ranking; exact counts, what is taken, and rows without a gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from patches import choice
from patches.chat import Encoded
from patches.choice import choose_entries
from patches.errors import NothingTrainedError
from patches.mask import Masks
from patches.snip import Scores, scores
from tests.tiny_model import assert_same, encode_pairs, ignore_progress, runner_of, snapshot

FRACTION = 0.07


@pytest.fixture(scope="module")
def sets(tokenizer: PreTrainedTokenizerBase) -> list[list[Encoded]]:
    """Two sets of rows."""
    rows = encode_pairs(tokenizer)
    return [rows[:2], rows[2:]]


def chosen(
    model: PreTrainedModel,
    sets: Sequence[Sequence[Encoded]],
    taken: Masks | None = None,
    first: Masks | None = None,
) -> Masks:
    return choose_entries(runner_of(model), sets, fraction=FRACTION, progress=ignore_progress, taken=taken, first=first)


def naive(model: PreTrainedModel, sets: Sequence[Sequence[Encoded]]) -> Scores:
    """Each set's scores scaled to sum 1, and added."""
    total: Scores = {}
    for rows in sets:
        found = scores(runner_of(model), rows, {}, kind="base", progress=ignore_progress)
        whole = sum(float(score.sum()) for score in found.values())
        total = {name: total.get(name, 0) + score / whole for name, score in found.items()}
    return total


def test_of_every_matrix_exactly_the_share_that_scores_highest_on_all_sets_is_chosen(
    model: PreTrainedModel, sets: list[list[Encoded]]
) -> None:
    before = snapshot(model)
    found, total = chosen(model, sets), naive(model, sets)
    assert found.keys() == total.keys()
    for name, mask in found.items():
        assert mask.dtype == torch.bool and mask.shape == total[name].shape and mask.device.type == "cpu"
        assert int(mask.sum()) == int(FRACTION * mask.numel()) > 0
        assert total[name][mask].min() >= total[name][~mask].max()
    assert_same(model, before)
    again = chosen(model, sets)
    assert all(bool((mask == again[name]).all()) for name, mask in found.items())


def test_each_set_counts_as_much_as_the_other(model: PreTrainedModel, sets: list[list[Encoded]]) -> None:
    few, many = sets
    as_is, repeated = chosen(model, [few, many]), chosen(model, [few, many * 5])
    apart = sum(int((mask ^ repeated[name]).sum()) for name, mask in as_is.items())
    assert apart <= 4  # float32 sums may swap neighbours at the bound
    alone = chosen(model, [many])
    assert sum(int((mask ^ alone[name]).sum()) for name, mask in as_is.items()) > 50


def test_what_is_taken_is_not_chosen_and_others_are_in_its_place(
    model: PreTrainedModel, sets: list[list[Encoded]]
) -> None:
    first = chosen(model, sets)
    second = chosen(model, sets, first)
    assert not any(bool((mask & first[name]).any()) for name, mask in second.items())
    assert {name: int(mask.sum()) for name, mask in second.items()} == {
        name: int(mask.sum()) for name, mask in first.items()
    }
    everything = {name: torch.ones_like(mask) for name, mask in first.items()}
    assert not any(bool(mask.any()) for mask in chosen(model, sets, everything).values())


def test_a_matrix_with_hardly_a_score_has_its_count_all_the_same_beside_what_is_taken() -> None:
    score, taken = torch.zeros(10, 10), torch.zeros(10, 10, dtype=torch.bool)
    score[5, :3], taken[0] = torch.tensor([3.0, 2.0, 1.0]), True
    found = choice._highest(score, 10, free=~taken, early=None)
    assert int(found.sum()) == 10 and bool(found[5, :3].all()) and not bool((found & taken).any())


@pytest.mark.parametrize("share", [0.0, 0.02, FRACTION, 0.3, 1.0])
@pytest.mark.parametrize("taken_share", [0.0, 0.5])
def test_what_comes_first_is_chosen_before_what_scores_higher(
    model: PreTrainedModel, sets: list[list[Encoded]], share: float, taken_share: float
) -> None:
    total, draw = naive(model, sets), torch.Generator().manual_seed(0)
    first, taken = (
        {name: torch.rand(score.shape, generator=draw) < each for name, score in total.items()}
        for each in (share, taken_share)
    )
    found = chosen(model, sets, taken, first)
    for name, score in total.items():
        free = [i for i, is_taken in enumerate(taken[name].flatten().tolist()) if not is_taken]
        early, flat = first[name].flatten().tolist(), score.flatten().tolist()
        best = sorted(free, key=lambda i: (not early[i], -flat[i], i))[: int(FRACTION * len(flat))]
        assert sorted(best) == found[name].flatten().nonzero().flatten().tolist()


@pytest.mark.parametrize("num_sets", [2, 3])
def test_scores_wait_in_main_memory_but_those_of_the_last_set(
    model: PreTrainedModel, sets: list[list[Encoded]], monkeypatch: pytest.MonkeyPatch, num_sets: int
) -> None:
    asked: list[str] = []

    def noted(*args: Any, device: torch.device, **named: Any) -> Scores:
        asked.append(device.type)
        return scores(*args, device=torch.device("cpu"), **named)

    monkeypatch.setattr(choice, "scores", noted)
    monkeypatch.setattr(choice, "CPU", torch.device("meta"))  # a device that is not the model's
    chosen(model, (sets * 2)[:num_sets])
    assert asked == ["meta"] * (num_sets - 1) + ["cpu"]


@pytest.mark.parametrize("wrong", [[], [[]]])
def test_no_rows_are_a_wrong_argument(model: PreTrainedModel, wrong: list[list[Encoded]]) -> None:
    with pytest.raises(ValueError, match="at least one set, each with a row"):
        chosen(model, wrong)


@pytest.mark.parametrize("wrong", [-0.1, 1.1])
def test_a_fraction_outside_0_to_1_is_a_wrong_argument(
    model: PreTrainedModel, sets: list[list[Encoded]], wrong: float
) -> None:
    with pytest.raises(ValueError, match="allowed: 0 to 1"):
        choose_entries(runner_of(model), sets, fraction=wrong, progress=ignore_progress)


def test_progress_rises_over_all_sets(model: PreTrainedModel, sets: list[list[Encoded]]) -> None:
    seen: list[float] = []
    choose_entries(runner_of(model), sets, fraction=FRACTION, progress=seen.append)
    assert seen == sorted(seen) and seen[-1] == 1 and any(share <= 0.5 for share in seen)


def test_rows_without_a_gradient_are_told(
    model: PreTrainedModel, sets: list[list[Encoded]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "scores", lambda *_, **__: {"layer": torch.zeros(3, 4)})
    with pytest.raises(NothingTrainedError, match="no entry has a gradient on 2 rows"):
        chosen(model, sets)
