"""SNIP scores against a loop over examples, and where both patches are ranked alike."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import cast

import pytest
import torch
import torch.nn.functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from patches import snip
from patches.backends import TaskVector
from patches.chat import Encoded
from patches.errors import NonFiniteError
from patches.mask import difference, top_masks
from patches.merge import shifted
from patches.model import decoder_linears
from patches.snip import ScoreName, scores
from tests.tiny_model import assert_same, encode_pairs, ignore_progress, runner_of, snapshot


@pytest.fixture(scope="module")
def rows(tokenizer: PreTrainedTokenizerBase) -> list[Encoded]:
    return encode_pairs(tokenizer)


def random_patch(model: PreTrainedModel, seed: int) -> TaskVector:
    generator = torch.Generator().manual_seed(seed)
    shapes = {name: weight.shape for name, weight in decoder_linears(model).items()}
    return {name: 0.05 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def naive_scores(
    model: PreTrainedModel, rows: Sequence[Encoded], factors: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Sum over rows of |factor * gradient of the row's mean loss|, one row and one backward pass at a time."""
    weights = decoder_linears(model)
    totals = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for row in rows:
        model.zero_grad(set_to_none=True)
        for weight in weights.values():
            weight.requires_grad_(True)
        logits = model(input_ids=torch.tensor([row.ids])).logits[0, row.prompt_length - 1 : -1]
        F.cross_entropy(logits, torch.tensor(row.ids[row.prompt_length :])).backward()  # type: ignore[no-untyped-call]
        for name, weight in weights.items():
            assert weight.grad is not None
            totals[name] += (factors[name] * weight.grad).abs()
    model.zero_grad(set_to_none=True)
    model.requires_grad_(False)
    return totals


def scored(model: PreTrainedModel, rows: Sequence[Encoded], patch: TaskVector, kind: ScoreName) -> TaskVector:
    return scores(runner_of(model), rows, patch, kind=kind, progress=ignore_progress)


@pytest.mark.parametrize("kind", ["base", "tuned", "delta", "magnitude"])
def test_scores_are_those_of_a_loop_over_examples(model: PreTrainedModel, rows: list[Encoded], kind: ScoreName) -> None:
    patch, before = random_patch(model, 1), snapshot(model)
    found = scored(model, rows, patch, kind)
    assert_same(model, before)
    if kind in ("tuned", "delta"):
        with torch.no_grad():
            for name, weight in decoder_linears(model).items():
                weight += patch[name]
    current = {name: weight.detach().clone() for name, weight in decoder_linears(model).items()}
    if kind == "magnitude":
        expected = {name: delta.abs() for name, delta in patch.items()}
    else:
        expected = naive_scores(model, rows, patch if kind == "delta" else current)
    assert set(found) == set(patch)
    for name, score in found.items():
        assert score.dtype == torch.float32
        assert score.shape == patch[name].shape
        assert bool((score >= 0).all())
        assert torch.allclose(score, expected[name], rtol=1e-3, atol=1e-6)


def naive_loss(model: PreTrainedModel, row: Encoded) -> float:
    """Mean cross-entropy of a row's response, a token at a time, in the model's own type."""
    logits = model(input_ids=torch.tensor([row.ids])).logits[0]
    places = range(row.prompt_length, len(row.ids))
    return -sum(float(torch.log_softmax(logits[i - 1], 0)[row.ids[i]]) for i in places) / len(places)


@pytest.mark.parametrize("kind", ["base", "delta"])
def test_a_score_is_the_entrys_finite_differences_summed_over_rows(
    model: PreTrainedModel, rows: list[Encoded], kind: ScoreName
) -> None:
    patch = random_patch(model, 1)
    found = scored(model, rows, patch, kind)
    with shifted(model, patch if kind == "delta" else {}):
        exact = copy.deepcopy(model).double()
    checked = {name: divmod(int(score.argmax()), score.shape[1]) for name, score in found.items()}
    for name, place in checked.items():
        weight = decoder_linears(exact)[name].data
        factor, middle = float(patch[name][place] if kind == "delta" else weight[place]), float(weight[place])
        losses = []
        with torch.no_grad():
            for moved in (middle + 1e-3, middle - 1e-3):  # the model's norms compute in float32 whatever its type
                weight[place] = moved
                losses.append([naive_loss(exact, row) for row in rows])
        weight[place] = middle
        expected = sum(abs(factor * (high - low) / 2e-3) for high, low in zip(*losses, strict=True))
        assert float(found[name][place]) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("kind", ["base", "tuned", "delta", "magnitude"])
def test_scores_are_bit_for_bit_the_same_every_time(
    model: PreTrainedModel, rows: list[Encoded], kind: ScoreName
) -> None:
    patch = random_patch(model, 1)
    first = scored(model, rows, patch, kind)
    torch.manual_seed(99)
    second = scored(model, rows, patch, kind)
    assert all(torch.equal(first[name], second[name]) for name in patch)


def test_the_absolute_value_stands_inside_the_sum_over_examples(model: PreTrainedModel, rows: list[Encoded]) -> None:
    patch = random_patch(model, 1)
    together = scored(model, rows, patch, "base")
    singles = [scored(model, [row], patch, "base") for row in rows]
    for name, score in together.items():
        assert torch.allclose(score, torch.stack([single[name] for single in singles]).sum(0), rtol=1e-4, atol=1e-7)


def test_base_ranks_both_patches_alike_so_that_nothing_is_left_of_them(
    model: PreTrainedModel, rows: list[Encoded]
) -> None:
    first, second = (scored(model, rows, random_patch(model, seed), "base") for seed in (1, 2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    tops = top_masks(first, 0.1), top_masks(second, 0.1)
    left = {name: difference(mask, tops[1][name])[0] for name, mask in tops[0].items()}
    assert not any(bool(mask.any()) for mask in left.values())


@pytest.mark.parametrize("kind", ["tuned", "delta"])
def test_scores_at_the_tuned_models_tell_the_patches_apart(
    model: PreTrainedModel, rows: list[Encoded], kind: ScoreName
) -> None:
    first, second = (scored(model, rows, random_patch(model, seed), kind) for seed in (1, 2))
    tops = top_masks(first, 0.1), top_masks(second, 0.1)
    left = {name: difference(mask, tops[1][name])[0] for name, mask in tops[0].items()}
    assert all(bool(mask.any()) for mask in left.values())


def test_scores_of_a_bf16_model_are_float32_and_it_is_put_back(model: PreTrainedModel, rows: list[Encoded]) -> None:
    exact = scored(model, rows, random_patch(model, 1), "tuned")
    model.to(torch.bfloat16)  # type: ignore[arg-type]
    before = snapshot(model)
    found = scored(model, rows, random_patch(model, 1), "tuned")
    assert_same(model, before)
    for name, score in found.items():
        assert score.dtype == torch.float32
        assert float(F.cosine_similarity(score.flatten(), exact[name].flatten(), dim=0)) > 0.95


def test_scores_that_are_not_finite_are_refused_and_the_model_is_put_back(
    model: PreTrainedModel, rows: list[Encoded]
) -> None:
    before, patch = snapshot(model), random_patch(model, 1)
    patch[next(iter(patch))][0, 0] = math.inf
    with pytest.raises(NonFiniteError, match="not finite"):
        scored(model, rows, patch, "tuned")
    assert_same(model, before)


def test_progress_is_told_after_every_pass(
    model: PreTrainedModel, rows: list[Encoded], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float] = []
    monkeypatch.setattr(snip, "TOKENS_AT_ONCE", {"cpu": 1})
    scores(runner_of(model), rows, random_patch(model, 1), kind="base", progress=seen.append)
    assert seen == pytest.approx([(i + 1) / len(rows) for i in range(len(rows))])


def test_many_rows_to_a_pass_give_the_scores_of_one_at_a_time_whatever_their_order(
    model: PreTrainedModel, rows: list[Encoded]
) -> None:
    weights = decoder_linears(model)
    one = snip._row_by_row(runner_of(model), rows, weights, ignore_progress)
    for at_once in (rows, rows[::-1]):
        fractions: list[float] = []
        many = snip._many_rows_at_once(runner_of(model), at_once, weights, fractions.append)
        assert many is not None and fractions[-1] == 1.0
        for name, score in many.items():
            torch.testing.assert_close(score, one[name], rtol=1e-4, atol=1e-7)
    assert len({len(row.ids) for row in rows}) > 1, "no padding in the test"


@pytest.mark.parametrize("entries", [1, 1 << 24])
def test_the_scores_do_not_depend_on_how_many_rows_gradients_are_held_at_once(
    model: PreTrainedModel, rows: list[Encoded], entries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = scored(model, rows, {}, "base")
    monkeypatch.setitem(snip.ENTRIES_AT_ONCE, "cpu", entries)
    monkeypatch.setattr(snip, "TOKENS_AT_ONCE", {"cpu": 1})
    for name, score in scored(model, rows, {}, "base").items():
        torch.testing.assert_close(score, expected[name], rtol=1e-4, atol=1e-7)


def test_layers_that_mix_the_rows_are_scored_a_row_at_a_time(
    model: PreTrainedModel, rows: list[Encoded], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = snip._row_by_row(runner_of(model), rows, decoder_linears(model), ignore_progress)
    block = next(module for module in model.modules() if type(module).__name__.endswith("MLP"))
    real = block.forward

    def flat(hidden: torch.Tensor) -> torch.Tensor:
        return cast(torch.Tensor, real(hidden.flatten(0, 1))).view_as(
            hidden
        )  # as experts do: tokens, whosever they are

    monkeypatch.setattr(block, "forward", flat)
    assert snip._many_rows_at_once(runner_of(model), rows, decoder_linears(model), ignore_progress) is None
    found = scored(model, rows, {}, "base")
    weights = decoder_linears(model)
    for name, score in found.items():
        torch.testing.assert_close(score, weights[name].abs() * expected[name], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_ways_to_sum_sizes_over_rows_give_the_same(dtype: torch.dtype) -> None:
    gradients = torch.randn(5, 7, 9, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = sum(abs(row.double()) for row in gradients)
    for summed in (snip._sum_of_sizes, snip._sum_of_sizes_in_one_pass):
        found = summed(gradients.clone())
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=0.0)
    gradients[2, 3, 4] = torch.nan
    assert snip._sum_of_sizes_in_one_pass(gradients).isnan().sum() == 1  # a collapse must not go unseen


def test_the_way_of_a_gpu_to_sum_them_gives_the_same_scores(
    model: PreTrainedModel, rows: list[Encoded], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = scored(model, rows, {}, "base")
    monkeypatch.setattr(snip, "_sum_of_sizes", snip._sum_of_sizes_in_one_pass)
    for name, score in scored(model, rows, {}, "base").items():
        torch.testing.assert_close(score, expected[name], rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("kind", ["base", "delta", "magnitude"])
def test_scores_go_where_they_are_wanted(model: PreTrainedModel, rows: list[Encoded], kind: ScoreName) -> None:
    patch = random_patch(model, 1)
    found = scores(runner_of(model), rows, patch, kind=kind, progress=ignore_progress, device=torch.device("meta"))
    assert {score.device.type for score in found.values()} == {"meta"} and found.keys() == patch.keys()
