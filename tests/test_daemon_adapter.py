"""A version as an adapter: peft loads it, it does what is reported, and it is refused where it loses too much."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from peft import PeftModel
from transformers import LlamaConfig, LlamaForCausalLM

from daemon import cli, exitcodes
from patches.agreement import agreement, next_logits
from patches.chat import encode_prompt
from patches.model import load_model
from state.store import Store
from state.tensors import ModelFolder, to_float32
from tests.command_world import Alignd
from tests.tiny_model import asked, build_tokenizer
from tests.version_world import changed_version, noise

CPU = torch.device("cpu")
Q, UP = "model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.up_proj.weight"
EMBED, NORM, HEAD = "model.embed_tokens.weight", "model.layers.1.input_layernorm.weight", "lm_head.weight"


@pytest.fixture
def alignd(tmp_path: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> Alignd:
    assert cli.main(["init", "--no-trial", str(tmp_path / "home"), "--model", str(tiny_folder)]) == 0
    return Alignd(tmp_path / "home", capsys)


@pytest.fixture
def store(alignd: Alignd) -> Iterator[Store]:
    with Store.open(alignd.home) as opened:
        yield opened


def _change(store: Store, *names: str, rank: int = 0) -> None:
    base = store.model_path(0)
    changes = {name: noise(base, name, rank=rank if "proj" in name else 0, seed=i) for i, name in enumerate(names)}
    changed_version(store, 1, changes)


def _values(folder: Path, name: str) -> np.ndarray:
    model = ModelFolder.open(folder)
    return to_float32(np.array(model.read_raw(name)), model.tensors[name].dtype).reshape(model.tensors[name].shape)


def _merged(base: Path, adapter: Path) -> Any:
    adapted = PeftModel.from_pretrained(load_model(base, dtype="float32", device=CPU), str(adapter))
    return adapted.merge_and_unload()


def test_peft_loads_the_adapter_and_the_error_is_the_reported_one(alignd: Alignd, store: Store, tmp_path: Path) -> None:
    _change(store, Q, UP)
    told = alignd.json("export", "v1", str(tmp_path / "out"), "--to", "peft", "--rank", "8", "--force")["error"]
    base, version = store.model_path(0), store.model_path(1)
    merged = {name: value.numpy() for name, value in _merged(base, tmp_path / "out").state_dict().items()}
    lost = total = 0.0
    for name in (Q, UP):
        wanted, got = _values(version, name) - _values(base, name), merged[name] - _values(base, name)
        assert told["per_tensor"][name] == pytest.approx(
            np.linalg.norm(wanted - got) / np.linalg.norm(wanted), rel=1e-3
        )
        lost, total = lost + float(((wanted - got) ** 2).sum()), total + float((wanted**2).sum())
    assert told["relative_error"] == pytest.approx((lost / total) ** 0.5, rel=1e-3)
    assert 0.1 < told["relative_error"] < told["worst_error"] < 1
    assert json.loads((tmp_path / "out/adapter_error.json").read_text()) == told


def test_the_reported_agreement_is_that_of_the_loaded_models(alignd: Alignd, store: Store, tmp_path: Path) -> None:
    _change(store, Q, UP)
    prompts = [{"prompt": text} for text in ("how do I florp a wuzzle", "wuzzle or vask", "count the zims")]
    (alignd.home / "probes/utility.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    told = alignd.json("export", "v1", str(tmp_path / "out"), "--to", "peft", "--force")["error"]["logits"]
    texts = [encode_prompt(build_tokenizer(), asked(row["prompt"])) for row in prompts]
    reference = next_logits(load_model(store.model_path(1), dtype="float32", device=CPU), texts, CPU)
    found = agreement(reference, next_logits(_merged(store.model_path(0), tmp_path / "out"), texts, CPU))
    assert (told["num_prompts"], told["prompts"]) == (3, "prompts of the probes")
    assert told["mean_kl"] == pytest.approx(found.mean_kl, rel=0.05, abs=1e-6)
    assert told["mean_kl"] < told["base_mean_kl"]


def test_a_change_of_low_rank_is_carried_whole(alignd: Alignd, store: Store, tmp_path: Path) -> None:
    _change(store, Q, UP, rank=3)
    told = alignd.json("export", "v1", str(tmp_path / "out"), "--to", "peft", "--rank", "3")["error"]
    assert told["relative_error"] < 1e-3 and told["logits"]["same_top_rate"] == 1.0
    assert (told["logits"]["prompts"], told["logits"]["num_prompts"]) == ("texts of random tokens", 16)
    assert told["logits"]["mean_kl"] < 1e-6 < told["logits"]["base_mean_kl"]


def test_too_large_an_error_is_refused_with_the_rank_that_would_do(
    alignd: Alignd, store: Store, tmp_path: Path
) -> None:
    _change(store, Q, UP)
    words = ["export", "v1", str(tmp_path / "out"), "--to", "peft"]
    code, _, err = alignd(*words, "--rank", "2")
    assert code == exitcodes.REFUSED and "rank 2 loses" in err and "--force writes it anyway" in err
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".tmp-*"))
    enough = int(err.partition("--rank ")[2].split()[0])
    assert alignd(*words, "--rank", str(enough - 1))[0] == exitcodes.REFUSED
    assert alignd.json(*words, "--rank", str(enough))["error"]["relative_error"] <= 0.2
    assert alignd("export", "v1", str(tmp_path / "b"), "--to", "peft", "--max-error", "0.99", "--rank", "2")[0] == 0


@pytest.mark.parametrize("whole", [(EMBED,), (NORM,), (HEAD, NORM, EMBED)])
def test_what_has_no_low_rank_is_saved_whole(
    alignd: Alignd, store: Store, tmp_path: Path, whole: tuple[str, ...]
) -> None:
    """The output head is a linear layer as any other; embeddings and norms are not."""
    _change(store, Q, *whole)
    told = alignd.json("export", "v1", str(tmp_path / "out"), "--to", "peft", "--rank", "32")["error"]
    assert set(told["whole"]) == {name.removesuffix(".weight") for name in whole if name != HEAD}
    assert told["logits"]["mean_kl"] < 1e-6 < told["logits"]["base_mean_kl"]
    merged = _merged(store.model_path(0), tmp_path / "out").state_dict()
    for name in {EMBED, NORM} & set(whole):
        assert np.array_equal(merged[name].numpy(), _values(store.model_path(1), name))


def test_a_head_that_shares_the_weight_of_the_embeddings_goes_with_them(
    tmp_path: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = LlamaConfig.from_pretrained(tiny_folder)
    config.tie_word_embeddings = True
    LlamaForCausalLM(config).save_pretrained(tmp_path / "tied")
    build_tokenizer().save_pretrained(tmp_path / "tied")
    assert HEAD not in ModelFolder.open(tmp_path / "tied").tensors
    assert cli.main(["init", "--no-trial", str(tmp_path / "home"), "--model", str(tmp_path / "tied")]) == 0
    with Store.open(tmp_path / "home") as store:
        _change(store, Q, EMBED)
    alignd = Alignd(tmp_path / "home", capsys)
    told = alignd.json("export", "v1", str(tmp_path / "out"), "--to", "peft", "--rank", "32")["error"]
    assert told["whole"] == ["model.embed_tokens"] and told["logits"]["mean_kl"] < 1e-6


@pytest.mark.parametrize(("names", "what"), [((), "the bytes of v0"), ((NORM,), "none of its linear layers differs")])
def test_nothing_of_low_rank_makes_no_adapter(
    alignd: Alignd, store: Store, tmp_path: Path, names: tuple[str, ...], what: str
) -> None:
    if names:
        _change(store, *names)
    code, _, err = alignd("export", "current", str(tmp_path / "out"), "--to", "peft")
    assert code == exitcodes.FAILED and what in err and "overlay carries any change" in err
    assert not (tmp_path / "out").exists()


def test_shards_of_bfloat16_are_subtracted_as_they_are_stored(
    tmp_path: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = LlamaForCausalLM.from_pretrained(tiny_folder, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "half", max_shard_size="50KB")
    build_tokenizer().save_pretrained(tmp_path / "half")
    assert cli.main(["init", "--no-trial", str(tmp_path / "home"), "--model", str(tmp_path / "half")]) == 0
    with Store.open(tmp_path / "home") as store:
        _change(store, Q, UP)
    words = ["export", "v1", str(tmp_path / "out"), "--to", "peft", "--rank", "32"]
    told = Alignd(tmp_path / "home", capsys).json(*words)["error"]
    assert told["relative_error"] < 1e-5 and told["logits"]["mean_kl"] < 1e-6 < told["logits"]["base_mean_kl"]


@pytest.mark.parametrize("words", [("--rank", "0"), ("--max-error", "-1"), ("--max-error", "nan"), ("--rank", "x")])
def test_ranks_and_bounds_that_mean_nothing_are_usage_errors(
    alignd: Alignd, tmp_path: Path, words: tuple[str, str]
) -> None:
    assert alignd("export", "v0", str(tmp_path / "out"), "--to", "peft", *words)[0] == exitcodes.USAGE


def test_a_damaged_base_is_not_subtracted(alignd: Alignd, store: Store, tmp_path: Path) -> None:
    _change(store, Q)
    path = store.model_path(0) / "model.safetensors"
    path.chmod(0o600)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert alignd("export", "v1", str(tmp_path / "out"), "--to", "peft")[0] == exitcodes.INTEGRITY


def test_card_and_configuration_name_the_base(alignd: Alignd, store: Store, tmp_path: Path) -> None:
    _change(store, Q, rank=2)
    alignd.json("export", "v1", str(tmp_path / "out"), "--to", "peft", "--rank", "2", "--base-model", "zorp/glim")
    config = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["peft_type"], config["r"]) == ("zorp/glim", "LORA", 2)
    card = ModelCard.load(tmp_path / "out/README.md")
    assert (card.data.base_model, card.data.library_name) == ("zorp/glim", "peft")
    assert "## What the adapter loses" in card.text
    assert alignd.text("export", "v1", str(tmp_path / "b"), "--to", "peft", "--rank", "2").count("\n") == 5
