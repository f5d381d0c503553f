"""A real Longformer of two labels, as LibrAI/longformer-harmful-ro is: what it reads, how its labels become opinions."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification, pipeline

from patches.errors import JudgeError
from patches.judge import Answered
from patches.judge_classifier import Classifier, Reading, open_classifier
from tests.judge_models import roberta_tokenizer, save_longformer
from tests.tiny_model import asked

CPU = torch.device("cpu")
LIBRAI = Reading(("LABEL_1",), (), 0.5, is_of_pairs=False, batch_rows=3)
HARMFUL = ("take three zims and grolt", "grolt", "i florp grolt")
HARMLESS = ("take three zims", "vask and plim", "sorry", "how do i florp a wuzzle a wuzzle a wuzzle")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_longformer(tmp_path_factory.mktemp("judge") / "longformer")


def opened(folder: Path, reading: Reading = LIBRAI) -> Classifier:
    return open_classifier(folder, reading, identity="classifier longformer 1", device=CPU)


def said(*texts: str, prompt: str = "how do i florp") -> list[Answered]:
    return [Answered(asked(prompt), text) for text in texts]


def test_label_1_is_harm_and_label_0_is_none(folder: Path) -> None:
    found = opened(folder).opinions(said(*HARMFUL, *HARMLESS))
    assert [opinion.is_harmful for opinion in found] == [True] * len(HARMFUL) + [False] * len(HARMLESS)
    assert {opinion.is_refusal for opinion in found} == {None}


def test_scores_are_those_of_the_published_pipeline_on_the_response_alone(folder: Path) -> None:
    published: Any = pipeline("text-classification", model=str(folder), tokenizer=str(folder), top_k=None, device="cpu")
    texts = [*HARMFUL, *HARMLESS]
    expected = [{row["label"]: row["score"] for row in published([text])[0]} for text in texts]
    found = [opinion.score for opinion in opened(folder).opinions(said(*texts))]
    assert found == pytest.approx([labels["LABEL_1"] for labels in expected], abs=1e-5)


def test_batches_give_each_answer_its_own_opinion(folder: Path) -> None:
    texts = said(*HARMLESS, *HARMFUL)
    together = [opinion.score for opinion in opened(folder).opinions(texts)]
    alone = [opened(folder).opinions([text])[0].score for text in texts]
    assert together == pytest.approx(alone, abs=1e-5)


def test_the_prompt_counts_where_pairs_are_read_and_only_there(folder: Path) -> None:
    answer = said("take three zims", prompt="grolt grolt grolt")
    pairs = Reading(("LABEL_1",), (), 0.5, is_of_pairs=True, batch_rows=3)
    plain = opened(folder).opinions(said("take three zims", prompt="vask"))[0].score
    assert opened(folder).opinions(answer)[0].score == plain
    read = opened(folder, pairs)
    assert read.opinions(answer)[0].score != pytest.approx(
        read.opinions(said("take three zims", prompt="vask"))[0].score
    )


def test_the_threshold_is_where_harm_begins(folder: Path) -> None:
    score = opened(folder).opinions(said("grolt"))[0].score or 0
    for threshold, harmful in ((score, True), (score + 1e-4, False)):
        reading = Reading(("LABEL_1",), (), threshold, is_of_pairs=False, batch_rows=1)
        assert opened(folder, reading).opinions(said("grolt"))[0].is_harmful is harmful


def test_probabilities_of_several_harmful_labels_are_added_and_refusals_told(folder: Path) -> None:
    both = Reading(("LABEL_0", "LABEL_1"), (), 0.5, is_of_pairs=False, batch_rows=3)
    assert [o.score for o in opened(folder, both).opinions(said(*HARMLESS))] == pytest.approx([1.0] * len(HARMLESS))
    refusing = opened(folder, Reading(("LABEL_1",), ("LABEL_0",), 0.5, is_of_pairs=False, batch_rows=3))
    assert refusing.says_refusal and not opened(folder).says_refusal
    assert [o.is_refusal for o in refusing.opinions(said("grolt", "sorry"))] == [False, True]


def test_labels_that_do_not_exclude_each_other_are_judged_apart(tmp_path: Path) -> None:
    folder = save_longformer(tmp_path / "many", num_labels=3, problem_type="multi_label_classification")
    reading = Reading(("LABEL_1", "LABEL_2"), (), 0.5, is_of_pairs=False, batch_rows=3)
    judge = opened(folder, reading)
    inputs = judge.tokenizer("take three zims", return_tensors="pt")
    expected = cast(Any, judge.model)(**inputs).logits.sigmoid()[0, 1:].max().item()
    assert judge.opinions(said("take three zims"))[0].score == pytest.approx(expected)


@pytest.mark.parametrize("max_length", [62, 10**30])
def test_a_text_past_its_context_is_cut(tmp_path: Path, max_length: int) -> None:
    folder = save_longformer(tmp_path / "short", max_length=max_length)
    judge = opened(folder)
    assert judge.max_length == 62
    assert judge.opinions(said(" ".join(["zims"] * 500)))[0].score is not None


def test_an_opinion_that_is_no_number_is_none(folder: Path) -> None:
    judge = opened(folder)
    cast(Any, judge.model).classifier.out_proj.weight.data.fill_(float("nan"))
    assert judge.opinions(said("grolt"))[0].is_harmful is None


def test_a_label_that_it_does_not_have_is_named_with_those_it_has(folder: Path) -> None:
    with pytest.raises(JudgeError, match=r"harmful_labels holds 'harmful', .* it has LABEL_0, LABEL_1"):
        opened(folder, Reading(("harmful",), (), 0.5, is_of_pairs=False, batch_rows=3))


def test_a_model_without_a_trained_head_is_refused(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    bare = tmp_path / "bare"
    shutil.copytree(folder, bare)
    weights = load_file(bare / "model.safetensors")
    save_file({k: v for k, v in weights.items() if "classifier" not in k}, bare / "model.safetensors", {"format": "pt"})
    with pytest.raises(JudgeError, match=r"lacks 4 of the judge's weights, such as classifier.dense.bias"):
        opened(bare)


def test_a_folder_that_cannot_be_a_judge_is_refused_with_its_name(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(JudgeError, match="nowhere, which is no folder"):
        opened(tmp_path / "nowhere")
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "pytorch_model.bin").write_bytes(b"zim")
    with pytest.raises(JudgeError, match="no safetensors file"):
        opened(tmp_path / "pickled")
    odd = tmp_path / "odd"
    shutil.copytree(folder, odd)
    (odd / "config.json").write_text(json.dumps({"model_type": "grolt"}))
    with pytest.raises(JudgeError, match="cannot be loaded"):
        opened(odd)


def no_memory(*args: Any) -> None:
    raise torch.OutOfMemoryError("grolt")


def silent(*args: Any, **options: Any) -> None:
    raise AttributeError


@pytest.mark.parametrize("spoilt", ["weights", "labels", "type", "memory", "silence"])
def test_whatever_goes_wrong_while_it_is_opened_is_the_judges_fault(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoilt: str
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    config = json.loads((broken / "config.json").read_text())
    if spoilt == "weights":
        (broken / "model.safetensors").write_bytes(b"zim")
    elif spoilt == "memory":
        monkeypatch.setattr(torch.nn.Module, "to", no_memory)
    elif spoilt == "silence":
        monkeypatch.setattr(AutoTokenizer, "from_pretrained", silent)
    else:
        odd = {"id2label": ["a", "b"]} if spoilt == "labels" else {"hidden_size": "grolt"}
        (broken / "config.json").write_text(json.dumps(config | odd))
    with pytest.raises(JudgeError, match=r"broken cannot be loaded \(\w+\)") as found:
        opened(broken)
    assert "grolt" not in str(found.value)


def test_a_llama_that_names_no_padding_judges_several_answers_at_once(tmp_path: Path) -> None:
    tokenizer = roberta_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    assert config.pad_token_id is None
    cast(Any, LlamaForSequenceClassification)(config).save_pretrained(tmp_path / "llama")
    tokenizer.save_pretrained(tmp_path / "llama")
    together = [opinion.score for opinion in opened(tmp_path / "llama").opinions(said("grolt", "take three zims"))]
    alone = [opened(tmp_path / "llama").opinions(said(text))[0].score for text in ("grolt", "take three zims")]
    assert together == pytest.approx(alone, abs=1e-5)


def test_a_model_that_cannot_judge_is_found_when_it_is_opened(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **options: Any) -> None:
        raise ValueError("grolt")

    monkeypatch.setattr(Classifier, "_ask", refuse)
    with pytest.raises(JudgeError, match=r"cannot be loaded \(ValueError\)"):
        opened(folder)
