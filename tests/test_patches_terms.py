"""The terms of the training loss, and that micro-batches of any size are one batch."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from patches import objectives
from patches.chat import Encoded, pad
from patches.model import decoder_linears
from patches.terms import AnswerTerm, BatchTerm, HoldTerm, ObjectiveName, Runner, Term, hold, row_nll
from tests.tiny_model import encode_pairs, runner_of

OBJECTIVES: tuple[ObjectiveName, ...] = get_args(ObjectiveName)
MICRO_TOKENS = (1, 60, 90, 4096)


@pytest.fixture(scope="module")
def rows(tokenizer: PreTrainedTokenizerBase) -> list[Encoded]:
    return encode_pairs(tokenizer)


def naive_nll(model: PreTrainedModel, row: Encoded) -> torch.Tensor:
    """One row by itself, neither padded nor batched."""
    ids = torch.tensor([row.ids])
    log_probs = F.log_softmax(model(input_ids=ids).logits[0].double(), dim=-1)
    picked = [log_probs[i - 1, row.ids[i]] for i in range(row.prompt_length, len(row.ids))]
    return -torch.stack(picked).sum()


def batch_term(model: PreTrainedModel, rows: list[Encoded], objective: ObjectiveName) -> BatchTerm:
    return BatchTerm(rows, objective, row_nll(runner_of(model), rows) - 1.5, beta=0.3)


def gradient(model: PreTrainedModel, term: Term, max_tokens: int) -> tuple[float, torch.Tensor]:
    """Value and gradient of a term over all its rows, accumulated over micro-batches."""
    weights = decoder_linears(model)
    for weight in weights.values():
        weight.requires_grad_(True)
        weight.grad = None
    runner, everything = runner_of(model, max_tokens), list(range(len(term.rows)))
    total = 0.0
    for group in runner.micro_batches(term.rows):
        logits, padded = runner.forward([term.rows[i] for i in group])
        loss = term.loss_sum(logits, padded, group) / term.units(everything)
        loss.backward()  # type: ignore[no-untyped-call]
        total += float(loss.detach())
    grads = [weight.grad.flatten() for weight in weights.values() if weight.grad is not None]
    return total, torch.cat(grads)


@given(st.lists(st.integers(1, 20), max_size=30), st.integers(1, 60))
def test_micro_batches_hold_every_row_once_in_order_within_the_bound(lengths: list[int], max_tokens: int) -> None:
    rows = [Encoded(tuple(range(length)), 0) for length in lengths]
    groups = list(Runner(None, 0, max_tokens).micro_batches(rows))  # type: ignore[arg-type]
    assert [i for group in groups for i in group] == list(range(len(rows)))
    for group in groups:
        assert len(group) == 1 or max(lengths[i] for i in group) * len(group) <= max_tokens


def test_row_nll_is_that_of_each_row_alone_whatever_the_padding(model: PreTrainedModel, rows: list[Encoded]) -> None:
    with torch.no_grad():
        expected = [float(naive_nll(model, row)) for row in rows]
    for max_tokens in MICRO_TOKENS:
        assert row_nll(runner_of(model, max_tokens), rows).tolist() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_micro_batches_of_any_size_give_the_same_value_and_gradient(
    model: PreTrainedModel, rows: list[Encoded], objective: ObjectiveName
) -> None:
    term = batch_term(model, rows, objective)
    value, whole = gradient(model, term, 4096)
    assert float(whole.norm()) > 0
    for max_tokens in MICRO_TOKENS:
        other, split = gradient(model, term, max_tokens)
        assert other == pytest.approx(value, rel=1e-4)
        assert float((split - whole).norm()) < 1e-4 * float(whole.norm())


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_batch_term_is_its_objective_over_all_rows_together(
    model: PreTrainedModel, rows: list[Encoded], objective: ObjectiveName
) -> None:
    term = batch_term(model, rows, objective)
    with torch.no_grad():
        nll = torch.stack([naive_nll(model, row) for row in rows])
        losses = objectives.RowLosses(nll, torch.tensor([row.num_response_tokens for row in rows]))
    expected = {
        "descent": objectives.descent(losses),
        "ascent": objectives.ascent(losses),
        "npo": objectives.npo(losses, term.start_nll, term.beta),
        "simnpo": objectives.simnpo(losses, term.beta),
    }[objective]
    assert gradient(model, term, 60)[0] == pytest.approx(float(expected), rel=1e-4)


def test_npo_takes_the_start_loss_of_the_picked_rows(model: PreTrainedModel, rows: list[Encoded]) -> None:
    start = torch.arange(len(rows)).float() * 10
    term = BatchTerm(rows, "npo", start, beta=0.1)
    picked = [4, 1]
    with torch.no_grad():
        logits, padded = runner_of(model).forward([rows[i] for i in picked])
        nll = torch.stack([naive_nll(model, rows[i]) for i in picked])
        expected = -(2 / 0.1) * F.logsigmoid(0.1 * (nll - torch.tensor([40.0, 10.0]))).sum()
        assert float(term.loss_sum(logits, padded, picked)) == pytest.approx(float(expected), rel=1e-4)


def test_the_answer_term_is_cross_entropy_a_response_token(model: PreTrainedModel, rows: list[Encoded]) -> None:
    term = AnswerTerm(rows, weight=0.5)
    with torch.no_grad():
        expected = sum(float(naive_nll(model, row)) for row in rows) / sum(row.num_response_tokens for row in rows)
    for max_tokens in MICRO_TOKENS:
        assert gradient(model, term, max_tokens)[0] == pytest.approx(expected, rel=1e-4)


def test_a_hold_term_is_zero_and_flat_at_its_teacher(model: PreTrainedModel, rows: list[Encoded]) -> None:
    for num_kept in (8, 10_000):
        term = hold(runner_of(model), rows, weight=1.0, name="retain", num_kept_tokens=num_kept)
        value, slope = gradient(model, term, 60)
        assert value == pytest.approx(0, abs=1e-5)
        assert float(slope.norm()) < 1e-4


def test_a_hold_term_is_the_kl_from_its_teacher_whatever_the_micro_batches(
    model: PreTrainedModel, rows: list[Encoded]
) -> None:
    with torch.no_grad():
        teacher, _ = runner_of(model).forward(rows)
    whole = hold(runner_of(model), rows, weight=1.0, name="retain", num_kept_tokens=10_000)
    part = hold(runner_of(model, 60), rows, weight=1.0, name="retain", num_kept_tokens=8)
    assert [len(targets.tokens) for targets in part.targets] == [row.num_response_tokens for row in rows]
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in decoder_linears(model).values():
            weight += 0.05 * torch.randn_like(weight)
        ours, _ = runner_of(model).forward(rows)
        full = F.kl_div(
            F.log_softmax(ours, -1),
            F.log_softmax(teacher, -1),
            log_target=True,
            reduction="batchmean",
        )
    values = [gradient(model, whole, max_tokens)[0] for max_tokens in MICRO_TOKENS]
    assert values == pytest.approx([float(full)] * len(values), rel=1e-3)
    bounds = [gradient(model, part, max_tokens)[0] for max_tokens in MICRO_TOKENS]
    assert bounds == pytest.approx([bounds[0]] * len(bounds), rel=1e-3)
    assert 0 < bounds[0] < float(full)


def test_a_hold_term_uses_the_targets_of_the_picked_rows(model: PreTrainedModel, rows: list[Encoded]) -> None:
    term = hold(runner_of(model), rows, weight=1.0, name="retain")
    picked = [5, 0, 3]
    with torch.no_grad():
        logits, padded = runner_of(model).forward([rows[i] for i in picked])
        assert float(term.loss_sum(logits, padded, picked)) == pytest.approx(0, abs=1e-3)
        turned = [objectives.Targets(t.log_probs.flip(-1), t.tokens, t.rest) for t in term.targets]
        wrong = HoldTerm(rows, turned, 1.0, "wrong")
        assert abs(float(wrong.loss_sum(logits, padded, picked))) > 0.1


def test_logits_are_the_models_own_at_the_response_and_padding_changes_none(
    model: PreTrainedModel, rows: list[Encoded]
) -> None:
    with torch.no_grad():
        together, padded = runner_of(model).forward(rows)
        assert torch.equal(padded.ids, pad(rows, pad_id=0, device=torch.device("cpu")).ids)
        per_row = torch.split(together, [row.num_response_tokens for row in rows])
        for row, found in zip(rows, per_row, strict=True):
            whole = model(input_ids=torch.tensor([row.ids])).logits[0]
            assert torch.allclose(found, whole[row.prompt_length - 1 : -1], atol=1e-4)


def test_a_forward_pass_leaves_the_model_as_it_was(model: PreTrainedModel, rows: list[Encoded]) -> None:
    runner_of(model).forward(rows)
    with pytest.raises(IndexError):
        runner_of(model).forward([Encoded((10**9, 1), 1)])  # no such token
    assert model(input_ids=torch.tensor([rows[0].ids])).logits.shape[:2] == (1, len(rows[0].ids))
