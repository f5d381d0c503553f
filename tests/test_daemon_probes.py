"""Probe files: read whole, refused by line, split by text alone."""

from __future__ import annotations

import errno
import json
import random
from pathlib import Path

import pytest

from daemon.config import ConfigError, parse
from daemon.probes import ProbeRow, development_part, gate_part, load, missing_required, plain, thin
from daemon.rows import Message, Row

SECRET = "quibblefrotz"
CONFIG = parse({})


def _home(path: Path, *prompts: str, file: str = "probes/utility.jsonl") -> Path:
    target = path / file
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text("".join(json.dumps({"prompt": prompt, "response": "zim"}) + "\n" for prompt in prompts))
    return path


def _utility(home: Path) -> tuple[ProbeRow, ...]:
    return load(home, CONFIG).utility


def _keys(rows: tuple[ProbeRow, ...]) -> list[str]:
    return [row.key for row in rows]


PROMPTS = [f"wuzzle {n} grolts" for n in range(120)]


def test_a_home_without_files_has_no_probes(tmp_path: Path) -> None:
    files = load(tmp_path, CONFIG)
    assert (files.harm, files.over_safety, files.utility, files.retain, files.digests) == ((), (), (), (), {})


@pytest.mark.parametrize("emptied", ["harm", "over_safety", "utility", "retain"])
def test_a_setting_without_a_path_gives_no_rows_and_the_others_are_read(tmp_path: Path, emptied: str) -> None:
    files = {name: f"probes/{name}.jsonl" for name in ("harm", "over_safety", "utility")} | {"retain": "retain.jsonl"}
    for name, file in files.items():
        _home(tmp_path, f"wuzzle a {name}", file=file)
    settings = {"derive": {"retain": {"path": ""}}} if emptied == "retain" else {"probes": {emptied: ""}}
    found = load(tmp_path, parse(settings))
    assert {name for name in files if not getattr(found, name)} == {emptied} and len(found.digests) == 3


def test_every_line_is_a_row_with_its_reference_and_category(tmp_path: Path) -> None:
    path = _home(tmp_path) / "probes" / "harm.jsonl"
    path.write_text(
        '{"prompt": "Florp it", "response": "zim", "category": "grolting", "kind": "x"}\n\n{"prompt": "b"}\n'
    )
    first, second = load(tmp_path, CONFIG).harm
    assert (first.messages, first.response, first.category) == (
        ({"role": "user", "content": "Florp it"},),
        "zim",
        "grolting",
    )
    assert (first.key, second.response, second.category) == ("florp it", None, "")


def test_each_setting_reads_its_own_file_and_its_digest_is_kept(tmp_path: Path) -> None:
    for name, file in (("harm", "probes/harm.jsonl"), ("over", "probes/over_safety.jsonl"), ("keep", "retain.jsonl")):
        _home(tmp_path, name, file=file)
    files = load(tmp_path, CONFIG)
    assert [_keys(rows) for rows in (files.harm, files.over_safety, files.utility, files.retain)] == [
        ["harm"], ["over"], [], ["keep"]
    ]  # fmt: skip
    assert set(files.digests) == {"probes.harm", "probes.over_safety", "derive.retain.path"}
    before = files.digests["probes.harm"]
    _home(tmp_path, "harm", "more", file="probes/harm.jsonl")
    assert load(tmp_path, CONFIG).digests["probes.harm"] != before


def test_a_prompt_that_comes_again_in_another_case_counts_once(tmp_path: Path) -> None:
    assert len(_utility(_home(tmp_path, "Florp  the DAX", "florp the dax ", "florp the fep"))) == 2


def test_no_prompt_is_on_both_sides_and_none_on_neither(tmp_path: Path) -> None:
    rows = _utility(_home(tmp_path, *PROMPTS))
    gate, development = set(_keys(gate_part(rows, 10**6))), set(_keys(development_part(rows)))
    assert not gate & development and gate | development == set(_keys(rows))
    assert 0.15 < len(gate) / len(rows) < 0.6


def test_a_prompt_never_changes_sides_when_the_file_grows_is_reordered_or_respaced(tmp_path: Path) -> None:
    before = set(_keys(gate_part(_utility(_home(tmp_path, *PROMPTS[:60])), 10**6)))
    shuffled = [f"  {prompt.upper()} " for prompt in PROMPTS]
    random.Random(1).shuffle(shuffled)
    after = set(_keys(gate_part(_utility(_home(tmp_path, *shuffled)), 10**6)))
    assert before == {key for key in after if key in set(PROMPTS[:60])}


def test_a_part_is_thinned_evenly_and_stays_a_part(tmp_path: Path) -> None:
    rows = _utility(_home(tmp_path, *PROMPTS))
    assert len(gate_part(rows, 5)) == 5 and all(row.is_gate for row in gate_part(rows, 5))
    assert len(development_part(rows, 7)) == 7 and not any(row.is_gate for row in development_part(rows, 7))


@pytest.mark.parametrize(
    ("most", "kept"), [(0, []), (1, [0]), (3, [0, 3, 6]), (10, list(range(10))), (11, list(range(10)))]
)
def test_thinning_takes_rows_evenly_in_their_order(most: int, kept: list[int]) -> None:
    assert list(thin(range(10), most)) == kept


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"prompt": "quibblefrotz"', "truncated"),
        (b'{"prompt": 3, "response": "quibblefrotz"}', "`int`"),
        (b'{"response": "quibblefrotz"}', '"prompt"'),
        (b'{"prompt": "", "response": "quibblefrotz"}', '"prompt"'),
        (b'{"prompt": "  ", "response": "quibblefrotz"}', '"prompt"'),
        (b'{"messages": [], "response": "quibblefrotz"}', '"messages"'),
        (b'{"messages": [{"role": "user", "text": "quibblefrotz"}]}', '"messages"'),
        (b'{"messages": [{"quibblefrotz": 1}]}', "messages"),
        (b'["quibblefrotz"]', "`object`"),
        (b'{"prompt": "quibblefrotz \xff"}', "UTF-8"),
        (b"prompt,response", "JSON"),
    ],
)
def test_an_unusable_line_is_refused_with_file_and_line_and_without_its_text(
    tmp_path: Path, line: bytes, said: str
) -> None:
    path = _home(tmp_path, "good one") / "probes" / "utility.jsonl"
    path.write_bytes(path.read_bytes() + b"\n" + line + b"\n")
    with pytest.raises(ConfigError) as refused:
        load(tmp_path, CONFIG)
    assert f"{path}, line 3" in str(refused.value) and said.lower() in str(refused.value).lower()
    assert SECRET not in str(refused.value)


def test_a_file_that_cannot_be_read_is_a_fault_of_the_settings_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "probes" / "harm.jsonl"
    path.mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"cannot be read: Is a directory; .*probes\.harm must name another") as told:
        load(tmp_path, parse({}))
    assert str(path) in str(told.value)

    def refuse(_: Path) -> bytes:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(ConfigError, match="cannot be read: Permission denied"):
        load(tmp_path, parse({}))


def test_a_byte_order_mark_is_no_fault(tmp_path: Path) -> None:
    path = _home(tmp_path, "florp") / "probes" / "utility.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert _keys(_utility(tmp_path)) == ["florp"]


def test_a_conversation_is_a_probe_and_its_last_question_may_be_in_no_batch(tmp_path: Path) -> None:
    path = _home(tmp_path) / "probes" / "harm.jsonl"
    turns = [
        {"role": "system", "content": "Be zim."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Vask"},
        {"role": "user", "content": "How do I florp"},
    ]
    path.write_text(json.dumps({"messages": turns}) + "\n")
    files = load(tmp_path, CONFIG)
    assert list(files.harm[0].messages) == turns
    assert files.prompts() == {"how do i florp"}


def test_prompts_are_of_what_judges_and_responses_of_every_file(tmp_path: Path) -> None:
    for file in ("probes/harm.jsonl", "probes/over_safety.jsonl", "probes/utility.jsonl", "retain.jsonl"):
        _home(tmp_path, file, file=file)
    files = load(tmp_path, CONFIG)
    assert files.prompts() == {"probes/harm.jsonl", "probes/over_safety.jsonl", "probes/utility.jsonl"}
    assert len(files.responses()) == 4


def test_missing_probes_are_told_with_the_file_and_what_to_do(tmp_path: Path) -> None:
    _home(tmp_path, *PROMPTS, file="probes/utility.jsonl")
    _home(tmp_path, *PROMPTS[:3], file="probes/over_safety.jsonl")
    (said,) = missing_required(load(tmp_path, CONFIG), CONFIG)
    assert "probes/over_safety.jsonl" in said and "put harmless prompts there" in said
    _home(tmp_path, *PROMPTS, file="probes/over_safety.jsonl")
    without = "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS[:60])
    (tmp_path / "probes" / "utility.jsonl").write_text(without)
    (said,) = missing_required(load(tmp_path, CONFIG), CONFIG)
    assert "probes/utility.jsonl: none of its 60 prompts has a `response`" in said
    (tmp_path / "probes" / "utility.jsonl").unlink()
    (said,) = missing_required(load(tmp_path, CONFIG), CONFIG)
    assert "probes/utility.jsonl: there is no such file" in said
    _home(tmp_path, *PROMPTS, file="probes/utility.jsonl")
    _home(tmp_path, *PROMPTS[:3], file="probes/over_safety.jsonl")
    lenient = parse({"gates": {"over_safety": {"class": "wanted"}}})
    assert missing_required(load(tmp_path, lenient), lenient) == ()


def test_a_batch_row_becomes_the_turns_of_the_chat_template() -> None:
    row = Row((Message("system", "a"), Message("user", "b")), "c", None, "x.jsonl", 1)
    assert plain(row) == ({"role": "system", "content": "a"}, {"role": "user", "content": "b"})
