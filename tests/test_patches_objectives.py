"""Every objective against a formula written out by hand, its gradient against finite differences."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from patches.chat import IGNORED
from patches.objectives import (
    RowLosses,
    ascent,
    capture_targets,
    descent,
    kl_to_targets,
    npo,
    row_losses,
    simnpo,
)

ROWS, TOKENS, VOCABULARY = 3, 5, 7
NUM_TOKENS = torch.tensor([2, 3, 1])
START = torch.tensor([4.0, 9.0, 1.5], dtype=torch.float64)


def some_logits(seed: int, scale: float = 2.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(ROWS, TOKENS, VOCABULARY, generator=generator)


def some_labels() -> torch.Tensor:
    """Responses of 2, 3 and 1 tokens, at different places."""
    labels = torch.full((ROWS, TOKENS), IGNORED)
    labels[0, 3:] = torch.tensor([4, 2])
    labels[1, 1:4] = torch.tensor([0, 6, 6])
    labels[2, 4] = 3
    return labels


def response_logits(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """(positions, vocabulary): what `patches.terms.Runner.forward` gives."""
    return logits[:, :-1][labels[:, 1:] != IGNORED]


def naive_nll(logits: torch.Tensor, labels: torch.Tensor) -> list[float]:
    """One number a row, a token at a time."""
    found = []
    for row in range(logits.shape[0]):
        total = 0.0
        for position in range(1, logits.shape[1]):
            token = int(labels[row, position])
            if token != IGNORED:
                weights = [math.exp(float(v)) for v in logits[row, position - 1]]
                total -= math.log(weights[token] / sum(weights))
        found.append(total)
    return found


def naive_kl(teacher: torch.Tensor, ours: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean of sum p log(p/q) over the whole vocabulary, a position at a time."""
    values = []
    for row, position in (labels != IGNORED).nonzero().tolist():
        p = torch.softmax(teacher[row, position - 1].double(), 0)
        q = torch.softmax(ours[row, position - 1].double(), 0)
        values.append((p * (p / q).log()).sum())
    return torch.stack(values).mean()


def naive_bucketed_kl(teacher: list[list[float]], ours: list[list[float]], k: int) -> float:
    """Mean over positions of sum p log(p/q) over the teacher's k likeliest tokens and over all others as one."""
    total = 0.0
    for teacher_row, our_row in zip(teacher, ours, strict=True):
        p, q = ([math.exp(v) / sum(map(math.exp, row)) for v in row] for row in (teacher_row, our_row))
        kept = sorted(range(len(p)), key=lambda token: -p[token])[:k]
        total += sum(p[token] * math.log(p[token] / q[token]) for token in kept)
        if k < len(p):
            rest = [sum(share[token] for token in range(len(p)) if token not in kept) for share in (p, q)]
            total += rest[0] * math.log(rest[0] / rest[1])
    return total / len(teacher)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_row_losses_sum_the_cross_entropy_of_response_tokens_only() -> None:
    logits, labels = some_logits(1), some_labels()
    found = row_losses(response_logits(logits, labels), labels)
    assert found.nll.shape == (ROWS,)
    assert found.nll.tolist() == pytest.approx(naive_nll(logits, labels), rel=1e-5)
    assert found.num_tokens.tolist() == NUM_TOKENS.tolist()
    assert float(found.mean) == pytest.approx(sum(naive_nll(logits, labels)) / 6, rel=1e-5)


def test_row_losses_of_bf16_logits_are_summed_in_float32() -> None:
    logits = some_logits(1).bfloat16()
    found = row_losses(response_logits(logits, some_labels()), some_labels()).nll
    assert found.dtype == torch.float32
    assert torch.equal(found, row_losses(response_logits(logits.float(), some_labels()), some_labels()).nll)


def test_the_gradient_of_row_losses_is_that_of_finite_differences() -> None:
    logits, labels = some_logits(2), some_labels()
    leaf = logits.clone().requires_grad_(True)
    row_losses(response_logits(leaf, labels), labels).nll.sum().backward()  # type: ignore[no-untyped-call]
    assert leaf.grad is not None
    for place in [(0, 2, 4), (0, 3, 0), (1, 1, 6), (2, 3, 3), (2, 0, 0)]:
        moved = [logits.double().clone() for _ in range(2)]
        moved[0][place] += 1e-5
        moved[1][place] -= 1e-5
        slope = (sum(naive_nll(moved[0], labels)) - sum(naive_nll(moved[1], labels))) / 2e-5
        assert float(leaf.grad[place]) == pytest.approx(slope, abs=1e-5)


def test_descent_and_ascent_are_the_mean_loss_and_its_negative() -> None:
    losses = RowLosses(torch.tensor([4.0, 6.0, 2.0]), NUM_TOKENS)
    assert float(descent(losses)) == 2.0
    assert float(ascent(losses)) == -2.0


@pytest.mark.parametrize("beta", [0.05, 0.7, 3.0])
def test_npo_and_simnpo_are_their_papers_formulas(beta: float) -> None:
    nll, start = [3.0, 11.0, 2.0], START.tolist()
    losses = RowLosses(torch.tensor(nll), NUM_TOKENS)
    expected = sum(-2 / beta * math.log(sigmoid(beta * (n - s))) for n, s in zip(nll, start, strict=True)) / 3
    assert float(npo(losses, START.float(), beta)) == pytest.approx(expected, rel=1e-5)
    lengths = NUM_TOKENS.tolist()
    expected = sum(-2 / beta * math.log(sigmoid(beta * n / k)) for n, k in zip(nll, lengths, strict=True)) / 3
    assert float(simnpo(losses, beta)) == pytest.approx(expected, rel=1e-5)


def test_npo_pushes_like_ascent_for_small_beta_and_lets_go_of_rows_already_forgotten() -> None:
    nll = START.clone().requires_grad_(True)
    npo(RowLosses(nll, NUM_TOKENS), START, 1e-4).backward()  # type: ignore[no-untyped-call]
    assert nll.grad is not None
    assert nll.grad.tolist() == pytest.approx([-1 / 3] * 3, rel=1e-3)
    forgotten = (START + 100).requires_grad_(True)
    npo(RowLosses(forgotten, NUM_TOKENS), START, 0.1).backward()  # type: ignore[no-untyped-call]
    assert forgotten.grad is not None
    assert float(forgotten.grad.abs().max()) < 1e-4


def test_captured_targets_are_the_likeliest_tokens_and_at_most_the_vocabulary() -> None:
    targets = capture_targets(response_logits(some_logits(3), some_labels()), 2)
    log_probs = torch.log_softmax(response_logits(some_logits(3), some_labels()), dim=-1)
    assert targets.tokens.shape == targets.log_probs.shape == (6, 2)
    assert torch.equal(targets.tokens[:, 0], log_probs.argmax(dim=-1))
    assert torch.equal(targets.log_probs, log_probs.gather(-1, targets.tokens))
    assert capture_targets(response_logits(some_logits(3), some_labels()), 1000).tokens.shape == (6, VOCABULARY)


@given(st.integers(0, 10_000), st.integers(0, 10_000))
def test_kl_with_the_whole_vocabulary_kept_is_the_full_kl(teacher_seed: int, seed: int) -> None:
    teacher, ours, labels = some_logits(teacher_seed), some_logits(seed), some_labels()
    found = kl_to_targets(response_logits(ours, labels), capture_targets(response_logits(teacher, labels), VOCABULARY))
    assert float(found) == pytest.approx(float(naive_kl(teacher, ours, labels)), rel=1e-4, abs=1e-6)


@given(st.integers(0, 10_000), st.integers(0, 10_000), st.floats(0.1, 12))
@example(0, 889, 5.0)  # one minus the kept tokens' probability, instead of the others' sum, fails here
def test_kl_with_fewer_tokens_kept_is_a_lower_bound_that_grows_with_them(
    teacher_seed: int, seed: int, scale: float
) -> None:
    teacher, ours, labels = some_logits(teacher_seed, scale), some_logits(seed, scale), some_labels()
    whole = float(naive_kl(teacher, ours, labels))
    values = [
        float(kl_to_targets(response_logits(ours, labels), capture_targets(response_logits(teacher, labels), k)))
        for k in range(1, VOCABULARY)
    ]
    slack = 1e-5 + 1e-5 * whole
    assert all(-slack <= lower <= upper + slack for lower, upper in zip(values, [*values[1:], whole], strict=True))


@pytest.mark.parametrize("k", [1, 3, VOCABULARY])
def test_kl_is_zero_where_both_agree(k: int) -> None:
    logits, labels = some_logits(4), some_labels()
    assert float(
        kl_to_targets(response_logits(logits, labels), capture_targets(response_logits(logits, labels), k))
    ) == pytest.approx(0, abs=1e-6)


def test_kl_with_a_tail_is_that_of_the_two_tokens_and_one_bucket() -> None:
    labels = torch.tensor([[IGNORED, 1]])
    teacher = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().expand(1, 2, 4)
    ours = torch.tensor([0.1, 0.6, 0.1, 0.2]).log().expand(1, 2, 4)
    expected = 0.5 * math.log(0.5 / 0.1) + 0.3 * math.log(0.3 / 0.6) + 0.2 * math.log(0.2 / 0.3)
    assert float(
        kl_to_targets(response_logits(ours, labels), capture_targets(response_logits(teacher, labels), 2))
    ) == pytest.approx(expected, rel=1e-5)


@given(st.integers(0, 10_000), st.integers(0, 10_000), st.integers(1, VOCABULARY))
def test_kl_is_that_of_a_loop_over_the_kept_tokens_and_the_bucket(teacher_seed: int, seed: int, k: int) -> None:
    labels = some_labels()
    teacher, ours = (response_logits(some_logits(number), labels) for number in (teacher_seed, seed))
    found = float(kl_to_targets(ours, capture_targets(teacher, k)))
    assert found == pytest.approx(naive_bucketed_kl(teacher.tolist(), ours.tolist(), k), rel=1e-3, abs=1e-5)


OBJECTIVES: dict[str, Callable[[RowLosses], torch.Tensor]] = {
    "descent": descent,
    "ascent": ascent,
    "npo": lambda losses: npo(losses, START, 0.4),
    "simnpo": lambda losses: simnpo(losses, 0.4),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradients_from_the_logits_on_are_those_of_finite_differences_in_float64(name: str) -> None:
    labels = some_labels()
    logits = response_logits(some_logits(2).double(), labels).requires_grad_(True)
    assert row_losses(logits, labels).nll.dtype == torch.float64
    assert torch.autograd.gradcheck(lambda values: OBJECTIVES[name](row_losses(values, labels)), (logits,))


@pytest.mark.parametrize("k", [1, 2, VOCABULARY])
def test_the_gradient_of_kl_is_that_of_finite_differences_in_float64(k: int) -> None:
    teacher, ours = (response_logits(some_logits(seed).double(), some_labels()) for seed in (5, 6))
    targets = capture_targets(teacher, k)
    assert torch.autograd.gradcheck(lambda values: kl_to_targets(values, targets), (ours.requires_grad_(True),))


@pytest.mark.parametrize("name", [*OBJECTIVES, "kl"])
def test_losses_and_gradients_are_bit_for_bit_the_same_every_time(name: str) -> None:
    labels = some_labels()
    targets = capture_targets(response_logits(some_logits(5), labels), 2)
    found = []
    for _ in range(2):
        logits = response_logits(some_logits(2), labels).requires_grad_(True)
        value = kl_to_targets(logits, targets) if name == "kl" else OBJECTIVES[name](row_losses(logits, labels))
        value.backward()  # type: ignore[no-untyped-call]
        assert logits.grad is not None
        assert bool(logits.grad.any())
        found.append((value, logits.grad))
    assert all(torch.equal(first, second) for first, second in zip(*found, strict=True))


def test_kl_stays_finite_where_one_side_is_certain() -> None:
    labels = torch.tensor([[IGNORED, 1]])
    sure, flat = torch.tensor([[[200.0, 0, 0, 0]] * 2]), torch.zeros(1, 2, 4)
    for teacher, ours in ((sure, flat), (flat, sure)):
        leaf = ours.clone().requires_grad_(True)
        value = kl_to_targets(response_logits(leaf, labels), capture_targets(response_logits(teacher, labels), 1))
        value.backward()  # type: ignore[no-untyped-call]
        assert math.isfinite(float(value.detach()))
        assert leaf.grad is not None
        assert bool(torch.isfinite(leaf.grad).all())
