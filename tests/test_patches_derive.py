"""Deriving a patch: which way the loss goes, when training stops, what it refuses, and that the model stays as it was."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import get_args

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from patches.backends import BackendName
from patches.chat import Encoded, Padded
from patches.derive import FORGETTING, SMOOTHING, Derivation, DeriveReport, RowSampler, StopRule, derive, rate_factor
from patches.errors import NonFiniteError, NothingTrainedError
from patches.merge import shifted
from patches.model import decoder_linears
from patches.terms import AnswerTerm, BatchTerm, ObjectiveName, Runner, Term, hold, row_nll
from tests.tiny_model import assert_same, encode_pairs, ignore_progress, recipe_of, runner_of, snapshot

OBJECTIVES: tuple[ObjectiveName, ...] = get_args(ObjectiveName)
BACKENDS: tuple[BackendName, ...] = ("full", "lora")  # sparse needs masks, and has its own tests below


@pytest.fixture(scope="module")
def rows(tokenizer: PreTrainedTokenizerBase) -> list[Encoded]:
    return encode_pairs(tokenizer)


def derived(
    model: PreTrainedModel,
    rows: Sequence[Encoded],
    others: Sequence[Term] = (),
    *,
    max_tokens: int = 4096,
    **changes: object,
) -> Derivation:
    recipe = recipe_of(**changes)
    runner = runner_of(model, max_tokens)
    start = row_nll(runner, rows) if rows else torch.zeros(0)
    batch = BatchTerm(rows, recipe.objective, start, beta=0.1)
    return derive(runner, batch, others, recipe=recipe, progress=ignore_progress)


def mean_loss(model: PreTrainedModel, rows: Sequence[Encoded]) -> float:
    return float(row_nll(runner_of(model), rows).sum()) / sum(row.num_response_tokens for row in rows)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_one_step_of_forgetting_raises_the_batchs_loss_and_of_learning_lowers_it(
    model: PreTrainedModel, rows: list[Encoded], objective: ObjectiveName, backend: BackendName
) -> None:
    before = mean_loss(model, rows)
    made = derived(model, rows, objective=objective, backend=backend)
    with shifted(model, made.task_vector):
        after = mean_loss(model, rows)
    change = after - before
    assert abs(change) > 1e-5
    assert (change > 0) == (objective in FORGETTING)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_reported_loss_is_the_plain_mean_cross_entropy_for_every_objective(
    model: PreTrainedModel, rows: list[Encoded], objective: ObjectiveName
) -> None:
    seen: list[tuple[float, float]] = []
    runner = runner_of(model)
    batch = BatchTerm(rows, objective, row_nll(runner, rows), beta=0.1)
    recipe = recipe_of(objective=objective, max_steps=4)
    report = derive(runner, batch, [], recipe=recipe, progress=lambda *step: seen.append(step)).report
    assert report.start_loss == pytest.approx(mean_loss(model, rows), rel=1e-4)
    assert [loss for _, loss in seen] == list(report.losses)
    assert [fraction for fraction, _ in seen] == [0.25, 0.5, 0.75, 1.0]
    assert (report.losses[-1] > report.losses[0]) == (objective in FORGETTING)
    assert (report.steps, report.end_loss) == (4, report.losses[-1])
    assert report.stop_reason == "all 4 steps done"


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_training_stops_once_the_plain_loss_passes_the_bound(
    model: PreTrainedModel, rows: list[Encoded], objective: ObjectiveName
) -> None:
    start = mean_loss(model, rows)
    bound = start + 0.3 if objective in FORGETTING else start - 0.3
    report = derived(model, rows, objective=objective, stop_loss=bound, max_steps=60, learning_rate=5e-3).report
    assert report.steps < 60
    assert "stop_loss" in report.stop_reason
    assert (report.end_loss > bound) == (objective in FORGETTING)
    already = start - 1 if objective in FORGETTING else start + 1
    assert derived(model, rows, objective=objective, stop_loss=already, max_steps=60).report.steps == 1


@pytest.mark.parametrize(("objective", "passing", "staying"), [("npo", 3.1, 2.9), ("descent", 2.9, 3.1)])
def test_the_stop_rule_fires_in_its_own_direction_only(
    objective: ObjectiveName, passing: float, staying: float
) -> None:
    assert StopRule(objective, 3.0).reached(passing)
    assert not StopRule(objective, 3.0).reached(staying)
    assert not StopRule(objective, 3.0).reached(3.0)
    assert not StopRule(objective, None).reached(passing)


def test_the_stop_rule_smooths_single_outliers_away() -> None:
    rule = StopRule("ascent", 3.0)
    assert [rule.reached(loss) for loss in (2.0, 5.0, 2.0, 5.0, 5.0)] == [False, False, False, True, True]
    smoothed = 2.0
    for loss in (5.0, 2.0, 5.0, 5.0):
        smoothed = SMOOTHING * smoothed + (1 - SMOOTHING) * loss
    assert rule.smoothed == pytest.approx(smoothed)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_model_is_bit_identical_after_deriving(
    model: PreTrainedModel, rows: list[Encoded], backend: BackendName
) -> None:
    before, modules = snapshot(model), [type(module) for module in model.modules()]
    derived(model, rows, backend=backend, max_steps=3)
    assert_same(model, before)
    assert [type(module) for module in model.modules()] == modules
    assert not hasattr(model, "peft_config")
    again = derived(model, rows, backend=backend, max_steps=1)
    assert again.report.steps == 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_model_is_bit_identical_after_training_failed(
    model: PreTrainedModel, rows: list[Encoded], backend: BackendName
) -> None:
    before = snapshot(model)
    broken = BatchTerm(rows, "npo", torch.full((len(rows),), math.nan), beta=0.1)
    with pytest.raises(NonFiniteError):
        derive(
            runner_of(model), broken, [], recipe=recipe_of(objective="npo", backend=backend), progress=ignore_progress
        )
    assert_same(model, before)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_bf16_model_is_trained_and_put_back(
    model: PreTrainedModel, rows: list[Encoded], backend: BackendName
) -> None:
    model.to(torch.bfloat16)  # type: ignore[arg-type]
    before = snapshot(model)
    made = derived(model, rows, backend=backend, max_steps=8, learning_rate=1e-4)
    assert_same(model, before)
    assert all(delta.dtype == torch.float32 for delta in made.task_vector.values())
    assert made.report.end_loss < made.report.start_loss


def test_steps_far_below_bf16s_resolution_add_up(model: PreTrainedModel, rows: list[Encoded]) -> None:
    exact = derived(model, rows, max_steps=6, learning_rate=1e-5).task_vector
    model.to(torch.bfloat16)  # type: ignore[arg-type]
    made = derived(model, rows, max_steps=6, learning_rate=1e-5).task_vector
    flat, reference = (torch.cat([d.flatten() for d in vector.values()]) for vector in (made, exact))
    assert float(torch.cosine_similarity(flat, reference, dim=0)) > 0.9


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_same_seed_gives_equal_task_vectors_and_another_seed_others(
    model: PreTrainedModel, rows: list[Encoded], backend: BackendName
) -> None:
    first, second, other = (
        derived(model, rows, seed=seed, backend=backend, max_steps=4, batch_rows=2).task_vector for seed in (7, 7, 8)
    )
    assert list(first) == list(second)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_step_split_into_micro_batches_has_the_same_gradient(
    model: PreTrainedModel, rows: list[Encoded], objective: ObjectiveName, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[torch.Tensor] = []

    def spy(parameters: Sequence[torch.Tensor], _bound: float) -> torch.Tensor:
        found.append(torch.cat([p.grad.flatten().clone() for p in parameters if p.grad is not None]))
        return torch.tensor(1.0)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", spy)
    held = hold(runner_of(model), rows[:3], weight=0.5, name="retain")
    for max_tokens in (4096, 90, 60, 1):
        derived(model, rows, [AnswerTerm(rows[2:], 0.3), held], objective=objective, max_tokens=max_tokens)
    assert all(float((grad - found[0]).norm()) < 1e-4 * float(found[0].norm()) for grad in found[1:])


def _run_short_of_memory(monkeypatch: pytest.MonkeyPatch, num_tokens: int, error: Exception) -> list[int]:
    """From now on no training pass over more padded tokens fits; gives the sizes of all that were tried."""
    real, sizes = Runner.forward, list[int]()

    def forward(self: Runner, rows: Sequence[Encoded]) -> tuple[torch.Tensor, Padded]:
        size = len(rows) * max(len(row.ids) for row in rows)
        if torch.is_grad_enabled():
            sizes.append(size)
            if size > num_tokens:
                raise error
        return real(self, rows)

    monkeypatch.setattr(Runner, "forward", forward)
    return sizes


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
    ],
    ids=["gpu", "python", "cpu"],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_step_that_runs_out_of_memory_is_done_in_smaller_pieces_with_the_same_outcome(
    model: PreTrainedModel,
    rows: list[Encoded],
    backend: BackendName,
    error: Exception,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    short = sorted(rows, key=lambda row: len(row.ids))  # the first term fits, and has its gradient when the next fails
    batch, others = short[:1], [AnswerTerm(short, 0.7)]
    wanted = derived(model, batch, others, backend=backend, max_steps=2).task_vector
    longest = len(short[-1].ids)
    sizes = _run_short_of_memory(monkeypatch, 2 * longest, error)
    found = derived(model, batch, others, backend=backend, max_steps=2).task_vector
    assert len(sizes) > 4 and sum(size > 2 * longest for size in sizes) <= 3, "each step is tried whole again"
    for name, delta in wanted.items():
        assert float((found[name] - delta).norm()) <= 0.02 * float(delta.norm()), name


def test_a_row_that_does_not_fit_in_memory_by_itself_is_told_with_what_helps(
    model: PreTrainedModel, rows: list[Encoded], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = snapshot(model)
    _run_short_of_memory(monkeypatch, 1, torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(MemoryError, match=r"one row of \d+ tokens; lower derive\.max_length"):
        derived(model, rows)
    assert_same(model, before)


def test_every_term_is_reported_with_its_own_mean(model: PreTrainedModel, rows: list[Encoded]) -> None:
    held = hold(runner_of(model), rows[:2], weight=0.5, name="retain")
    unused = AnswerTerm(rows, weight=0.0, name="unused")
    empty = AnswerTerm([], weight=1.0, name="empty")
    terms = derived(model, rows, [AnswerTerm(rows[2:], 0.3), held, unused, empty]).report.terms
    assert set(terms) == {"batch", "refusals", "retain"}
    assert terms["retain"] == pytest.approx(0, abs=1e-5)
    assert terms["refusals"] == pytest.approx(mean_loss(model, rows[2:]), rel=1e-4)


def test_holding_the_model_keeps_its_answers_closer_while_it_forgets(
    model: PreTrainedModel, rows: list[Encoded]
) -> None:
    held = hold(runner_of(model), rows[3:], weight=30.0, name="retain")
    drift = []
    for others in ([], [held]):
        made = derived(model, rows[:3], others, objective="npo", max_steps=12)
        with shifted(model, made.task_vector), torch.no_grad():
            logits, padded = runner_of(model).forward(rows[3:])
            drift.append(float(held.loss_sum(logits, padded, range(3))))
    assert drift[1] < 0.5 * drift[0]


def test_no_rows_are_refused(model: PreTrainedModel) -> None:
    with pytest.raises(NothingTrainedError, match="no rows"):
        derived(model, [])


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_rows_without_response_tokens_are_refused(model: PreTrainedModel, objective: ObjectiveName) -> None:
    empty = [Encoded((1, 7, 8), 3), Encoded((1, 7), 2)]
    with pytest.raises(NothingTrainedError, match="response tokens"):
        derived(model, empty, objective=objective)


def test_a_loss_that_is_not_finite_is_refused(model: PreTrainedModel, rows: list[Encoded]) -> None:
    with torch.no_grad():
        model.get_parameter("lm_head.weight")[3] = math.nan
    with pytest.raises(NonFiniteError, match="batch"):
        derived(model, rows)


def test_a_gradient_that_is_not_finite_is_refused(
    model: PreTrainedModel, rows: list[Encoded], monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = next(iter(decoder_linears(model).values()))
    weight.requires_grad_(True)
    weight.register_hook(lambda gradient: gradient * math.inf)  # type: ignore[no-untyped-call]
    before = snapshot(model)
    with pytest.raises(NonFiniteError, match="gradient"):
        derived(model, rows)
    assert_same(model, before)


def test_a_loss_that_no_trained_weight_can_change_is_refused(model: PreTrainedModel, rows: list[Encoded]) -> None:
    with torch.no_grad():
        model.get_parameter("lm_head.weight").zero_()
    with pytest.raises(NothingTrainedError, match="gradient is zero"):
        derived(model, rows)


def test_training_ends_where_its_gradient_has_vanished_and_what_was_learnt_is_kept(
    model: PreTrainedModel, rows: list[Encoded]
) -> None:
    gradients_left = iter((True, True))

    def vanish(gradient: torch.Tensor) -> torch.Tensor:
        return gradient if next(gradients_left, False) else torch.zeros_like(gradient)

    def watch(head: torch.nn.Module, inputs: object, logits: torch.Tensor) -> None:
        if logits.requires_grad:
            logits.register_hook(vanish)  # type: ignore[no-untyped-call]

    model.get_output_embeddings().register_forward_hook(watch)  # type: ignore[no-untyped-call]
    made = derived(model, rows, max_steps=6)
    assert made.report.stop_reason == "no gradient is left after 2 steps" and made.report.steps == 2
    assert any(bool(delta.any()) for delta in made.task_vector.values())


@pytest.mark.parametrize("backend", BACKENDS)
def test_steps_that_change_no_weight_are_refused(
    model: PreTrainedModel, rows: list[Encoded], backend: BackendName
) -> None:
    with pytest.raises(NothingTrainedError, match="changed no weight"):
        derived(model, rows, learning_rate=0.0, backend=backend)


def test_the_sampler_shows_every_row_once_an_epoch_in_an_order_of_the_seed() -> None:
    sampler, same, other = RowSampler(7, 3), RowSampler(7, 3), RowSampler(7, 4)
    drawn = [sampler.next(3) for _ in range(7)]
    assert drawn == [same.next(3) for _ in range(7)]
    assert drawn != [other.next(3) for _ in range(7)]
    flat = [i for picked in drawn for i in picked]
    for epoch in (flat[:7], flat[7:14], flat[14:]):
        assert sorted(epoch) == list(range(7))
    assert flat[:7] != flat[7:14]
    assert sorted(RowSampler(3, 1).next(10)) == [0, 1, 2]


def test_a_report_thins_its_curve_and_holds_plain_values() -> None:
    losses = tuple(float(i) for i in range(1234))
    values = DeriveReport(1234, "all 1234 steps done", 0.0, 1233.0, losses, {"batch": 1.0}).to_dict()
    assert len(values["losses"]) <= 100
    assert values["losses"][0] == 0.0
    assert values["terms"] == {"batch": 1.0}


@pytest.mark.parametrize("max_steps", [1, 2, 7, 100])
def test_the_rate_rises_stays_and_falls_within_zero_and_one(max_steps: int) -> None:
    rates = [rate_factor(step, max_steps) for step in range(max_steps)]
    top = rates.index(max(rates))
    assert all(0 < rate <= 1 for rate in rates)
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)


def test_the_rate_of_a_long_training_is_whole_between_its_rise_and_its_fall() -> None:
    rates = [rate_factor(step, 100) for step in range(100)]
    assert [step for step, rate in enumerate(rates) if rate == 1] == list(range(39, 71))
    assert rates[0] == pytest.approx(1 / 40)
    assert rates[-1] == pytest.approx(1 / 30)


def test_the_first_step_is_taken_at_the_rate_of_the_rise(model: PreTrainedModel, rows: list[Encoded]) -> None:
    already = mean_loss(model, rows) + 1  # stops after one step
    made = derived(model, rows, max_steps=10, learning_rate=1e-3, stop_loss=already)
    largest = max(float(delta.abs().max()) for delta in made.task_vector.values())
    assert made.report.steps == 1
    assert largest == pytest.approx(1e-3 * rate_factor(0, 10), rel=1e-2)  # Adam's first step is the rate itself


def derived_under_masks(model: PreTrainedModel, rows: Sequence[Encoded], share: float, **changes: object) -> Derivation:
    """A derivation that trains the first ``share`` of every weight's rows only."""
    weights = decoder_linears(model)
    masks = {name: torch.zeros(weight.shape, dtype=torch.bool) for name, weight in weights.items()}
    for mask in masks.values():
        mask[: int(share * len(mask))] = True
    recipe = recipe_of(backend="sparse", **changes)
    batch = BatchTerm(rows, recipe.objective, row_nll(runner_of(model), rows), beta=0.1)
    return derive(runner_of(model, 60), batch, [], recipe=recipe, progress=ignore_progress, masks=masks)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_patch_derived_under_masks_moves_the_loss_its_way_and_is_zero_outside(
    model: PreTrainedModel, rows: list[Encoded], objective: ObjectiveName, dtype: torch.dtype
) -> None:
    model.to(dtype)  # type: ignore[arg-type]
    before = snapshot(model)
    made = derived_under_masks(model, rows, 0.5, objective=objective, max_steps=5)
    assert_same(model, before)
    assert all(not bool(delta[len(delta) // 2 :].any()) for delta in made.task_vector.values())
    assert all(bool(delta[: len(delta) // 2].any()) for delta in made.task_vector.values())
    with shifted(model, made.task_vector):
        after = mean_loss(model, rows)
    changes = [made.report.end_loss - made.report.start_loss, after - made.report.start_loss]
    assert all((change > 0) == (objective in FORGETTING) and abs(change) > 1e-3 for change in changes)


def test_masks_that_mark_everything_derive_what_whole_weights_do(model: PreTrainedModel, rows: list[Encoded]) -> None:
    whole = derived(model, rows, max_tokens=60, max_steps=5)
    masked = derived_under_masks(model, rows, 1.0, max_steps=5)
    assert masked.report.losses == pytest.approx(whole.report.losses, rel=1e-6)
    for name, delta in masked.task_vector.items():
        assert float((delta - whole.task_vector[name]).abs().max()) <= 1e-6


def test_the_same_seed_under_masks_gives_equal_task_vectors_and_another_seed_others(
    model: PreTrainedModel, rows: list[Encoded]
) -> None:
    first, second, other = (
        derived_under_masks(model, rows, 0.5, seed=seed, max_steps=4, batch_rows=2).task_vector for seed in (7, 7, 8)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_training_under_masks_stops_once_the_plain_loss_passes_the_bound(
    model: PreTrainedModel, rows: list[Encoded], objective: ObjectiveName
) -> None:
    start = mean_loss(model, rows)
    bound = start + 0.3 if objective in FORGETTING else start - 0.3
    changes = {"objective": objective, "stop_loss": bound, "max_steps": 60, "learning_rate": 5e-3}
    report = derived_under_masks(model, rows, 0.5, **changes).report
    assert report.steps < 60
    assert "stop_loss" in report.stop_reason
    assert (report.end_loss > bound) == (objective in FORGETTING)


def test_the_model_is_bit_identical_after_training_under_masks_failed(
    model: PreTrainedModel, rows: list[Encoded]
) -> None:
    before = snapshot(model)
    calls = iter([None, None])
    recipe = recipe_of(backend="sparse", max_steps=5)
    masks = {name: torch.ones(weight.shape, dtype=torch.bool) for name, weight in decoder_linears(model).items()}
    batch = BatchTerm(rows, "descent", torch.zeros(len(rows)), beta=0.1)
    with pytest.raises(StopIteration):  # in the third step
        derive(runner_of(model), batch, [], recipe=recipe, progress=lambda *_: next(calls), masks=masks)
    assert_same(model, before)
