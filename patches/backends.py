"""What is trained: the decoder's linear weights themselves, LoRA adapters on them, or only some of their entries.

All end as the same thing, a task vector ``{name: tuned - current}`` in float32 on the CPU, and leave the model as it
was.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Literal

import torch
from peft import LoraConfig, get_peft_model
from peft.helpers import disable_input_dtype_casting
from peft.tuners.lora import Linear as LoraLinear
from transformers import PreTrainedModel

from patches.errors import NothingTrainedError
from patches.mask import Masks
from patches.model import decoder_linears
from patches.sparse import MarkedEntries

TaskVector = dict[str, torch.Tensor]
BackendName = Literal["full", "lora", "sparse"]


@dataclass
class Training:
    """An open training: its model and parameters, and once it is closed its task vector."""

    model: PreTrainedModel
    parameters: list[torch.Tensor]
    task_vector: TaskVector = field(default_factory=dict)

    def after_step(self) -> None:
        """Bring the model up to its parameters: due after every optimizer step, before the next forward pass."""


@dataclass
class SparseTraining(Training):
    """A training whose parameters are copies of weight entries."""

    entries: list[MarkedEntries] = field(default_factory=list)

    def after_step(self) -> None:
        for marked in self.entries:
            marked.write()


def usual_learning_rate(backend: BackendName, hidden_size: int) -> float:
    """AdamW's learning rate where none is set; for weights themselves it shrinks as the model gets wider, as in muP.

    Source: arXiv 2203.03466; the constants are what worked at a hidden size of 128. Few entries must go further.
    """
    return {"lora": 2e-4, "full": 0.08 / hidden_size, "sparse": 0.24 / hidden_size}[backend]


@contextmanager
def open_training(
    model: PreTrainedModel, backend: BackendName, *, lora_rank: int, seed: int, masks: Masks | None = None
) -> Iterator[Training]:
    """A model ready to be trained; at the end the task vector is taken and the model put back.

    Args:
        lora_rank: and ``seed``: of ``lora`` only.
        masks: of ``sparse`` only: by weight name, bool, shape of the weight; what is marked is trained, and a weight
            without a mask is not.
    Raises:
        NothingTrainedError: the masks mark nothing, or no weight changed.
        ValueError: masks are missing, not wanted, of a weight that is not trained, or of another shape or type.
    """
    with _opened(model, backend, lora_rank=lora_rank, seed=seed, masks=masks) as training:
        yield training
    if not any(bool(delta.any()) for delta in training.task_vector.values()):
        raise NothingTrainedError("training changed no weight; raise learning_rate or max_steps")


def _opened(
    model: PreTrainedModel, backend: BackendName, *, lora_rank: int, seed: int, masks: Masks | None
) -> AbstractContextManager[Training]:
    if backend == "sparse":
        if masks is None:
            raise ValueError("backend 'sparse' trains what masks mark; give it masks")
        return _open_sparse(model, masks)
    if masks is not None:
        raise ValueError(f"backend {backend!r} trains whole weights; masks go with 'sparse' only")
    return _open_full(model) if backend == "full" else _open_lora(model, lora_rank, seed)


@contextmanager
def _open_full(model: PreTrainedModel) -> Iterator[Training]:
    weights = decoder_linears(model)
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    for weight in weights.values():
        weight.data = weight.data.float()  # steps far below bf16's resolution must add up
        weight.requires_grad_(True)
    training = Training(model, list(weights.values()))
    try:
        with _mixed_types(model):
            yield training
        training.task_vector = {
            name: (weight.detach() - before[name].float()).cpu() for name, weight in weights.items()
        }
    finally:
        for name, weight in weights.items():
            weight.requires_grad_(False)
            weight.grad = None
            weight.data = before[name]


def _mixed_types(model: PreTrainedModel) -> torch.autocast:
    """Lets float32 weights meet the activations of a model whose other tensors are of a narrower type."""
    # the cache would serve the weights of the first step to all later ones
    return torch.autocast(
        model.device.type, dtype=model.dtype, enabled=model.dtype != torch.float32, cache_enabled=False
    )


@contextmanager
def _open_sparse(model: PreTrainedModel, masks: Masks) -> Iterator[Training]:
    weights = decoder_linears(model)
    _require_fitting(masks, weights)
    marked = {name: MarkedEntries(weights[name], mask) for name, mask in masks.items() if bool(mask.any())}
    if not marked:
        raise NothingTrainedError(f"the masks of {len(masks)} weights mark no entry; keep a larger share of the patch")
    entries = list(marked.values())
    training = SparseTraining(model, [each.values for each in entries], entries=entries)
    try:
        for each in entries:
            each.open()
        yield training
        training.task_vector = {
            name: marked[name].delta() if name in marked else torch.zeros(weight.shape)
            for name, weight in weights.items()
        }
    finally:
        for each in entries:
            each.close()


def _require_fitting(masks: Masks, weights: Mapping[str, torch.Tensor]) -> None:
    """Raise ValueError unless every mask is a bool tensor for one of the weights, of its shape."""
    unknown = sorted(masks.keys() - weights.keys())
    if unknown:
        raise ValueError(f"masks of {unknown}; allowed: the decoder's linear weights, such as {next(iter(weights))!r}")
    for name, mask in masks.items():
        if mask.dtype != torch.bool or mask.shape != weights[name].shape:
            raise ValueError(
                f"mask of {name!r}: {mask.dtype} {tuple(mask.shape)}; wanted: torch.bool {tuple(weights[name].shape)}"
            )


@contextmanager
def _open_lora(model: PreTrainedModel, rank: int, seed: int) -> Iterator[Training]:
    names = [name.removesuffix(".weight") for name in decoder_linears(model)]
    torch.manual_seed(seed)  # peft draws A from the global generator
    wrapped = get_peft_model(
        model, LoraConfig(r=rank, lora_alpha=rank, lora_dropout=0.0, bias="none", target_modules=names)
    )
    training = Training(model, [p for p in wrapped.parameters() if p.requires_grad])
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, LoraLinear)}
    try:
        # the adapters are float32, and so would be their products, which take longer than those of the whole weights
        with _mixed_types(model), disable_input_dtype_casting(wrapped):
            yield training
        training.task_vector = {
            f"{name}.weight": layer.get_delta_weight("default").detach().float().cpu() for name, layer in layers.items()
        }
    finally:
        wrapped.unload()
        for name in ("peft_config", "_hf_peft_config_loaded"):
            vars(model).pop(name, None)  # peft leaves them behind; the class has its own of the second
        model.requires_grad_(False)
