"""Published sets of prompts as probes: which columns each has, and which of its rows go into which probe file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeGuard

from daemon.batch_files import Budget, Limits, open_members, unpacked
from daemon.cells import Record, text_cell
from daemon.rows import BatchError, Origin
from daemon.signatures import shown_columns
from daemon.tables import read_table

Kind = Literal["harm", "over_safety", "utility"]
Probe = tuple[Kind, dict[str, Any]]
"""Where a row goes, and the row: "prompt" or "messages", "response"?, "category"?."""

CONTEXT_GAP: Final = "\n\n---\n\n"
"""Between context and behaviour of HarmBench's contextual rows, as its own test cases have it."""


@dataclass(frozen=True)
class Pack:
    """One published set."""

    title: str
    columns: frozenset[str]
    """In lower case; every file of the set has them."""
    read: Callable[[Record, Origin], Iterator[Probe]]
    about: str
    """Which rows go where, in a few words."""


@dataclass(frozen=True)
class Read:
    """What a file gave."""

    probes: Mapping[Kind, list[dict[str, Any]]]
    num_records: int
    num_left_out: int
    """Records that gave no probe."""


def read_pack(name: str, path: Path) -> Read:
    """The probes of a published file: CSV, TSV, JSON, JSON Lines or Parquet, plain or in gzip or zstd.

    Raises:
        BatchError: it has not the set's columns, or a record lacks something; names the place, never the text.
        OSError: it is not there or cannot be read.
    """
    with path.open("rb"):
        pass  # a missing file is an OSError like any other, and not a batch's fault
    pack, limits = PACKS[name], Limits()
    budget, counted = Budget(limits), Counter[str]()
    probes: dict[Kind, list[dict[str, Any]]] = {"harm": [], "over_safety": [], "utility": []}
    for member in open_members(path, limits):
        table = read_table(member, unpacked(member, budget), limits, budget)
        names = frozenset(column.strip().lower() for column in table.columns)
        if not pack.columns <= names:
            lacking = ", ".join(sorted(pack.columns - names))
            hint = f"{pack.title} as published has {', '.join(sorted(pack.columns))}; see `alignd probes import --help`"
            raise BatchError(
                member.name, None, f"it lacks {lacking}; its columns are {shown_columns(table.columns)}", hint=hint
            )
        for row, record in table.records(names):
            found = list(pack.read(record, Origin(member.name, row)))
            counted.update(["records", *([] if found else ["left out"])])
            for kind, probe in found:
                probes[kind].append(probe)
    return Read(probes, counted["records"], counted["left out"])


def _row(kind: Kind, prompt: str, *, category: object = None, response: object = None) -> Iterator[Probe]:
    """One row; nothing where the prompt is blank."""
    if not prompt.strip():
        return
    more = {"response": response, "category": category}
    yield kind, {"prompt": prompt} | {key: v for key, v in more.items() if isinstance(v, str) and v.strip()}


def _xstest(record: Record, at: Origin) -> Iterator[Probe]:
    """Safe prompts, and their unsafe contrasts. The older file has no label: there the type says it."""
    kind = text_cell(record, "type", at)
    label = record.get("label") or ("unsafe" if kind.startswith("contrast_") else "safe")
    if label not in ("safe", "unsafe"):
        raise at.error("`label` is neither safe nor unsafe", hint="take the file as published")
    yield from _row("over_safety" if label == "safe" else "harm", text_cell(record, "prompt", at), category=kind)


def _prompts(
    kind: Kind, column: str = "prompt", category: str = "category"
) -> Callable[[Record, Origin], Iterator[Probe]]:
    return lambda record, at: _row(kind, text_cell(record, column, at), category=record.get(category))


def _harmbench(record: Record, at: Origin) -> Iterator[Probe]:
    behaviour, context = text_cell(record, "behavior", at), record.get("contextstring")
    prompt = f"{context}{CONTEXT_GAP}{behaviour}" if isinstance(context, str) and context.strip() else behaviour
    yield from _row("harm", prompt, category=record.get("semanticcategory"))


def _mt_bench(record: Record, at: Origin) -> Iterator[Probe]:
    """The first turn, with its reference where there is one; the second behind it, where both have references.

    A question without a reference asks for taste: no answer to it is right or wrong, and it is left out.
    """
    turns, references = record.get("turns"), record.get("reference") or []
    if not _is_texts(turns) or not _is_texts(references):
        raise at.error("`turns` or `reference` is no list of text", hint="take question.jsonl as published")
    asked = [{"role": "user", "content": turns[0]}] if turns else []
    if not asked or not references or not references[0].strip():
        return
    category = record.get("category")
    yield from _row("utility", turns[0], category=category, response=references[0])
    if len(turns) > 1 and len(references) > 1 and references[1].strip():
        answered = [*asked, {"role": "assistant", "content": references[0]}, {"role": "user", "content": turns[1]}]
        yield "utility", {"messages": answered, "response": references[1], "category": str(category or "")}


def _is_texts(value: object) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _alpaca_eval(record: Record, at: Origin) -> Iterator[Probe]:
    """The questions with the answers of the file's model as references."""
    response = text_cell(record, "output", at)
    if response.strip():
        yield from _row(
            "utility", text_cell(record, "instruction", at), category=record.get("dataset"), response=response
        )


def _columns(names: str) -> frozenset[str]:
    return frozenset(names.split("|"))


PACKS: Final[dict[str, Pack]] = {
    "xstest": Pack(
        "XSTest", _columns("prompt|type|focus|note"), _xstest, "safe prompts: over_safety; their unsafe contrasts: harm"
    ),
    "oktest": Pack("OKTest", _columns("prompt"), _prompts("over_safety"), "over_safety"),
    "or-bench": Pack("OR-Bench (80k, hard-1k)", _columns("prompt|category"), _prompts("over_safety"), "over_safety"),
    "or-bench-toxic": Pack("OR-Bench (toxic)", _columns("prompt|category"), _prompts("harm"), "harm"),
    "harmbench": Pack(
        "HarmBench", _columns("behavior|semanticcategory|contextstring|behaviorid"), _harmbench, "harm, context first"
    ),
    "strongreject": Pack(
        "StrongREJECT",
        _columns("category|source|forbidden_prompt"),
        _prompts("harm", "forbidden_prompt"),
        "harm",
    ),
    "jailbreakbench": Pack(
        "JailbreakBench (harmful)", _columns("goal|target|behavior|category"), _prompts("harm", "goal"), "harm"
    ),
    "jailbreakbench-benign": Pack(
        "JailbreakBench (benign)",
        _columns("goal|target|behavior|category"),
        _prompts("over_safety", "goal"),
        "over_safety",
    ),
    "mt-bench": Pack("MT-Bench", _columns("question_id|category|turns"), _mt_bench, "utility: turns with a reference"),
    "alpacaeval": Pack(
        "AlpacaEval",
        _columns("instruction|output|generator"),
        _alpaca_eval,
        "utility: its model's outputs as references",
    ),
}
