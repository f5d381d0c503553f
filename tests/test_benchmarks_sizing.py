"""The memory that docs/operations.md tells of is computed from what the code keeps."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks import sizing
from patches.mask import Mask
from patches.model import decoder_linears
from patches.sparse import MarkedEntries

TINY = sizing.Shape(hidden=32, intermediate=48, num_layers=2, vocabulary=40, kv_fraction=0.5)


def test_the_operations_page_has_the_table_that_is_computed() -> None:
    page = Path(sizing.__file__).parents[1] / "docs" / "operations.md"
    assert sizing.table() in page.read_text(), "`python -m benchmarks.sizing` prints it"


def test_a_shape_has_the_entries_of_such_a_model() -> None:
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=40,
    )
    model = LlamaForCausalLM(config)
    linears = decoder_linears(model)
    assert TINY.decoder == sum(weight.numel() for weight in linears.values())
    assert TINY.largest == max(weight.numel() for weight in linears.values())
    assert TINY.parameters == sum(weight.numel() for weight in model.parameters())


def test_a_chosen_entry_takes_what_its_tensors_take() -> None:
    weight = torch.randn(64, 64).bfloat16()
    mask: Mask = torch.rand(64, 64) < 0.1
    marked = MarkedEntries(weight, mask)
    optimizer = torch.optim.AdamW([marked.values])
    marked.values.grad = torch.ones_like(marked.values)
    optimizer.step()
    kept = [value for value in vars(marked).values() if isinstance(value, torch.Tensor) and value is not weight]
    kept += [marked.values.grad, *(v for v in optimizer.state[marked.values].values() if v.dim())]
    num = int(mask.sum())
    old = [tensor for tensor in kept if tensor.dtype == weight.dtype]  # `in_main_memory` has them
    taken = sum(tensor.numel() * tensor.element_size() for tensor in kept)
    assert [tensor.numel() for tensor in old] == [num]
    assert taken == num * sizing.CHOSEN_BYTES + 2 * num


def test_main_memory_has_both_patches_the_chosen_entries_and_two_kinds_of_old_values() -> None:
    mask: Mask = torch.rand(64, 64) < 0.1
    weight = torch.randn(64, 64).bfloat16()
    kept = [torch.zeros(64, 64), torch.zeros(64, 64), mask, weight.clone(), weight[mask]]
    square = sizing.Shape(64, 64, 1, 1, 1.0)
    num_matrices = square.decoder // weight.numel()
    taken = num_matrices * sum(tensor.numel() * tensor.element_size() for tensor in kept)
    share = int(mask.sum()) / mask.numel()
    assert taken == sizing.in_main_memory(square, 2, share)
    assert sizing.in_main_memory(square, 4) > sizing.in_main_memory(square, 2)


def test_every_part_grows_with_the_model_and_its_type() -> None:
    small, large = sizing.SHAPES[1], sizing.SHAPES[3]
    for part in (sizing.choosing, sizing.training_sparse, sizing.training_full, sizing.measuring):
        assert part(small, 2) < part(large, 2) < part(large, 4)
    assert sizing.training_sparse(large, 2) < sizing.choosing(large, 2) < sizing.training_full(large, 2)
    assert sizing.training_sparse(large, 2, 0.2) > sizing.training_sparse(large, 2)
