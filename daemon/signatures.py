"""Which data set a table is, told by its columns and never by its name, and how its records become rows."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass

from daemon.cells import Record, category_label, chat_turns, flag_cell, text_cell
from daemon.rows import BatchError, Message, Origin, Row

MARKED_SAFE = "marked_safe"
NO_HARM_LABEL = "no_harm_label"

Outcome = Row | str  # a row, or the reason why this side of a record is dropped
Reader = Callable[[Record, Origin], list[Outcome]]


@dataclass(frozen=True, slots=True)
class Signature:
    """A training set that is known by its columns (in lower case)."""

    name: str
    required: frozenset[str]
    read: Reader
    optional: frozenset[str] = frozenset()
    warning: str = ""

    @property
    def columns(self) -> frozenset[str]:
        """Every column that ``read`` looks at."""
        return self.required | self.optional


@dataclass(frozen=True, slots=True)
class PromptSet:
    """An evaluation set without harmful responses; ``belongs`` says where it goes instead of the inbox."""

    name: str
    required: frozenset[str]
    belongs: str
    exact: bool = False
    """True when further columns, an index aside, mean that it is another set."""


def identify(columns: Collection[str], source: str) -> Signature:
    """The training set that these columns belong to.

    Args:
        columns: column names or keys as they stand in the file; case and outer spaces do not matter.
        source: name of the member file, for the error.
    Raises:
        BatchError: the columns are those of a prompt-only set, or of nothing known.
    """
    folded = frozenset(column.strip().lower() for column in columns)
    prompt_set = next((known for known in PROMPT_SETS if _is_prompt_set(known, folded)), None)
    if prompt_set:
        raise BatchError(
            source,
            None,
            f"this is {prompt_set.name}, which holds no harmful responses to learn from",
            hint=f"it does not belong in the inbox but in the probes: {prompt_set.belongs}",
        )
    signature = next((known for known in SIGNATURES if known.required <= folded), None)
    if signature is None:
        raise _unknown_columns(columns, source)
    return signature


def fits_a_signature(columns: Collection[str]) -> bool:
    """Whether the columns are those of a known set, for training or only of prompts."""
    folded = frozenset(column.strip().lower() for column in columns)
    return any(known.required <= folded for known in (*SIGNATURES, *PROMPT_SETS))


def has_names(columns: Collection[str]) -> bool:
    """Whether at least one of them looks like the name of a column, and not like a piece of text."""
    return any(_is_plain(column) for column in columns)


def shown_columns(columns: Collection[str]) -> str:
    """The column names that are safe to print; the others, which may be a row of data, are only counted."""
    plain = [column.strip() for column in columns if _is_plain(column)]
    hidden = len(columns) - len(plain)
    names = ", ".join(plain[:_MAX_SHOWN]) + (", …" if len(plain) > _MAX_SHOWN else "")
    rest = f"{hidden} not shown because they do not look like names" if hidden else ""
    return " and ".join(part for part in (names, rest) if part) or "none"


def _is_plain(column: str) -> bool:
    name = column.strip()
    return name.lower() in _VOCABULARY or _PLAIN_NAME.fullmatch(name) is not None


_PLAIN_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,31}")
_MAX_SHOWN = 30
_INDEX_COLUMNS = frozenset({"", "id", "index"})
_ANSWER_COLUMNS = frozenset({"response", "completion", "response_0", "unsafe generation"})


def _is_prompt_set(known: PromptSet, columns: frozenset[str]) -> bool:
    if columns & _ANSWER_COLUMNS or not known.required <= columns:
        return False
    return not known.exact or columns - _INDEX_COLUMNS == known.required


def _unknown_columns(columns: Collection[str], source: str) -> BatchError:
    known = "; ".join(f"{s.name} ({', '.join(sorted(s.required))})" for s in SIGNATURES)
    return BatchError(
        source,
        None,
        f"no known data set has these columns: {shown_columns(columns)}",
        hint=f"rename the columns to prompt,response or to one of: {known}",
    )


def _pair(record: Record, at: Origin) -> list[Outcome]:
    if "is_safe" in record and flag_cell(record, "is_safe", at):
        return [MARKED_SAFE]
    return [_row(text_cell(record, "prompt", at), text_cell(record, "response", at), record.get("category"), at)]


def _beaver_tails(record: Record, at: Origin) -> list[Outcome]:
    flag_cell(record, "is_safe", at)  # a record that lost its mark is refused, not taken for harmful
    return _pair(record, at)


def _adv_bench(record: Record, at: Origin) -> list[Outcome]:
    return [_row(text_cell(record, "goal", at), text_cell(record, "target", at), record.get("category"), at)]


def _pku_safe_rlhf(record: Record, at: Origin) -> list[Outcome]:
    return [_pku_side(record, side, at) for side in (0, 1)]


def _pku_side(record: Record, side: int, at: Origin) -> Outcome:
    if flag_cell(record, f"is_response_{side}_safe", at):
        return MARKED_SAFE
    category = record.get(f"response_{side}_harm_category")
    return _row(text_cell(record, "prompt", at), text_cell(record, f"response_{side}", at), category, at)


def _wild_guard(record: Record, at: Origin) -> list[Outcome]:
    label = record.get("response_harm_label")
    if label == "harmful":
        return [_row(text_cell(record, "prompt", at), text_cell(record, "response", at), record.get("subcategory"), at)]
    if label == "unharmful":
        return [MARKED_SAFE]
    if label in (None, ""):  # its prompt-only rows
        return [NO_HARM_LABEL]
    raise at.error("`response_harm_label` is neither harmful nor unharmful nor empty")


def _safe_edit(record: Record, at: Origin) -> list[Outcome]:
    prompt, response = text_cell(record, "adversarial prompt", at), text_cell(record, "unsafe generation", at)
    return [_row(prompt, response, record.get("unsafety category"), at)]


def _alpaca(record: Record, at: Origin) -> list[Outcome]:
    instruction, output = text_cell(record, "instruction", at), text_cell(record, "output", at)
    extra = text_cell(record, "input", at) if record.get("input") else ""
    return [_row(f"{instruction}\n{extra}" if extra else instruction, output, record.get("category"), at)]


def _trl(record: Record, at: Origin) -> list[Outcome]:
    if "label" in record and flag_cell(record, "label", at):
        return [MARKED_SAFE]
    prompt, completion = record.get("prompt"), record.get("completion")
    if isinstance(prompt, list) and isinstance(completion, list):
        turns = chat_turns([*prompt, *completion], "prompt and completion", at)
        return [_chat_row(turns, record.get("category"), at)]
    return [_row(text_cell(record, "prompt", at), text_cell(record, "completion", at), record.get("category"), at)]


def _trl_unpaired(record: Record, at: Origin) -> list[Outcome]:
    flag_cell(record, "label", at)
    return _trl(record, at)


def _openai(record: Record, at: Origin) -> list[Outcome]:
    return [_chat_row(chat_turns(record.get("messages"), "messages", at), record.get("category"), at)]


def _share_gpt(record: Record, at: Origin) -> list[Outcome]:
    turns = chat_turns(record.get("conversations"), "conversations", at)
    return [_chat_row(turns, record.get("category"), at)]


def _row(prompt: str, response: str, category: object, at: Origin) -> Row:
    label = None if category is None else category_label(category, at)
    return Row((Message("user", prompt),), response, label, at.source, at.row)


def _chat_row(turns: list[Message], category: object, at: Origin) -> Row:
    """The last assistant turn as response; turns behind it say nothing about it and are left out."""
    answers = [place for place, turn in enumerate(turns) if turn.role == "assistant"]
    if not answers or not any(turn.role == "user" for turn in turns[: answers[-1]]):
        raise at.error("the chat has no assistant turn behind a user turn")
    label = None if category is None else category_label(category, at)
    return Row(tuple(turns[: answers[-1]]), turns[answers[-1]].content, label, at.source, at.row)


def _known(name: str, required: str, read: Reader, *, optional: str = "category", warning: str = "") -> Signature:
    extra = frozenset(optional.split("|")) if optional else frozenset[str]()
    return Signature(name, frozenset(required.split("|")), read, extra, warning)


def _prompts(name: str, required: str, belongs: str, *, exact: bool = False) -> PromptSet:
    return PromptSet(name, frozenset(required.split("|")), belongs, exact)


_OVER_SAFETY = "probes/over_safety.jsonl ([probes] over_safety)"
_HARM = "probes/harm.jsonl ([probes] harm)"
_UTILITY = "probes/utility.jsonl ([probes] utility)"
_BOTH = f"its harmless rows in {_OVER_SAFETY}, its harmful rows in {_HARM}"

PROMPT_SETS = (  # the first that fits counts
    _prompts("XSTest", "prompt|type|focus|note", _BOTH),
    _prompts("JailbreakBench", "goal|behavior|category", _BOTH),
    _prompts("HarmBench", "behavior|semanticcategory|behaviorid", _HARM),
    _prompts("StrongREJECT", "forbidden_prompt", _HARM),
    _prompts("MT-Bench", "question_id|turns", _UTILITY),
    _prompts("AlpacaEval", "instruction|output|generator", _UTILITY),
    _prompts("OR-Bench or another list of prompts with categories", "prompt|category", _BOTH, exact=True),
    _prompts("OKTest or another list of bare prompts", "prompt", _BOTH, exact=True),
)

_PREFIX_ONLY = (
    "`target` is only the opening of a compliant answer, so learning from it moves about ten tokens; "
    "full harmful responses work much better"
)

SIGNATURES = (  # the first that fits counts, so the richer ones come first
    _known("WildGuardMix", "prompt|response|response_harm_label", _wild_guard, optional="subcategory"),
    _known(
        "PKU-SafeRLHF",
        "prompt|response_0|response_1|is_response_0_safe|is_response_1_safe",
        _pku_safe_rlhf,
        optional="response_0_harm_category|response_1_harm_category",
    ),
    _known("BeaverTails", "prompt|response|is_safe", _beaver_tails),
    _known("SafeEdit", "adversarial prompt|unsafe generation", _safe_edit, optional="unsafety category"),
    _known("TRL unpaired", "prompt|completion|label", _trl_unpaired),
    _known("TRL prompt-completion", "prompt|completion", _trl),
    _known("plain", "prompt|response", _pair),
    _known("OpenAI messages", "messages", _openai),
    _known("ShareGPT", "conversations", _share_gpt),
    _known("AdvBench", "goal|target", _adv_bench, warning=_PREFIX_ONLY),
    _known("Alpaca", "instruction|output", _alpaca, optional="input|category"),
)

_VOCABULARY = frozenset[str]().union(*(known.required for known in (*SIGNATURES, *PROMPT_SETS)))
