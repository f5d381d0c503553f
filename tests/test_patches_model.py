"""Loading a model folder and naming the weights that a patch may touch."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from patches.errors import ModelUnsuitableError
from patches.model import count_entries, decoder_linears, load_model, load_tokenizer, pick_device

CPU = torch.device("cpu")
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def test_sharded_and_single_file_folders_load_the_same_weights(tiny_folder: Path, tiny_sharded_folder: Path) -> None:
    index = json.loads((tiny_sharded_folder / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) == 2
    one, two = (load_model(folder, dtype="auto", device=CPU) for folder in (tiny_folder, tiny_sharded_folder))
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, two.state_dict()[name])


def test_loaded_models_are_in_eval_mode_without_gradients_and_of_the_asked_type(tiny_folder: Path) -> None:
    for dtype, expected in (("auto", torch.float32), ("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        model = load_model(tiny_folder, dtype=dtype, device=CPU)
        assert not model.training
        assert all(p.dtype == expected and not p.requires_grad for p in model.parameters())


def test_decoder_linears_are_exactly_the_blocks_matrices_by_their_checkpoint_names(
    model: PreTrainedModel, tiny_folder: Path
) -> None:
    stored = load_file(tiny_folder / "model.safetensors")
    found = decoder_linears(model)
    assert set(found) == {name for name in stored if any(f".{part}.weight" in name for part in LINEARS)}
    assert len(found) == 2 * len(LINEARS)
    assert all(torch.equal(weight, stored[name]) for name, weight in found.items())


def test_decoder_linears_are_the_models_own_parameters_not_copies(model: PreTrainedModel) -> None:
    parameters = dict(model.named_parameters())
    assert all(weight is parameters[name] for name, weight in decoder_linears(model).items())


def test_a_model_without_linear_layers_in_a_list_of_blocks_is_refused() -> None:
    with pytest.raises(ModelUnsuitableError, match="decoder layers"):
        decoder_linears(torch.nn.Sequential(torch.nn.Linear(2, 2)))  # type: ignore[arg-type]
    with pytest.raises(ModelUnsuitableError, match="Linear"):
        decoder_linears(torch.nn.ModuleDict({"layers": torch.nn.ModuleList([torch.nn.ReLU()])}))  # type: ignore[arg-type]


def test_entries_are_counted_over_all_tensors() -> None:
    assert count_entries([torch.zeros(3, 4), torch.zeros(5), torch.tensor(1.0)]) == 18


def test_the_device_is_the_asked_one_and_a_missing_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("cpu") == CPU
    assert pick_device("auto") == CPU
    with pytest.raises(ModelUnsuitableError, match="cuda:1"):
        pick_device("cuda:1")


def test_a_tokenizer_without_chat_template_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "bare"))
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ModelUnsuitableError, match="chat template"):
        load_tokenizer(folder)


def test_a_folder_with_pickled_weights_only_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "pickled"))
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(OSError, match="safetensors"):
        load_model(folder, dtype="auto", device=CPU)
