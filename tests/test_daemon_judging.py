"""The judge of the settings: its identity, its digest, what a round does with it, and a round that waits for it."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
from pathlib import Path
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from daemon import judging, worker
from daemon.config import ConfigError, load, parse
from daemon.config_judge import JudgeSection
from daemon.judge_check import what_is_wrong
from daemon.probes import load as load_probes
from daemon.progress import FailedEvent, Reporter, decode_event
from daemon.workbench import Workbench
from patches.errors import JudgeError
from patches.judge_formats import FORMATS
from patches.judge_models import ModelJudge
from state.store import Store
from tests.judge_models import save_longformer
from tests.judge_stands import MODEL, judge_stand
from tests.round_world import config_of, opened, write_probes

CLASSIFIER: dict[str, Any] = {"kind": "classifier", "model": "judge"}


@pytest.fixture(scope="module")
def longformer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_longformer(tmp_path_factory.mktemp("judge") / "longformer")


def identity(digest: str = "d1", **changes: Any) -> str:
    return judging.scorer_identity(JudgeSection(**(CLASSIFIER | changes)), digest)


def test_an_identity_changes_with_all_that_a_verdict_depends_on() -> None:
    http: dict[str, Any] = {"kind": "http", "model": "m", "url": "http://a/v1"}
    found = [
        identity(),
        identity("d2"),
        identity(threshold=0.4),
        identity(text="pair"),
        identity(harmful_labels=("a",)),
        identity(refusal_labels=("b",)),
        identity(**(http | {"harmful_labels": ("LABEL_1",)})),
        identity(**http, format="harmbench"),
        identity(**(http | {"model": "n"})),
        identity(**(http | {"url": "http://b/v1"})),
    ]
    assert len(set(found)) == len(found)
    assert identity() == identity(batch_rows=3) and identity(**http) == identity(**http, timeout_s=9.0, parallel=9)
    assert identity().startswith("classifier judge ") and identity(model="/a/b/judge") == identity()


def test_the_rules_identity_changes_with_their_settings() -> None:
    known: list[dict[str, Any]] = [{}, {"refusals": ("zim",)}, {"content_recall": 0.4}, {"max_new_tokens": 9}]
    found = {judging.rule_identity(JudgeSection(**settings)) for settings in known}
    assert len(found) == 4 and judging.rule_identity(JudgeSection()) in found


def test_the_digest_is_of_the_models_files_and_not_of_what_lies_beside(longformer: Path, tmp_path: Path) -> None:
    settings = JudgeSection(**CLASSIFIER)
    shutil.copytree(longformer, tmp_path / "judge")
    first = judging.model_digest(settings, tmp_path)
    (tmp_path / "judge" / "README.md").write_text("zim")
    assert judging.model_digest(settings, tmp_path) == first and len(first) == 64
    with (tmp_path / "judge" / "config.json").open("a") as file:
        file.write(" ")
    assert judging.model_digest(settings, tmp_path) != first
    assert judging.model_digest(JudgeSection(), tmp_path) == ""
    with pytest.raises(JudgeError, match="nowhere, which cannot be read: No such file"):
        judging.model_digest(JudgeSection(kind="classifier", model="nowhere"), tmp_path)


def test_a_workbench_never_takes_the_rules_for_the_judge_that_is_configured(tmp_path: Path, tiny_folder: Path) -> None:
    write_probes(tmp_path)
    config = config_of({"judge": CLASSIFIER})
    with pytest.raises(AssertionError):
        Workbench.open(config, tiny_folder, tiny_folder, load_probes(tmp_path, config))


def test_a_round_is_judged_by_the_classifier_and_says_so(tmp_path: Path, tiny_folder: Path, longformer: Path) -> None:
    config = config_of({"judge": CLASSIFIER})
    with opened(tmp_path / "home", tiny_folder, config) as home:
        shutil.copytree(longformer, home.path / "judge")
        round_id = home.begin(home.drop()).id
        row = home.commit(round_id, home.run(round_id))
        digest = judging.model_digest(config.judge, home.path)
        record, steps = home.store.version_record(row.id), home.store.round(round_id).artefacts
    expected = f"{judging.scorer_identity(config.judge, digest)} on {judging.rule_identity(config.judge)}"
    assert record["judge"]["identity"] == record["metrics"]["judge"] == expected
    assert {record["measured"][who]["judge"] for who in ("candidate", "current", "base")} == {expected}
    assert record["judge"] | {"agreement_with_rules": None} == {
        "identity": expected,
        "kind": "classifier",
        "model": "judge",
        "format": "",
        "model_sha256": digest,
        "agreement_with_rules": None,
    }
    counts = steps["evaluate"]["counts"]
    asked = counts["batches"]["num_prompts"] + counts["standing"]["num_prompts"]
    assert record["judge"]["agreement_with_rules"]["num"] == asked > 0
    assert record["inputs"]["judge.model"] == digest


def test_a_round_whose_judge_changes_begins_anew(tmp_path: Path, tiny_folder: Path, longformer: Path) -> None:
    config = config_of({"judge": CLASSIFIER})
    with opened(tmp_path / "home", tiny_folder, config) as home:
        shutil.copytree(longformer, home.path / "judge")
        round_id = home.begin(home.drop()).id
        with pytest.raises(BaseException, match=r"^over_safety$"):
            home.run(round_id, kill_at="over_safety")
        (home.path / "judge" / "vocab.txt").write_text("other")
        home.run(round_id)
    assert home.reporters[1].steps[0] == "parse", "nothing of the first start is gone on from"


def worked(home: Path, round_id: str) -> FailedEvent:
    out = io.StringIO()
    with capture_logs() as logs:
        worker.run(home, "round", round_id, Reporter(out))
    found = decode_event(out.getvalue().splitlines()[-1])
    assert isinstance(found, FailedEvent), found
    assert "zims" not in json.dumps(logs, default=str)
    return found


@pytest.mark.parametrize(
    ("judge", "words"),
    [
        (CLASSIFIER, "[judge] model is"),
        ({"kind": "http", "model": "m", "url": "http://127.0.0.1:9/v1", "attempts": 1}, "cannot be reached"),
    ],
)
def test_without_its_judge_a_round_waits_and_blames_no_batch(
    tmp_path: Path, tiny_folder: Path, judge: dict[str, Any], words: str
) -> None:
    with opened(tmp_path / "home", tiny_folder, config_of({"judge": judge})) as home:
        round_id = home.begin(home.drop()).id
        path = home.path
    found = worked(path, round_id)
    assert (found.retry, found.blameless) == (True, True)
    assert found.reason.startswith("the judge cannot be used: ") and words in found.reason
    assert "`alignd abort`" in found.reason
    with Store.open(path) as store:
        assert [version.name for version in store.ledger.versions()] == ["v0"]


def test_a_server_that_goes_away_while_it_judges_publishes_nothing(tmp_path: Path, tiny_folder: Path) -> None:
    with judge_stand("questions") as stand:
        judge = {"kind": "http", "model": MODEL, "url": f"{stand.url}/v1", "attempts": 1}
        with opened(tmp_path / "home", tiny_folder, config_of({"judge": judge})) as home:
            round_id = home.begin(home.drop()).id
            path = home.path
        usual = stand.routes["POST", "/v1/chat/completions"]
        stand.routes["POST", "/v1/chat/completions"] = lambda *args: (
            usual(*args) if len(stand.calls) < 5 else (500, {"error": "zims"})
        )
        found = worked(path, round_id)
    assert found.blameless and "answers 500" in found.reason and "zims" not in found.reason


def test_a_server_that_cannot_judge_is_found_before_a_round_trains(tmp_path: Path) -> None:
    with judge_stand("questions") as stand:
        config = config_of({"judge": {"kind": "http", "model": MODEL, "url": f"{stand.url}/v1"}})
        stand.fail("/v1/chat/completions", (200, {"choices": [{"message": {"content": "zim"}}]}))
        with pytest.raises(JudgeError, match="replies, and not as format 'questions' is read"):
            judging.scorer_of(config, tmp_path, load_probes(tmp_path, config))
        assert judging.scorer_of(config, tmp_path, load_probes(tmp_path, config)) is not None


def test_a_server_judges_a_round(tmp_path: Path, tiny_folder: Path) -> None:
    with judge_stand("questions") as stand:
        judge = {"kind": "http", "model": MODEL, "url": f"{stand.url}/v1"}
        with opened(tmp_path / "home", tiny_folder, config_of({"judge": judge})) as home:
            round_id = home.begin(home.drop()).id
            outcome = home.run(round_id)
            assert outcome.outcome == "ready" or outcome.reasons
            found = home.store.round(round_id).artefacts["evaluate"]["judge"]
        assert stand.paths().count("POST /v1/chat/completions") > found["agreement_with_rules"]["num"] > 0
    assert found["identity"].startswith(f"http {MODEL} ") and found["model_sha256"] == ""


def test_bisect_judges_as_the_settings_say(tmp_path: Path, tiny_folder: Path, longformer: Path) -> None:
    from daemon.bisect import Examiner, Question

    config = config_of({"judge": CLASSIFIER})
    with opened(tmp_path / "home", tiny_folder, config) as home:
        shutil.copytree(longformer, home.path / "judge")
        files = load_probes(home.path, config)
        row = home.store.current()
        examiner = Examiner(home.store, config, files, Question("harm", files.harm, 0.5), row)
        assert isinstance(examiner.bench.judge, ModelJudge)
        assert examiner.counts(row).num_prompts == len(files.harm)


def loaded(tmp_path: Path, text: str) -> JudgeSection:
    (tmp_path / "service.toml").write_text(f"[judge]\n{text}\n")
    return load(tmp_path / "service.toml").judge


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('kind = "classifier"', "judge.model is missing, which kind 'classifier' needs"),
        ('kind = "generative"\nmodel = "m"', "judge.format is missing, .*; allowed: llama_guard, wildguard, harmbench"),
        (
            'kind = "generative"\nmodel = "m"\nformat = "questions"',
            "judge.format is 'questions', which is for kind 'http'",
        ),
        ('kind = "http"\nmodel = "m"', "judge.url is missing, which kind 'http' needs"),
        ('kind = "http"\nurl = "http://a/v1"', "judge.model is missing"),
        ('model = "m"', "judge.model would do nothing for kind 'rule'; it is for classifier, generative, http"),
        ("threshold = 0.4", "judge.threshold would do nothing for kind 'rule'; it is for classifier; take it out"),
        ('kind = "classifier"\nmodel = "m"\nurl = "http://a/v1"', "judge.url would do nothing for kind 'classifier'"),
        (
            'kind = "classifier"\nmodel = "m"\nformat = "wildguard"',
            "judge.format would do nothing for kind 'classifier'",
        ),
        ('kind = "classifier"\nmodel = "m"\nharmful_labels = []', "judge.harmful_labels is empty"),
        ('kind = "classifier"\nmodel = "m"\nrefusal_labels = ["LABEL_1"]', "both hold 'LABEL_1'"),
        ('kind = "classifier"\nmodel = "m"\nthreshold = 1.5', "threshold"),
        ('kind = "http"\nmodel = "m"\nurl = "ftp://a"', "judge.url is 'ftp://a'; name an address such as"),
        ('kind = "http"\nmodel = "m"\nurl = "http://a/b c"', "judge.url is 'http://a/b c'; name an address such as"),
        ('kind = "http"\nmodel = "m"\nurl = "http://a/\\t"', "name an address such as"),
        ('kind = "http"\nmodel = "m"\nurl = "http://a:99999"', "name an address such as"),
        ('kind = "http"\nmodel = "m"\nurl = "http://[a/v1"', "judge.url is 'http://"),
        ('kind = "http"\nmodel = "m"\nurl = "http://u:p@a/v1"', "judge.url holds a user or password"),
        ('kind = "http"\nmodel = "m"\nurl = "http://a/v1/chat/completions"', "leave out what stands behind /v1"),
        ('kind = "http"\nmodel = "m"\nurl = "http://a/v1"\ntimeout_s = 0', "timeout_s"),
        ('kind = "oracle"', "oracle"),
        ('knid = "rule"', "unknown key `judge.knid`; did you mean `kind`"),
    ],
)
def test_a_judge_that_cannot_be_meant_is_refused_when_the_settings_are_read(
    tmp_path: Path, text: str, fault: str
) -> None:
    with pytest.raises(ConfigError, match=fault):
        loaded(tmp_path, text)


@pytest.mark.parametrize(
    "text",
    [
        'kind = "rule"\nrefusals = ["zim"]',
        'kind = "classifier"\nmodel = "m"\nthreshold = 0.3\nharmful_labels = ["a", "b"]\nrefusal_labels = ["c"]',
        'kind = "generative"\nmodel = "m"\nformat = "llama_guard"',
        'kind = "http"\nmodel = "m"\nurl = "https://a:8/v1/"\nformat = "wildguard"\napi_key_file = "key"',
    ],
)
def test_a_judge_that_makes_sense_is_taken(tmp_path: Path, text: str) -> None:
    assert loaded(tmp_path, text).kind in text


def test_a_server_is_asked_the_questions_unless_another_format_is_named(tmp_path: Path) -> None:
    text = 'kind = "http"\nmodel = "m"\nurl = "http://a/v1"'
    assert loaded(tmp_path, text).format_name == "questions" and parse({}).judge.format_name == ""


def fault_of(home: Path, **judge: Any) -> str:
    return what_is_wrong(JudgeSection(**judge), home)[0]


def test_the_doctor_looks_at_the_judge_without_loading_it(longformer: Path, tmp_path: Path) -> None:
    shutil.copytree(longformer, tmp_path / "judge")
    assert what_is_wrong(JudgeSection(), tmp_path) == ("", "rules; 0 refusal openings beside the built-in ones")
    good = what_is_wrong(JudgeSection(**CLASSIFIER), tmp_path)
    assert good == ("", f"classifier LongformerForSequenceClassification in {tmp_path / 'judge'}")
    assert "nowhere/config.json cannot be read" in fault_of(tmp_path, kind="classifier", model="nowhere")
    assert "needs one that ends with ForCausalLM" in fault_of(
        tmp_path, kind="generative", model="judge", format="wildguard"
    )
    assert fault_of(tmp_path, **CLASSIFIER, harmful_labels=("bad",)).endswith(
        "has no label 'bad'; it has LABEL_0, LABEL_1"
    )
    (tmp_path / "judge" / "model.safetensors").unlink()
    assert "has no safetensors file" in fault_of(tmp_path, **CLASSIFIER)
    (tmp_path / "judge" / "config.json").write_text("zim")
    assert "is no JSON" in fault_of(tmp_path, **CLASSIFIER)


def test_the_doctor_asks_a_server(tmp_path: Path) -> None:
    with judge_stand("questions") as stand:
        settings: dict[str, Any] = {"kind": "http", "model": MODEL, "url": f"{stand.url}/v1", "attempts": 1}
        assert what_is_wrong(JudgeSection(**settings), tmp_path) == ("", f"{stand.url} judges as {MODEL}")
    assert "cannot be reached" in fault_of(tmp_path, **settings)


@pytest.mark.parametrize(
    ("odd", "words"),
    [
        ({"id2label": ["a", "b"]}, "something else than a table as id2label"),
        ({"id2label": 3}, "something else than a table as id2label"),
        ({"architectures": 3}, "something else than a list as architectures"),
        ({"architectures": "LlamaForCausalLM"}, "something else than a list as architectures"),
        ({"architectures": [3]}, "is a 3, and kind 'classifier' needs one"),
    ],
)
def test_the_doctor_finds_words_for_a_strange_config(tmp_path: Path, odd: dict[str, Any], words: str) -> None:
    (tmp_path / "judge").mkdir()
    (tmp_path / "judge" / "model.safetensors").touch()
    (tmp_path / "judge" / "config.json").write_text(json.dumps(odd))
    assert words in fault_of(tmp_path, **CLASSIFIER)


def test_an_identity_changes_with_how_a_guard_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    guard = JudgeSection(kind="generative", model="m", format="harmbench")
    found = [judging.scorer_identity(guard, "d1", dtype=dtype) for dtype in ("float32", "bfloat16")]
    usual = FORMATS["harmbench"]
    for changes in ({"template": usual.template + " "}, {"max_new_tokens": 2}):
        monkeypatch.setitem(FORMATS, "harmbench", dataclasses.replace(usual, **cast(Any, changes)))
        found.append(judging.scorer_identity(guard, "d1", dtype="float32"))
    assert len(set(found)) == 4
    assert identity() == judging.scorer_identity(JudgeSection(**CLASSIFIER), "d1", dtype="bfloat16")


@pytest.mark.parametrize(("name", "value"), [("MIN_WORDS_FOR_VARIETY", 17), ("SORRY", "sorry")])
def test_the_rules_identity_changes_with_the_rules(monkeypatch: pytest.MonkeyPatch, name: str, value: Any) -> None:
    before = judging.rule_identity(JudgeSection())
    monkeypatch.setattr(judging, name, value)
    assert judging.rule_identity(JudgeSection()) != before
