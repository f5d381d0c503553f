"""A version as a PEFT adapter of its base: low-rank matrices, what cannot be one whole, and what that loses."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel

from daemon.compare import differing_tensors
from patches.agreement import Agreement, agreement, next_logits
from patches.lowrank import LowRank, least_rank, truncate
from patches.model import load_model
from state.tensors import ModelFolder, to_float32

Texts = Sequence[Sequence[int]]
"""Token ids."""


class NoAdapterError(Exception):
    """No adapter can be made of this; the message says why."""


@dataclass(frozen=True, eq=False)
class Change:
    """What of the base a version changes, as an adapter can carry it."""

    matrices: dict[str, LowRank]
    """By module."""
    whole: tuple[str, ...]
    """Modules that are saved as they are in the version."""

    @property
    def relative_error(self) -> float:
        """Frobenius norm of all that is lost over that of the whole change of these matrices."""
        total = sum(part.squared_norm for part in self.matrices.values())
        lost = sum(part.squared_error for part in self.matrices.values())
        return float(np.sqrt(lost / total)) if total else 0.0

    def least_rank(self, max_error: float) -> int | None:
        """The rank at which the error is at most `max_error`; None where it is not known."""
        return least_rank(list(self.matrices.values()), max_error)


@dataclass(frozen=True)
class Folders:
    """The model folders of base and version, and where they are loaded."""

    base: Path
    version: Path
    device: torch.device

    def load(self, folder: Path) -> PreTrainedModel:
        """A model in float32, so that what is measured is the adapter and not the rounding."""
        return load_model(folder, dtype="float32", device=self.device)


def find_change(folders: Folders, digests: Sequence[Mapping[str, str]], rank: int) -> Change:
    """The difference of version and base, cut to a rank.

    Args:
        digests: by tensor, of the base and of the version.
    Raises:
        NoAdapterError: nothing differs, or something that is no parameter of a module.
    """
    names = differing_tensors(dict(digests[0]), dict(digests[1]))
    if not names:
        raise NoAdapterError("it has the bytes of v0: there is nothing for an adapter to carry")
    with torch.device("meta"):
        skeleton = _skeleton(folders.base)
    modules: dict[str, list[str]] = {}
    for name in names:
        modules.setdefault(_module_of(skeleton, name), []).append(name)
    old, new = ModelFolder.open(folders.base), ModelFolder.open(folders.version)
    matrices = {
        module: truncate(_difference(old, new, f"{module}.weight"), rank)
        for module, tensors in modules.items()
        if _is_matrix(skeleton, module, tensors)
    }
    if not matrices:
        raise NoAdapterError("none of its linear layers differs: there is nothing of low rank for an adapter to carry")
    return Change(matrices, tuple(module for module in modules if module not in matrices))


def write_adapter(change: Change, folders: Folders, target: Path, *, rank: int, base_name: str) -> None:
    """The adapter, as peft itself saves it."""
    model = folders.load(folders.base)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=rank,
        lora_alpha=rank,  # scales by 1: the product is the change
        lora_dropout=0.0,
        bias="none",
        target_modules=sorted(change.matrices),
        modules_to_save=list(change.whole) or None,
        ensure_weight_tying=_ties(model, change.whole),
    )
    with _without_warnings():
        adapted = get_peft_model(model, config)
    _fill(adapted, change)
    if change.whole:
        _fill_whole(adapted, folders.load(folders.version), change.whole)
    adapted.peft_config["default"].base_model_name_or_path = base_name
    adapted.save_pretrained(str(target), save_embedding_layers=False)


def measure(folders: Folders, adapter: Path, texts: Texts) -> tuple[Agreement, Agreement]:
    """How well base with adapter, and the bare base, follow the version; the adapter is loaded by peft from its folder."""
    version = folders.load(folders.version)
    reference = next_logits(version, texts, folders.device)
    del version
    base = folders.load(folders.base)
    bare = agreement(reference, next_logits(base, texts, folders.device))
    with _without_warnings():
        adapted = PeftModel.from_pretrained(base, str(adapter))
    adapted.train(False)
    return agreement(reference, next_logits(adapted, texts, folders.device)), bare


def error_view(change: Change, rank: int, measured: tuple[Agreement, Agreement], prompts: Mapping[str, Any]) -> Any:
    """What the adapter loses, as plain values.

    Args:
        prompts: `prompts` and `num_prompts`: what it was measured on.
    """
    errors = {f"{module}.weight": part.relative_error for module, part in change.matrices.items()}
    worst = max(errors, key=lambda name: errors[name], default=None)
    return {
        "rank": rank,
        "num_matrices": len(errors),
        "num_whole": len(change.whole),
        "whole": list(change.whole),
        "relative_error": change.relative_error,
        "worst_tensor": worst,
        "worst_error": errors[worst] if worst else 0.0,
        "logits": {**prompts, **asdict(measured[0]), "base_mean_kl": measured[1].mean_kl},
        "per_tensor": errors,
    }


@contextmanager
def _without_warnings() -> Iterator[None]:
    """What peft and transformers warn each other about is nothing that a user of ours can mend."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


@torch.no_grad()
def _fill(adapted: PeftModel, change: Change) -> None:
    for module, part in change.matrices.items():
        layer = _wrapped(adapted, module)
        layer.lora_A["default"].weight.copy_(part.down)
        layer.lora_B["default"].weight.copy_(part.up)


def _fill_whole(adapted: PeftModel, version: PreTrainedModel, whole: Sequence[str]) -> None:
    for module in whole:
        saved = _wrapped(adapted, module).modules_to_save["default"]
        saved.load_state_dict(version.get_submodule(module).state_dict())


def _wrapped(adapted: PeftModel, module: str) -> Any:
    """What peft has put in the place of a module of the base."""
    return adapted.get_submodule(f"base_model.model.{module}")


def _skeleton(folder: Path) -> torch.nn.Module:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    model: torch.nn.Module = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    return model


def _module_of(skeleton: torch.nn.Module, tensor: str) -> str:
    """The module that a tensor of the checkpoint is a parameter of."""
    module, _, parameter = tensor.rpartition(".")
    try:
        found = skeleton.get_submodule(module)
    except AttributeError:
        found = None
    if found is None or not module or parameter not in dict(found.named_parameters(recurse=False)):
        raise NoAdapterError(
            f"{tensor} differs, and is no parameter of {type(skeleton).__name__}: no adapter carries it"
        )
    return module


def _is_matrix(skeleton: torch.nn.Module, module: str, tensors: Sequence[str]) -> bool:
    return isinstance(skeleton.get_submodule(module), torch.nn.Linear) and list(tensors) == [f"{module}.weight"]


def _difference(old: ModelFolder, new: ModelFolder, name: str) -> torch.Tensor:
    """New minus old, (out, in), float32."""
    info = new.tensors[name]
    values = to_float32(np.array(new.read_raw(name)), info.dtype) - to_float32(np.array(old.read_raw(name)), info.dtype)
    return torch.from_numpy(values).view(info.shape)


def _ties(model: PreTrainedModel, whole: Sequence[str]) -> bool:
    """Whether the output head shares the weight of a module that is saved whole, and must go with it."""
    into, out = model.get_input_embeddings(), model.get_output_embeddings()  # type: ignore[no-untyped-call]
    shared = out is not None and out.weight is into.weight
    return shared and any(model.get_submodule(name) is into for name in whole)
