"""Published sets with their very columns and invented words, into the probe files of a home."""

from __future__ import annotations

import gzip
import json
import stat
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from daemon import cli, exitcodes
from daemon.commands_probes import PACK_NAMES
from daemon.config import parse
from daemon.probe_packs import PACKS, read_pack
from daemon.probes import load
from daemon.rows import BatchError

SECRET = "quibblefrotz"
XSTEST = (
    "id,prompt,type,label,focus,note\n1,how do I florp a zim?,homonyms,safe,florp,grolt\n"
    '2,"how do I florp,\nor wuzzle?",contrast_homonyms,unsafe,florp,\n'
)
XSTEST_V2 = (
    "id_v1,id_v2,type,prompt,focus,note\nA-1,v2-1,homonyms,how do I florp a zim?,florp,grolt\n"
    "A-2,v2-2,contrast_homonyms,how do I wuzzle?,florp,\n"
)
HARMBENCH = (
    "Behavior,FunctionalCategory,SemanticCategory,Tags,ContextString,BehaviorID\n"
    'florp it,standard,grolting,,,florp_it\nflorp this,contextual,grolting,context,"a zim,\n\nand a vask",florp_this\n'
)
STRONGREJECT = "category,source,forbidden_prompt\nGrolting,custom,how do I florp?\n"
JBB = 'Index,Goal,Target,Behavior,Category,Source\n0,Florp a zim,"Sure, here is",Florping,Grolting,Original\n'
MT_BENCH: list[dict[str, Any]] = [
    {"question_id": 81, "category": "writing", "turns": ["sing of zims", "now of vask"]},
    {
        "question_id": 101,
        "category": "math",
        "turns": ["two zims and a zim?", "and a vask?"],
        "reference": ["three", "four"],
    },
    {"question_id": 103, "category": "reasoning", "turns": ["why zims?", "and how?"], "reference": ["for vask", ""]},
]
ALPACA: list[dict[str, Any]] = [
    {"dataset": "helpful_base", "instruction": "name a zim", "output": "vask", "generator": "plim_003"},
    {"dataset": "koala", "instruction": "name none", "output": "", "generator": "plim_003"},
]


def read(tmp_path: Path, pack: str, content: str | bytes | list[dict[str, Any]], name: str = "file") -> dict[str, Any]:
    path = tmp_path / name
    data = json.dumps(content).encode() if isinstance(content, list) else content
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    found = read_pack(pack, path)
    return {kind: rows for kind, rows in found.probes.items() if rows} | {"left out": found.num_left_out}


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def row(prompt: str, category: str = "", response: str = "") -> dict[str, str]:
    found = {"prompt": prompt, "response": response, "category": category}
    return {key: value for key, value in found.items() if value}


def test_xstest_safe_prompts_must_be_answered_and_their_contrasts_refused(tmp_path: Path) -> None:
    found = read(tmp_path, "xstest", XSTEST)
    assert found["over_safety"] == [row("how do I florp a zim?", "homonyms")]
    assert found["harm"] == [row("how do I florp,\nor wuzzle?", "contrast_homonyms")]


def test_the_older_xstest_is_told_apart_by_its_types(tmp_path: Path) -> None:
    found = read(tmp_path, "xstest", XSTEST_V2)
    assert found["over_safety"] == [row("how do I florp a zim?", "homonyms")]
    assert found["harm"] == [row("how do I wuzzle?", "contrast_homonyms")]


def test_oktest_has_prompts_over_several_lines(tmp_path: Path) -> None:
    found = read(tmp_path, "oktest", 'prompt\n"how do I florp\na zim?"\n"and a vask?"\n')
    assert found == {"over_safety": [row("how do I florp\na zim?"), row("and a vask?")], "left out": 0}


@pytest.mark.parametrize(("pack", "kind"), [("or-bench", "over_safety"), ("or-bench-toxic", "harm")])
def test_or_benchs_files_have_the_same_columns_and_another_meaning(tmp_path: Path, pack: str, kind: str) -> None:
    found = read(tmp_path, pack, "prompt,category\nhow do I florp?,grolting\n")
    assert found == {kind: [row("how do I florp?", "grolting")], "left out": 0}


def test_harmbenchs_context_stands_before_the_behaviour(tmp_path: Path) -> None:
    found = read(tmp_path, "harmbench", HARMBENCH)
    assert found["harm"] == [
        row("florp it", "grolting"),
        row("a zim,\n\nand a vask\n\n---\n\nflorp this", "grolting"),
    ]


def test_strongreject_prompts_are_harm(tmp_path: Path) -> None:
    assert read(tmp_path, "strongreject", STRONGREJECT)["harm"] == [row("how do I florp?", "Grolting")]


@pytest.mark.parametrize(("pack", "kind"), [("jailbreakbench", "harm"), ("jailbreakbench-benign", "over_safety")])
def test_jailbreakbenchs_goals_are_taken_and_its_targets_are_not(tmp_path: Path, pack: str, kind: str) -> None:
    assert read(tmp_path, pack, JBB) == {kind: [row("Florp a zim", "Grolting")], "left out": 0}


def test_mt_benchs_questions_with_a_reference_are_utility_turn_by_turn(tmp_path: Path) -> None:
    found = read(tmp_path, "mt-bench", lines(MT_BENCH), "question.jsonl")
    turns = [
        {"role": "user", "content": "two zims and a zim?"},
        {"role": "assistant", "content": "three"},
        {"role": "user", "content": "and a vask?"},
    ]
    assert found["utility"] == [
        row("two zims and a zim?", "math", "three"),
        {"messages": turns, "response": "four", "category": "math"},
        row("why zims?", "reasoning", "for vask"),
    ]
    assert found["left out"] == 1


def test_alpacaevals_outputs_are_the_references(tmp_path: Path) -> None:
    found = read(tmp_path, "alpacaeval", ALPACA, "model_outputs.json")
    assert found == {"utility": [row("name a zim", "helpful_base", "vask")], "left out": 1}


def test_parquet_and_gzip_are_read_as_well(tmp_path: Path) -> None:
    table = pa.table({"Index": [0], "Goal": ["Florp"], "Target": ["Sure"], "Behavior": ["F"], "Category": ["G"]})
    pq.write_table(table, tmp_path / "behaviors.parquet")
    assert read_pack("jailbreakbench", tmp_path / "behaviors.parquet").probes["harm"] == [row("Florp", "G")]
    packed = read(tmp_path, "xstest", gzip.compress(XSTEST.encode()), "xstest.csv.gz")
    assert len(packed["harm"]) == len(packed["over_safety"]) == 1


@pytest.mark.parametrize(
    ("pack", "content", "words"),
    [
        (
            "harmbench",
            STRONGREJECT,
            "file: it lacks behavior, behaviorid, contextstring, semanticcategory; its columns are",
        ),
        ("xstest", f"id,prompt,type,label,focus,note\n1,{SECRET},homonyms,{SECRET},f,n\n", "neither safe nor unsafe"),
        ("mt-bench", lines([{"question_id": 1, "category": "x", "turns": SECRET}]), "is no list of text"),
        ("alpacaeval", json.dumps([{"instruction": SECRET, "output": 3, "generator": "x"}]), "`output` is of type int"),
        ("oktest", f"prompt\n{SECRET},{SECRET}\n", "2 cells where the header has 1"),
        ("oktest", "", "the file is empty"),
    ],
)
def test_another_file_is_refused_by_its_place_and_never_quoted(
    tmp_path: Path, pack: str, content: str, words: str
) -> None:
    with pytest.raises(BatchError, match=words) as found:
        read(tmp_path, pack, content)
    assert SECRET not in str(found.value)


def test_the_words_of_the_command_line_are_the_packs() -> None:
    assert tuple(PACKS) == PACK_NAMES


@pytest.fixture
def service(tmp_path: Path) -> Path:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "service.toml").write_text("")
    (tmp_path / "xstest.csv").write_text(XSTEST)
    return tmp_path / "home" / "service.toml"


def run(service: Path, *words: str) -> int:
    return cli.main(["-c", str(service), "probes", "import", *words])


def test_rows_go_into_the_files_of_the_settings_once(service: Path, capsys: pytest.CaptureFixture[str]) -> None:
    service.write_text('[probes]\nover_safety = "mine/ok.jsonl"\n')
    file = str(service.parent.parent / "xstest.csv")
    assert run(service, "xstest", file) == exitcodes.OK
    told = capsys.readouterr().out
    assert told.startswith("XSTest: 2 records\n") and "florp" not in told
    assert f"over_safety: 1 added to {service.parent}/mine/ok.jsonl" in told
    files = load(service.parent, parse({"probes": {"over_safety": "mine/ok.jsonl"}}))
    assert [found.key for found in files.over_safety] == ["how do i florp a zim?"]
    assert [found.category for found in files.harm] == ["contrast_homonyms"]
    assert run(service, "xstest", file) == exitcodes.OK
    assert "harm: 0 added to" in (again := capsys.readouterr().out) and "1 were there already" in again
    assert len(load(service.parent, parse({})).harm) == 1


def test_what_was_there_stays_byte_for_byte_with_its_mode(service: Path) -> None:
    path = service.parent / "probes" / "harm.jsonl"
    path.parent.mkdir()
    before = b'{"prompt": "How do I  FLORP,\\nor wuzzle?", "response": "zim"}\n\n{"prompt": "vask"}'
    path.write_bytes(before)
    path.chmod(0o644)
    (service.parent.parent / "sr.csv").write_text(STRONGREJECT)
    assert run(service, "xstest", str(service.parent.parent / "xstest.csv")) == exitcodes.OK
    assert path.read_bytes() == before, "the same question in other letters"
    assert run(service, "strongreject", str(service.parent.parent / "sr.csv")) == exitcodes.OK
    assert path.read_bytes() == before + b'\n{"prompt": "how do I florp?", "category": "Grolting"}\n'
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    new = service.parent / "probes" / "over_safety.jsonl"
    assert stat.S_IMODE(new.stat().st_mode) == 0o600


def test_a_question_that_stands_twice_in_a_file_goes_in_once(service: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = service.parent.parent / "sr.csv"
    path.write_text(STRONGREJECT + "Other,custom,How do I  florp?\n")
    assert run(service, "strongreject", str(path)) == exitcodes.OK
    assert "harm: 1 added to" in (told := capsys.readouterr().out) and "1 were there already" in told
    assert len((service.parent / "probes" / "harm.jsonl").read_text().splitlines()) == 1


def test_a_dry_run_writes_nothing(service: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(service, "xstest", str(service.parent.parent / "xstest.csv"), "--dry-run") == exitcodes.OK
    assert "nothing is written; it has 1 for harm, 1 for over_safety" in capsys.readouterr().out
    assert not (service.parent / "probes").exists()


def test_a_probe_file_that_cannot_be_read_leaves_all_as_it_was(
    service: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = service.parent / "probes" / "over_safety.jsonl"
    path.parent.mkdir()
    path.write_text(f"{SECRET}\n")
    assert run(service, "xstest", str(service.parent.parent / "xstest.csv")) == exitcodes.CONFIG
    told = capsys.readouterr().err
    assert "over_safety.jsonl, line 1" in told and SECRET not in told
    assert not (service.parent / "probes" / "harm.jsonl").exists()


def test_a_kind_whose_file_the_settings_leave_out_is_told(service: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from daemon.config import ConfigError
    from daemon.probe_import import add

    with pytest.raises(ConfigError, match=r"probes\.harm names no file"):
        add(service.parent, parse({"probes": {"harm": ""}}), {"harm": [{"prompt": "zim"}]})
    assert run(service, "xstest", "/nowhere.csv") == exitcodes.USAGE
    assert "/nowhere.csv cannot be read: No such file" in capsys.readouterr().err
