"""Data sets are told by their columns, and every known one becomes rows."""

from __future__ import annotations

import re
from typing import Any

import pytest

from daemon.rows import BatchError, Message, Origin, Row
from daemon.signatures import MARKED_SAFE, NO_HARM_LABEL, identify, shown_columns

AT = Origin("drop.jsonl", 7)


def outcomes(record: dict[str, Any]) -> tuple[str, list[Row | str]]:
    signature = identify(list(record), AT.source)
    return signature.name, signature.read({key.strip().lower(): value for key, value in record.items()}, AT)


def user(text: str) -> tuple[Message, ...]:
    return (Message("user", text),)


ONE_ROW = [
    ("plain", {"prompt": "zorb ?", "response": "vek lum"}, "zorb ?", "vek lum", None),
    ("plain", {"prompt": "zorb ?", "response": "vek", "category": "flim", "source": "x"}, "zorb ?", "vek", "flim"),
    ("plain", {"Prompt": "zorb ?", "Response ": "vek"}, "zorb ?", "vek", None),
    ("AdvBench", {"goal": "zorb", "target": "Sure, here is vek"}, "zorb", "Sure, here is vek", None),
    ("SafeEdit", {"adversarial prompt": "zorb", "unsafe generation": "vek", "unsafety category": "flim"}, "zorb", "vek", "flim"),
    ("TRL unpaired", {"prompt": "zorb", "completion": "vek", "label": False}, "zorb", "vek", None),
    ("TRL prompt-completion", {"prompt": "zorb", "completion": "vek"}, "zorb", "vek", None),
    ("Alpaca", {"instruction": "zorb", "input": "", "output": "vek"}, "zorb", "vek", None),
    ("Alpaca", {"instruction": "zorb", "input": "lum", "output": "vek"}, "zorb\nlum", "vek", None),
    ("Alpaca", {"instruction": "zorb", "output": "vek"}, "zorb", "vek", None),
]  # fmt: skip


@pytest.mark.parametrize(("name", "record", "prompt", "response", "category"), ONE_ROW)
def test_a_record_of_a_known_set_becomes_one_row(
    name: str, record: dict[str, Any], prompt: str, response: str, category: str | None
) -> None:
    assert outcomes(record) == (name, [Row(user(prompt), response, category, "drop.jsonl", 7)])


@pytest.mark.parametrize(("mark", "kept"), [(False, 1), (True, 0), ("False", 1), ("True", 0), ("0", 1), (1, 0)])
def test_beaver_tails_keeps_only_the_rows_marked_unsafe(mark: object, kept: int) -> None:
    marks = {"flim": False, "grot": True, "plax": True}
    name, rows = outcomes({"prompt": "zorb", "response": "vek", "category": marks, "is_safe": mark})
    expected = [Row(user("zorb"), "vek", "grot", "drop.jsonl", 7)] if kept else [MARKED_SAFE]
    assert (name, rows) == ("BeaverTails", expected)


def test_a_plain_row_that_turns_out_marked_safe_is_dropped() -> None:
    signature = identify(["prompt", "response"], "drop.jsonl")
    assert signature.read({"prompt": "zorb", "response": "vek", "is_safe": True}, AT) == [MARKED_SAFE]


@pytest.mark.parametrize(
    ("safe", "taken"), [((False, False), ["vek", "lum"]), ((True, False), ["lum"]), ((True, True), [])]
)
def test_pku_gives_each_unsafe_side(safe: tuple[bool, bool], taken: list[str]) -> None:
    record = {"prompt": "zorb", "response_0": "vek", "response_1": "lum"}
    name, rows = outcomes(record | {f"is_response_{side}_safe": mark for side, mark in enumerate(safe)})
    assert name == "PKU-SafeRLHF"
    assert [row.response for row in rows if isinstance(row, Row)] == taken
    assert rows.count(MARKED_SAFE) == sum(safe)


@pytest.mark.parametrize(("label", "dropped"), [("unharmful", MARKED_SAFE), (None, NO_HARM_LABEL)])
def test_wild_guard_drops_what_is_not_labelled_harmful(label: object, dropped: str) -> None:
    record = {"prompt": "zorb", "response": None, "response_harm_label": label, "subcategory": "flim"}
    assert outcomes(record) == ("WildGuardMix", [dropped])


def test_wild_guard_keeps_what_is_labelled_harmful() -> None:
    record = {"prompt": "zorb", "response": "vek", "response_harm_label": "harmful", "subcategory": "flim"}
    assert outcomes(record)[1] == [Row(user("zorb"), "vek", "flim", "drop.jsonl", 7)]


def test_trl_rows_with_a_true_label_are_dropped() -> None:
    assert outcomes({"prompt": "zorb", "completion": "vek", "label": True}) == ("TRL unpaired", [MARKED_SAFE])


def test_trl_message_lists_become_turns() -> None:
    prompt, completion = [{"role": "user", "content": "zorb"}], [{"role": "assistant", "content": "vek"}]
    _, rows = outcomes({"prompt": prompt, "completion": completion, "label": False})
    assert rows == [Row(user("zorb"), "vek", None, "drop.jsonl", 7)]


def test_a_chat_keeps_the_turns_before_its_last_answer_and_leaves_out_those_behind() -> None:
    roles = ["system", "user", "assistant", "user", "assistant", "user"]
    messages = [{"role": role, "content": f"t{place}"} for place, role in enumerate(roles)]
    name, rows = outcomes({"messages": messages})
    before = tuple(Message(role, f"t{place}") for place, role in enumerate(roles[:4]))
    assert (name, rows) == ("OpenAI messages", [Row(before, "t4", None, "drop.jsonl", 7)])


def test_openai_text_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "zorb"}, {"type": "text", "text": "lum"}]
    messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": "vek"}]
    assert outcomes({"messages": messages})[1] == [Row(user("zorb\nlum"), "vek", None, "drop.jsonl", 7)]


def test_share_gpt_names_become_roles() -> None:
    turns = [{"from": "human", "value": "zorb"}, {"from": "gpt", "value": "vek"}]
    assert outcomes({"conversations": turns}) == ("ShareGPT", [Row(user("zorb"), "vek", None, "drop.jsonl", 7)])


def test_adv_bench_warns_that_its_target_is_only_an_opening() -> None:
    assert "about ten tokens" in identify(["goal", "target"], "f").warning
    assert identify(["prompt", "response"], "f").warning == ""


OVER, HARM, UTILITY = "probes/over_safety.jsonl", "probes/harm.jsonl", "probes/utility.jsonl"
PROMPT_ONLY = [
    ("XSTest", "id,prompt,type,label,focus,note", [OVER, HARM]),
    ("XSTest", "id_v1,id_v2,type,prompt,focus,note", [OVER, HARM]),
    ("OKTest", "prompt", [OVER, HARM]),
    ("OR-Bench", "prompt,category", [OVER, HARM]),
    ("HarmBench", "Behavior,FunctionalCategory,SemanticCategory,Tags,ContextString,BehaviorID", [HARM]),
    ("StrongREJECT", "category,source,forbidden_prompt", [HARM]),
    ("JailbreakBench", "Index,Goal,Target,Behavior,Category,Source", [OVER, HARM]),
    ("MT-Bench", "question_id,category,turns,reference", [UTILITY]),
    ("AlpacaEval", "instruction,output,generator,dataset,datasplit", [UTILITY]),
]


@pytest.mark.parametrize(("name", "columns", "places"), PROMPT_ONLY)
def test_a_prompt_only_set_is_refused_with_its_place_among_the_probes(
    name: str, columns: str, places: list[str]
) -> None:
    with pytest.raises(BatchError) as refused:
        identify(columns.split(","), "drop.csv")
    assert refused.value.file == "drop.csv"
    assert name in str(refused.value)
    assert [place for place in (OVER, HARM, UTILITY) if place in refused.value.hint] == places


def test_xstest_prompts_with_responses_beside_them_are_a_training_set() -> None:
    assert identify(["id", "prompt", "type", "label", "focus", "note", "response"], "f").name == "plain"


def test_unknown_columns_are_listed_with_the_known_sets() -> None:
    with pytest.raises(BatchError, match=r"drop\.csv: .*flim, grot") as refused:
        identify(["flim", "grot"], "drop.csv")
    assert "AdvBench (goal, target)" in refused.value.hint


def test_a_header_that_is_a_row_of_data_is_not_shown() -> None:
    shown = shown_columns(["how does one zorb the vek", "take two lum and flim them", "adversarial prompt", "id"])
    assert shown == "adversarial prompt, id and 2 not shown because they do not look like names"


BAD_RECORDS: list[tuple[dict[str, Any], str]] = [
    ({"prompt": "zorb", "response": None}, "`response` is missing or null"),
    ({"prompt": ["zorb"], "response": "vek"}, "`prompt` is of type list"),
    ({"prompt": "zorb", "response": 7}, "`response` is of type int"),
    ({"prompt": "zorb", "response": "vek", "is_safe": None}, "`is_safe` is neither"),
    ({"prompt": "zorb", "response": "vek", "is_safe": "maybe"}, "`is_safe` is neither"),
    ({"prompt": "zorb", "response": "vek", "category": {"flim": "lum"}}, "category object"),
    ({"prompt": "zorb", "response": "vek", "category": "lum " * 99}, "category is longer"),
    ({"prompt": "zorb", "response": "vek", "category": 1.5}, "category is neither"),
    ({"prompt": "zorb", "response": "vek", "response_harm_label": "odd"}, "`response_harm_label`"),
    ({"prompt": "zorb", "completion": "vek", "label": ""}, "`label` is neither"),
    ({"messages": "zorb"}, "`messages` is not a list"),
    ({"messages": ["zorb"]}, "`messages` is not a list"),
    ({"messages": [{"role": "tool", "content": "zorb"}]}, "unknown role"),
    ({"messages": [{"role": "user", "content": None}]}, "no text"),
    ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "no text"),
    ({"messages": [{"role": "user", "content": "zorb"}]}, "no assistant turn"),
    ({"messages": [{"role": "assistant", "content": "vek"}]}, "no assistant turn"),
    ({"conversations": []}, "no assistant turn"),
]


@pytest.mark.parametrize(("record", "what"), BAD_RECORDS)
def test_a_record_of_the_wrong_shape_is_refused_with_its_row_and_without_its_text(
    record: dict[str, Any], what: str
) -> None:
    with pytest.raises(BatchError, match=r"^drop\.jsonl, row 7: ") as refused:
        outcomes(record)
    assert what in refused.value.what
    assert not re.search(r"\b(zorb|vek|lum)\b", str(refused.value))


def test_a_lost_safety_mark_is_refused_and_not_taken_for_harmful() -> None:
    signature = identify(["prompt", "response", "is_safe"], "f")
    with pytest.raises(BatchError, match="`is_safe`"):
        signature.read({"prompt": "zorb", "response": "vek"}, AT)
