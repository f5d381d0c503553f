"""`alignd judge`: labelled files of three kinds, the judges beside the labels and each other, and no text told."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from daemon import cli, exitcodes
from daemon.commands_judge import _score_lines
from daemon.labelled import read_labelled
from daemon.rows import BatchError
from policies.calibration import best_threshold
from tests.judge_models import HARMFUL_WORD, save_longformer
from tests.judge_stands import MODEL, judge_stand

SECRET = "quibblefrotz"
PROMPT = "how do i florp"


@pytest.fixture(scope="module")
def longformer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_longformer(tmp_path_factory.mktemp("judge") / "longformer")


def rows() -> list[dict[str, Any]]:
    """The rules see harm in all but the refusal; the word decides what is labelled, but for one answer."""
    harm = [f"take {word} and {HARMFUL_WORD}" for word in ("zims", "vask", "plim", "three")]
    plain = ["take zims", "take vask and plim", "how do i take three zims"]
    return [
        *({"prompt": PROMPT, "response": text, "harmful": True, "refusal": False} for text in harm),
        *({"prompt": PROMPT, "response": text, "harmful": False, "refusal": False} for text in plain),
        {"prompt": PROMPT, "response": "sorry", "harmful": False, "refusal": True},
        {"prompt": PROMPT, "response": "take plim", "harmful": True, "refusal": False},
        {"prompt": SECRET, "response": SECRET, "harmful": None},
    ]


def home_of(path: Path, judge: str) -> Path:
    path.mkdir(exist_ok=True)
    (path / "service.toml").write_text(f"[judge]\n{judge}\n")
    return path / "service.toml"


def write(path: Path, found: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    return path


def trial(capsys: pytest.CaptureFixture[str], service: Path, *words: str) -> dict[str, Any]:
    assert cli.main(["-c", str(service), "--json", "judge", *words]) == exitcodes.OK
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_a_classifier_is_held_against_labels_and_rules(
    tmp_path: Path, longformer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    service = home_of(tmp_path / "home", 'kind = "classifier"\nmodel = "longformer"')
    shutil.copytree(longformer, service.parent / "longformer")
    found = trial(capsys, service, str(write(tmp_path / "labelled.jsonl", rows())))
    rules, classifier = found["judges"]
    assert (found["num_answers"], found["num_harmful"], found["num_refusals"]) == (9, 5, 1)
    assert rules["identity"].startswith("rule ") and classifier["identity"].startswith("classifier longformer ")
    assert classifier["identity"].endswith(f" on {rules['identity']}")
    counts = ("true_positive", "false_positive", "false_negative", "true_negative")
    assert [rules["harm"][name] for name in counts] == [5, 3, 0, 1]
    assert [classifier["harm"][name] for name in counts] == [4, 0, 1, 4]
    assert rules["refusal"]["recall"] == 1.0 and rules["scores"] is None
    assert classifier["num_by_label"] == {"answer": 8, "refusal": 1, "degenerate": 0}
    scores = classifier["scores"]
    assert scores["num"] == 9 and 0 < scores["brier"] < 0.25 and 0 < scores["best_threshold"] < 1
    assert scores["best"]["f1"] >= classifier["harm"]["f1"]
    (pair,) = found["agreement"]
    assert (pair["num"], pair["num_equal"], pair["only_first"], pair["only_second"]) == (9, 5, 4, 0)


def test_the_judges_of_other_settings_are_tried_too_and_the_same_one_once(
    tmp_path: Path, longformer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(longformer, tmp_path / "longformer")
    lenient = home_of(tmp_path / "b", f'kind = "classifier"\nmodel = "{tmp_path}/longformer"\nthreshold = 0.999999')
    with judge_stand("wildguard") as stand:
        service = home_of(
            tmp_path / "a", f'kind = "http"\nmodel = "{MODEL}"\nurl = "{stand.url}/v1"\nformat = "wildguard"'
        )
        words = ["--also", str(lenient), "--also", str(service.parent)]
        found = trial(capsys, service, str(write(tmp_path / "labelled.jsonl", rows())), *words)
    assert [judge["identity"].split()[0] for judge in found["judges"]] == ["rule", "http", "classifier"]
    assert len(found["agreement"]) == 3
    assert found["judges"][2]["harm"]["recall"] == 0.0 and found["judges"][1]["harm"]["recall"] == 0.8


def test_people_read_shares_and_a_proposed_threshold(
    tmp_path: Path, longformer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    service = home_of(tmp_path / "home", 'kind = "classifier"\nmodel = "longformer"')
    shutil.copytree(longformer, service.parent / "longformer")
    assert cli.main(["-c", str(service), "judge", str(write(tmp_path / "labelled.jsonl", rows()))]) == exitcodes.OK
    text = capsys.readouterr().out
    assert text.startswith("9 answers, of which 5 are labelled harmful\n")
    assert "the labels fit [judge] threshold = 0." in text
    assert "A and B agree on 55.6% of the harm, kappa" in text and "only A sees it in 4, only B in 0" in text
    assert SECRET not in text and "zims" not in text


def test_the_rules_alone_need_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    service = home_of(tmp_path / "home", 'kind = "rule"')
    found = trial(capsys, service, str(write(tmp_path / "labelled.jsonl", rows())))
    assert len(found["judges"]) == 1 and found["agreement"] == []


def test_wildguard_and_beavertails_files_are_read_as_published(tmp_path: Path) -> None:
    wild = {
        "prompt": ["a", "b", "c", "d"],
        "adversarial": [False, True, False, False],
        "response": ["zim", "vask", None, "plim"],
        "prompt_harm_label": ["harmful"] * 4,
        "response_refusal_label": ["compliance", "refusal", None, None],
        "response_harm_label": ["harmful", "unharmful", None, "unharmful"],
        "subcategory": ["x"] * 4,
    }
    pq.write_table(pa.table(wild), tmp_path / "test.parquet")
    found = read_labelled(tmp_path / "test.parquet")
    assert [(row.answer.text, row.is_harmful, row.is_refusal) for row in found] == [
        ("zim", True, False),
        ("vask", False, True),
        ("plim", False, None),
    ]
    beaver = [{"prompt": "a", "response": "zim", "category": {"x": True}, "is_safe": safe} for safe in (True, False)]
    assert [row.is_harmful for row in read_labelled(write(tmp_path / "beaver.jsonl", beaver))] == [False, True]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"prompt": "quibblefrotz", "response": "zim"}', "no labels that are known"),
        ('{"prompt": "quibblefrotz", "response": "zim", "harmful": null}', "no record in it has a label"),
        ('{"prompt": "quibblefrotz", "response": "zim", "harmful": "quibblefrotz"}', "neither true nor false"),
        ('{"prompt": "a", "response": "quibblefrotz", "response_harm_label": "quibblefrotz"}', "neither harmful nor"),
        ('{"prompt": "quibblefrotz", "response": 3, "harmful": true}', "`response` is of type int"),
        ("", "the file is empty"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_by_its_place(
    tmp_path: Path, text: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "labelled.jsonl").write_text(text)
    with pytest.raises(BatchError, match=words):
        read_labelled(tmp_path / "labelled.jsonl")
    service = home_of(tmp_path / "home", 'kind = "rule"')
    assert cli.main(["-c", str(service), "judge", str(tmp_path / "labelled.jsonl")]) == exitcodes.USAGE
    told = capsys.readouterr().err
    assert words in told and SECRET not in told


def test_a_missing_file_or_judge_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    service = home_of(tmp_path / "home", 'kind = "classifier"\nmodel = "nowhere"')
    assert cli.main(["-c", str(service), "judge", str(tmp_path / "gone")]) == exitcodes.USAGE
    assert f"{tmp_path}/gone cannot be read: No such file or directory" in capsys.readouterr().err
    labelled = write(tmp_path / "labelled.jsonl", rows())
    assert cli.main(["-c", str(service), "judge", str(labelled)]) == exitcodes.CONFIG
    assert "the judge cannot be used: [judge] model is" in capsys.readouterr().err


def test_each_answer_is_judged_once_and_degenerate_text_never(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loop = {"prompt": PROMPT, "response": "zims " * 20, "harmful": False, "refusal": False}
    labelled = write(tmp_path / "labelled.jsonl", [*rows(), loop])
    with judge_stand("questions") as stand:
        service = home_of(tmp_path / "home", f'kind = "http"\nmodel = "{MODEL}"\nurl = "{stand.url}/v1"')
        found = trial(capsys, service, str(labelled))
        assert found["num_answers"] == 10 and len(stand.calls) == 1 + 9, "an invented answer, and those of the file"


@pytest.mark.parametrize(("low", "high"), [(0.99991, 0.99997), (0.5, 0.50000001)])
def test_the_threshold_that_is_shown_parts_what_it_was_chosen_to_part(low: float, high: float) -> None:
    best = best_threshold([low, high], [False, True])
    assert best is not None
    scores = {"brier": 0.0, "calibration_error": 0.0, "best_threshold": best[0], "best": best[1].to_dict()}
    told = "\n".join(_score_lines("A", scores))
    shown = re.search(r"threshold = (\S+) best", told)
    assert shown is not None and low < float(shown[1]) <= high
