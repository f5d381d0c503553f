"""Loading a model folder, and which of its parameters a patch may touch."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from patches.errors import ModelUnsuitableError

logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # a bar in a service's log helps nobody
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def pick_device(setting: str) -> torch.device:
    """The device that ``auto | cpu | cuda | cuda:N`` means on this machine."""
    if setting == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if setting.startswith("cuda") and not torch.cuda.is_available():
        raise ModelUnsuitableError(f"[model] device = {setting!r}, but torch sees no GPU; use 'auto' or 'cpu'")
    return torch.device(setting)


def load_model(folder: Path, *, dtype: str, device: torch.device) -> PreTrainedModel:
    """The causal language model in ``folder``, in eval mode, without gradients.

    Args:
        folder: Hugging Face layout; only safetensors and no remote code are read.
        dtype: float32, bfloat16, or auto (float32 on a CPU, else as stored).
        device: where the weights go.
    """
    wanted = DTYPES.get(dtype) or (torch.float32 if device.type == "cpu" else "auto")
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=wanted, local_files_only=True, trust_remote_code=False, use_safetensors=True
    )
    model.requires_grad_(False)
    model.train(False)
    torch.nn.Module.to(model, device)
    return model


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in ``folder``; it must be a fast one (offsets) and have a chat template."""
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if not getattr(tokenizer, "is_fast", False):
        raise ModelUnsuitableError(f"{folder}: the tokenizer has no tokenizer.json; convert it to a fast one")
    if not tokenizer.chat_template:
        raise ModelUnsuitableError(f"{folder}: the tokenizer has no chat template; add chat_template.jinja")
    return tokenizer


def decoder_linears(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Weights of the linear layers inside the decoder blocks, by their name in the checkpoint.

    Embeddings, norms, biases and the output head are left alone, as SNIP pruning and SafePatching do.
    """
    blocks = _decoder_blocks(model)
    found = {
        f"{prefix}.{name}.weight": module.weight
        for prefix, block in blocks
        for name, module in block.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    if not found:
        raise ModelUnsuitableError(f"{type(model).__name__} has no torch.nn.Linear inside its decoder layers")
    return found


def count_entries(parameters: Iterable[torch.Tensor]) -> int:
    """Number of entries of all tensors together."""
    return sum(parameter.numel() for parameter in parameters)


def _decoder_blocks(model: PreTrainedModel) -> list[tuple[str, torch.nn.Module]]:
    """The longest ModuleList of the model, which holds the decoder layers in every Hugging Face causal model."""
    lists = [(name, m) for name, m in model.named_modules() if isinstance(m, torch.nn.ModuleList)]
    outer = [(n, m) for n, m in lists if not any(n.startswith(other + ".") for other, _ in lists)]
    if not outer:
        raise ModelUnsuitableError(f"{type(model).__name__} has no list of decoder layers")
    name, blocks = max(outer, key=lambda item: len(item[1]))
    return [(f"{name}.{index}", block) for index, block in enumerate(blocks)]
