"""What an open training changes, what it gives back, and that each back end trains what it says and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, get_args

import pytest
import torch
from peft.tuners.lora import Linear as LoraLinear
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from patches.backends import BackendName, TaskVector, Training, open_training
from patches.chat import Encoded
from patches.errors import NothingTrainedError
from patches.mask import Masks
from patches.merge import shifted
from patches.model import count_entries, decoder_linears
from patches.objectives import row_losses
from tests.tiny_model import assert_same, encode_pairs, runner_of, snapshot

BACKENDS: tuple[BackendName, ...] = get_args(BackendName)


@pytest.fixture(scope="module")
def rows(tokenizer: PreTrainedTokenizerBase) -> list[Encoded]:
    return encode_pairs(tokenizer)


def jolt(training: Training) -> None:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in training.parameters:
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    training.after_step()


def some_masks(model: PreTrainedModel) -> Masks:
    """A fifth of every weight but the first, which has no mask, and the second, whose mask is empty."""
    generator = torch.Generator().manual_seed(11)
    shapes = {name: weight.shape for name, weight in decoder_linears(model).items()}
    masks = {name: torch.rand(shape, generator=generator) < 0.2 for name, shape in shapes.items()}
    first, second = list(masks)[:2]
    masks[second] = torch.zeros_like(masks[second])
    return {name: mask for name, mask in masks.items() if name != first}


def opened(model: PreTrainedModel, backend: BackendName) -> AbstractContextManager[Training]:
    masks = some_masks(model) if backend == "sparse" else None
    return open_training(model, backend, lora_rank=4, seed=1, masks=masks)


def test_full_training_opens_exactly_the_decoder_linears(model: PreTrainedModel) -> None:
    with open_training(model, "full", lora_rank=4, seed=1) as training:
        opened = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        jolt(training)
    assert opened == set(decoder_linears(model))


def test_a_full_task_vector_is_tuned_minus_current_in_float32(model: PreTrainedModel) -> None:
    before = snapshot(model)
    with open_training(model, "full", lora_rank=4, seed=1) as training:
        jolt(training)
        tuned = snapshot(model)
    assert list(training.task_vector) == list(decoder_linears(model))
    for name, delta in training.task_vector.items():
        assert delta.dtype == torch.float32
        assert not delta.requires_grad
        assert torch.equal(delta, tuned[name] - before[name])
    assert_same(model, before)


@pytest.mark.parametrize("rank", [1, 4])
def test_a_lora_task_vector_is_b_times_a_times_its_scale(model: PreTrainedModel, rank: int) -> None:
    before = snapshot(model)
    expected = {}
    with open_training(model, "lora", lora_rank=rank, seed=1) as training:
        jolt(training)
        adapted: dict[str, Any] = {n: layer for n, layer in model.named_modules() if isinstance(layer, LoraLinear)}
        for name, layer in adapted.items():
            a, b = layer.lora_A["default"].weight.detach(), layer.lora_B["default"].weight.detach()
            assert a.shape[0] == b.shape[1] == rank
            expected[f"{name}.weight"] = b.double() @ a.double() * layer.scaling["default"]
    assert_same(model, before)
    assert set(training.task_vector) == set(expected) == set(decoder_linears(model))
    for name, delta in training.task_vector.items():
        assert delta.shape == before[name].shape
        assert torch.allclose(delta.double(), expected[name], atol=1e-6)
        assert int(torch.linalg.matrix_rank(delta.double(), tol=1e-5)) == rank


def test_adapters_of_a_bf16_model_are_fed_and_multiply_in_bf16_and_are_float32_themselves(
    model: PreTrainedModel, rows: list[Encoded]
) -> None:
    model.to(torch.bfloat16)  # type: ignore[arg-type]
    seen: set[tuple[torch.dtype, torch.dtype]] = set()

    def note(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        seen.add((inputs[0].dtype, output.dtype))

    with open_training(model, "lora", lora_rank=4, seed=1) as training:
        adapted: list[Any] = [layer for layer in model.modules() if isinstance(layer, LoraLinear)]
        hooks = [layer.lora_A["default"].register_forward_hook(note) for layer in adapted]
        runner_of(model).forward(rows)
        for hook in hooks:
            hook.remove()
        assert {parameter.dtype for parameter in training.parameters} == {torch.float32}
        jolt(training)
    assert seen == {(torch.bfloat16, torch.bfloat16)}


@pytest.mark.parametrize("backend", BACKENDS)
def test_adding_a_task_vector_reproduces_the_adapted_models_logits(
    model: PreTrainedModel, rows: list[Encoded], backend: BackendName
) -> None:
    runner = runner_of(model)
    with torch.no_grad():
        start, _ = runner.forward(rows)
        with opened(model, backend) as training:
            jolt(training)
            adapted, _ = runner.forward(rows)
        with shifted(model, training.task_vector):
            merged, _ = runner.forward(rows)
    assert float((adapted - start).abs().max()) > 0.1
    assert torch.allclose(merged, adapted, atol=1e-3, rtol=1e-3)


def test_lora_trains_adapters_only_and_starts_from_the_model_itself(
    model: PreTrainedModel, rows: list[Encoded]
) -> None:
    runner = runner_of(model)
    with torch.no_grad():
        start, _ = runner.forward(rows)
        with open_training(model, "lora", lora_rank=4, seed=1) as training:
            opened, _ = runner.forward(rows)
            names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
            jolt(training)
    assert torch.allclose(opened, start, atol=1e-5)
    assert names
    assert all(".lora_A." in name or ".lora_B." in name for name in names)


def test_the_adapters_start_depends_on_the_seed_alone(model: PreTrainedModel) -> None:
    drawn = []
    for noise, seed in ((0, 1), (99, 1), (0, 2)):
        torch.manual_seed(noise)
        with open_training(model, "lora", lora_rank=4, seed=seed) as training:
            drawn.append(training.parameters[0].detach().clone())
            jolt(training)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_training_that_is_left_by_an_error_gives_the_model_back(model: PreTrainedModel, backend: BackendName) -> None:
    before = snapshot(model)
    with pytest.raises(KeyError), opened(model, backend) as training:
        jolt(training)
        raise KeyError
    assert training.task_vector == {}
    assert_same(model, before)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_training_that_changed_nothing_is_refused(model: PreTrainedModel, backend: BackendName) -> None:
    before = snapshot(model)
    with pytest.raises(NothingTrainedError), opened(model, backend):
        pass
    assert_same(model, before)


def learn(model: PreTrainedModel, rows: Sequence[Encoded], max_tokens: int = 4096) -> None:
    """One accumulated gradient of the loss, as `patches.derive` takes it."""
    runner = runner_of(model, max_tokens)
    for group in runner.micro_batches(rows):
        logits, padded = runner.forward([rows[i] for i in group])
        (row_losses(logits, padded.labels).nll.sum() / len(rows)).backward()  # type: ignore[no-untyped-call]


def trained(
    model: PreTrainedModel, rows: Sequence[Encoded], backend: BackendName, *, max_tokens: int = 60, rate: float = 1e-3
) -> TaskVector:
    """Four clipped AdamW steps on the masked entries; `full` gets there by zeroing the gradient elsewhere."""
    masks = some_masks(model)
    with opened(model, backend) as training:
        optimizer = torch.optim.AdamW(training.parameters, lr=rate, weight_decay=0.0)
        for _ in range(4):
            learn(model, rows, max_tokens)
            if backend == "full":
                for name, weight in decoder_linears(model).items():
                    assert weight.grad is not None
                    weight.grad *= masks.get(name, torch.zeros(weight.shape))
            torch.nn.utils.clip_grad_norm_(training.parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            training.after_step()
    return training.task_vector


@pytest.mark.parametrize("max_tokens", [60, 4096])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sparse_training_is_full_training_with_the_gradient_zeroed_outside_the_masks(
    model: PreTrainedModel, rows: list[Encoded], dtype: torch.dtype, max_tokens: int
) -> None:
    model.to(dtype)  # type: ignore[arg-type]
    masks, before = some_masks(model), snapshot(model)
    found, expected = (trained(model, rows, backend, max_tokens=max_tokens) for backend in ("sparse", "full"))
    assert_same(model, before)
    assert list(found) == list(expected) == list(decoder_linears(model))
    for name, delta in found.items():
        mask = masks.get(name, torch.zeros(delta.shape, dtype=torch.bool))
        assert delta.dtype == torch.float32
        assert not delta.requires_grad
        assert bool((delta[~mask] == 0).all())
        assert bool((delta[mask] != 0).float().mean() > 0.9) or not bool(mask.any())
        assert float((delta - expected[name]).abs().max()) <= 1e-6  # the clipped norm is summed in another order


def test_the_gradient_of_marked_entries_is_bit_for_bit_the_whole_ones_summed_over_micro_batches(
    model: PreTrainedModel, rows: list[Encoded]
) -> None:
    masks = some_masks(model)
    with opened(model, "full") as training:
        learn(model, rows, 60)
        whole = {name: weight.grad for name, weight in decoder_linears(model).items()}
        jolt(training)
    with opened(model, "sparse") as training:
        learn(model, rows, 60)
        found = [values.grad for values in training.parameters]
        jolt(training)
    expected = [grad[masks[name]] for name, grad in whole.items() if grad is not None and name in masks]
    for ours, theirs in zip(found, [grad for grad in expected if grad.numel()], strict=True):
        assert ours is not None
        assert torch.equal(ours, theirs)


def test_sparse_training_takes_memory_for_the_marked_entries_only(model: PreTrainedModel, rows: list[Encoded]) -> None:
    marked = sum(int(mask.sum()) for mask in some_masks(model).values())
    with opened(model, "sparse") as training:
        optimizer = torch.optim.AdamW(training.parameters, lr=1e-3)
        learn(model, rows)
        assert all(weight.grad is None for weight in model.parameters())
        optimizer.step()
        moments = [t for state in optimizer.state.values() for key, t in state.items() if key != "step"]
        training.after_step()
    assert {values.dim() for values in training.parameters} == {1}
    assert {values.dtype for values in training.parameters} == {torch.float32}
    assert count_entries(training.parameters) == marked
    assert count_entries(moments) == 2 * marked


def test_sparse_training_opens_only_weights_with_a_marked_entry(model: PreTrainedModel) -> None:
    with opened(model, "sparse") as training:
        open_now = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        jolt(training)
    assert open_now == {name for name, mask in some_masks(model).items() if bool(mask.any())}
    assert len(open_now) == len(decoder_linears(model)) - 2


def test_a_bf16_models_marked_entries_are_float32_and_the_weight_their_rounding(model: PreTrainedModel) -> None:
    model.to(torch.bfloat16)  # type: ignore[arg-type]
    before, masks = snapshot(model), some_masks(model)
    with opened(model, "sparse") as training:
        jolt(training)
        during = snapshot(model)
    for name, delta in training.task_vector.items():
        assert during[name].dtype == torch.bfloat16
        assert torch.equal(during[name], (before[name].float() + delta).bfloat16())
        exact = delta[masks[name]] if name in masks else delta[:0]
        assert exact.numel() == 0 or not torch.equal(exact, exact.bfloat16().float())
    assert_same(model, before)


def test_sparse_steps_far_below_bf16s_resolution_add_up(model: PreTrainedModel, rows: list[Encoded]) -> None:
    exact = trained(model, rows, "sparse", rate=1e-5)
    model.to(torch.bfloat16)  # type: ignore[arg-type]
    made = trained(model, rows, "sparse", rate=1e-5)
    flat, reference = (torch.cat([d.flatten() for d in vector.values()]) for vector in (made, exact))
    assert float(torch.cosine_similarity(flat, reference, dim=0)) > 0.9


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_sparse_training_gives_equal_task_vectors(
    model: PreTrainedModel, rows: list[Encoded], dtype: torch.dtype
) -> None:
    model.to(dtype)  # type: ignore[arg-type]
    first = trained(model, rows, "sparse")
    torch.manual_seed(99)
    second = trained(model, rows, "sparse")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_sparse_training_starts_from_a_shifted_model_and_gives_that_one_back(
    model: PreTrainedModel, rows: list[Encoded]
) -> None:
    before = snapshot(model)
    vector = {name: torch.full(weight.shape, 0.05) for name, weight in decoder_linears(model).items()}
    with shifted(model, vector):
        moved = snapshot(model)
        made = trained(model, rows, "sparse")
        assert_same(model, moved)
    assert_same(model, before)
    plain = trained(model, rows, "sparse")
    assert any(not torch.equal(made[name], plain[name]) for name in made)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sparse_training_left_between_backward_and_step_leaves_no_trace(
    model: PreTrainedModel, rows: list[Encoded], dtype: torch.dtype
) -> None:
    model.to(dtype)  # type: ignore[arg-type]
    before = snapshot(model)
    with pytest.raises(KeyError), opened(model, "sparse") as training:
        jolt(training)
        learn(model, rows)
        raise KeyError
    assert_same(model, before)
    gradients = [values.grad for values in training.parameters]
    for weight in decoder_linears(model).values():
        weight.requires_grad_(True)
    learn(model, rows)  # reaches the weights again, and no longer what was trained
    assert all(weight.grad is not None for weight in decoder_linears(model).values())
    assert all(values.grad is gradient for values, gradient in zip(training.parameters, gradients, strict=True))


def test_masks_that_mark_nothing_are_refused(model: PreTrainedModel) -> None:
    before = snapshot(model)
    empty = {name: torch.zeros_like(mask) for name, mask in some_masks(model).items()}
    for masks in (empty, {}):
        with (
            pytest.raises(NothingTrainedError, match="mark no entry"),
            open_training(model, "sparse", lora_rank=4, seed=1, masks=masks),
        ):
            pass
    assert_same(model, before)


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"lm_head.weight": torch.ones(2, 2, dtype=torch.bool)}, r"lm_head\.weight.*allowed: the decoder's"),
        ({"model.layers.0.mlp.up_proj.weight": torch.ones(32, 48, dtype=torch.bool)}, r"\(32, 48\).*\(48, 32\)"),
        ({"model.layers.0.mlp.up_proj.weight": torch.ones(48, 32)}, r"torch\.float32.*wanted: torch\.bool"),
    ],
    ids=["name", "shape", "type"],
)
def test_masks_that_do_not_fit_are_refused_before_anything_is_touched(
    model: PreTrainedModel, wrong: Masks, reason: str
) -> None:
    before = snapshot(model)
    with (
        pytest.raises(ValueError, match=reason),
        open_training(model, "sparse", lora_rank=4, seed=1, masks={**some_masks(model), **wrong}),
    ):
        pass
    assert_same(model, before)


def test_masks_go_with_the_sparse_back_end_and_only_with_it(model: PreTrainedModel) -> None:
    with pytest.raises(ValueError, match="give it masks"), open_training(model, "sparse", lora_rank=4, seed=1):
        pass
    for backend in ("full", "lora"):
        with (
            pytest.raises(ValueError, match="'sparse' only"),
            open_training(model, backend, lora_rank=4, seed=1, masks=some_masks(model)),
        ):
            pass
