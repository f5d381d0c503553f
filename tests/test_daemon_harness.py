"""lm-evaluation-harness on tasks that are made here, where it is installed; what is said where it is not."""

from __future__ import annotations

import builtins
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from daemon import cli, exitcodes
from daemon.harness import Asked, HarnessError, probe_rows, score
from state.store import Store
from tests.round_world import NOW

SECRET = "quibblefrotz"
has_harness = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="lm-evaluation-harness is an extra"
)
# its dependencies warn on import and while they run
quiet = pytest.mark.filterwarnings("ignore")
DOCS: list[dict[str, Any]] = [
    {"question": f"how many zims in a {word}?", "choices": ["zim", "vask", word], "right": 2, "answer": f"a {word}"}
    for word in ("grolt", "plim", "wuzzle", "brindle", "florp")
]
CHOICE = """
task: zims_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_target: right
doc_to_choice: choices
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
"""
OPEN = """
task: zims_open
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["\\n"], max_gen_toks: 4}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
"""


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    folder = tmp_path / "tasks"
    folder.mkdir()
    data = folder / "docs.jsonl"
    data.write_text("".join(json.dumps(doc) + "\n" for doc in DOCS))
    for name, text in (("choice", CHOICE), ("open", OPEN)):
        (folder / f"{name}.yaml").write_text(text.format(data=data))
    return folder


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    yield


@has_harness
@quiet
def test_documents_become_utility_probes_with_their_right_answers(tasks: Path) -> None:
    found = probe_rows(Asked(("zims_open", "zims_choice"), tasks, limit=3))
    assert found[0] == {"prompt": "how many zims in a grolt?", "response": "grolt", "category": "zims_choice"}
    assert found[3] == {"prompt": "how many zims in a grolt?", "response": "a grolt", "category": "zims_open"}
    assert len(found) == 6


@has_harness
@quiet
def test_a_model_is_scored_as_by_hand(tasks: Path, tiny_folder: Path) -> None:
    import torch

    from patches.model import load_model, load_tokenizer

    model = load_model(tiny_folder, dtype="float32", device=torch.device("cpu"))
    tokenizer = load_tokenizer(tiny_folder)
    found = {item.task: item for item in score(model, tokenizer, Asked(("zims_choice", "zims_open"), tasks))}
    assert {(item.metric, item.num_docs) for item in found.values()} == {("acc", 5), ("exact_match", 5)}

    def likelihood(context: str, choice: str) -> float:
        ids = tokenizer(context + " " + choice, return_tensors="pt", add_special_tokens=False)["input_ids"]
        start = len(tokenizer(context, add_special_tokens=False)["input_ids"])
        logs = model(input_ids=ids).logits[0].log_softmax(dim=-1)
        return sum(float(logs[at - 1, int(ids[0, at])]) for at in range(start, ids.shape[1]))

    right = [max(range(3), key=lambda i: likelihood(doc["question"], doc["choices"][i])) == 2 for doc in DOCS]
    assert found["zims_choice"].value == pytest.approx(sum(right) / 5)


@pytest.fixture
def service(tmp_path: Path, tiny_folder: Path) -> Path:
    with Store.create(tmp_path / "home", tiny_folder, actor="test", now=NOW):
        pass
    (tmp_path / "home" / "service.toml").write_text("")
    return tmp_path / "home" / "service.toml"


@has_harness
@quiet
def test_versions_are_scored_beside_each_other(service: Path, tasks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench-tasks", "base", "--task", "zims_choice", "--include", str(tasks), "--limit", "4"]
    assert cli.main(["-c", str(service), "--json", *words]) == exitcodes.OK
    found = json.loads(capsys.readouterr().out)
    ((item,),) = found["scores"].values()
    assert (found["versions"], item["task"], item["metric"], item["num_docs"]) == (["v0"], "zims_choice", "acc", 4)
    assert cli.main(["-c", str(service), *words]) == exitcodes.OK
    text = capsys.readouterr().out
    assert "zims_choice" in text and "V0" in text and "how many" not in text


@has_harness
@quiet
def test_tasks_fill_the_utility_probes(service: Path, tasks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["probes", "from-tasks", "--task", "zims_open", "--include", str(tasks)]
    assert cli.main(["-c", str(service), *words]) == exitcodes.OK
    assert "utility: 5 added to" in capsys.readouterr().out
    from daemon.config import parse
    from daemon.probes import load

    found = load(service.parent, parse({})).utility
    assert [(row.response, row.category) for row in found][:1] == [("a grolt", "zims_open")] and len(found) == 5


@has_harness
@quiet
@pytest.mark.parametrize(
    ("task", "change", "words"),
    [
        ("nosuch_task", "", "the harness knows no task 'nosuch_task'"),
        ("zims_open", f"raise {SECRET}", "task(s) zims_open cannot be run: "),
    ],
)
def test_a_task_that_cannot_be_used_is_named_and_not_quoted(tasks: Path, task: str, change: str, words: str) -> None:
    if change:
        (tasks / "docs.jsonl").write_text(change)
    with pytest.raises(HarnessError) as found:
        probe_rows(Asked((task,), tasks))
    assert words in str(found.value) and SECRET not in str(found.value)


def test_without_the_harness_it_is_said_how_to_get_it(
    service: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("lm_eval"):
            raise ImportError("no module named lm_eval")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    for words in (["probes", "from-tasks"], ["bench-tasks"]):
        assert cli.main(["-c", str(service), *words, "--task", "zims"]) == exitcodes.CONFIG
        assert "`pip install 'alignd[harness]'`" in capsys.readouterr().err


def test_a_folder_of_tasks_must_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys
    import types

    fake = types.ModuleType("lm_eval.tasks")
    fake.TaskManager = object  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lm_eval", types.ModuleType("lm_eval"))
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", fake)
    with pytest.raises(HarnessError, match="nowhere is no folder"):
        probe_rows(Asked(("zims",), tmp_path / "nowhere"))
