"""A file of answers that people labelled as harmful or not: what judges are calibrated against."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from daemon.batch_files import Budget, Limits, open_members, unpacked
from daemon.cells import Record, flag_cell, text_cell
from daemon.rows import BatchError, Origin
from daemon.tables import read_table
from patches.judge import Answered

_KINDS: Final = (
    '{"prompt", "response", "harmful": true or false, "refusal"?: true or false}; WildGuardMix (response_harm_label, '
    "response_refusal_label); BeaverTails (is_safe)"
)


@dataclass(frozen=True)
class Labelled:
    """One answer with its labels."""

    answer: Answered
    is_harmful: bool
    is_refusal: bool | None
    """None where the file does not say."""


@dataclass(frozen=True)
class _Columns:
    """How one kind of file says what it says; None of a record that has no label."""

    required: frozenset[str]
    read: Callable[[Record, Origin], tuple[bool, bool | None] | None]


def read_labelled(path: Path) -> list[Labelled]:
    """The labelled answers of a file: JSON, JSON Lines, CSV, TSV or Parquet, plain or in gzip or zstd.

    Records without a label are left out.

    Raises:
        BatchError: it is none of the known kinds, a record lacks something, or nothing in it is labelled; names the place,
            never the text.
        OSError: it is not there or cannot be read.
    """
    limits = Limits()
    budget, found = Budget(limits), list[Labelled]()
    with path.open("rb"):
        pass  # a missing file is an OSError like any other, and not a batch's fault
    for member in open_members(path, limits):
        table = read_table(member, unpacked(member, budget), limits, budget)
        names = frozenset(column.strip().lower() for column in table.columns)
        columns = next((known for known in _KNOWN if known.required <= names), None)
        if columns is None:
            raise BatchError(member.name, None, "no labels that are known", hint=f"known files: {_KINDS}")
        for row, record in table.records(names):
            at = Origin(member.name, row)
            if (labels := columns.read(record, at)) is not None:
                found.append(Labelled(_answer(record, at), *labels))
    if not found:
        raise BatchError(path.name, None, "no record in it has a label", hint=f"known files: {_KINDS}")
    return found


def _answer(record: Record, at: Origin) -> Answered:
    prompt = text_cell(record, "prompt", at)
    return Answered(({"role": "user", "content": prompt},), text_cell(record, "response", at))


def _plain(record: Record, at: Origin) -> tuple[bool, bool | None] | None:
    if record.get("harmful") in (None, ""):
        return None
    refusal = record.get("refusal")
    return flag_cell(record, "harmful", at), None if refusal in (None, "") else flag_cell(record, "refusal", at)


def _wild_guard(record: Record, at: Origin) -> tuple[bool, bool | None] | None:
    harm = _word(record, "response_harm_label", {"harmful": True, "unharmful": False}, at)
    if harm is None:
        return None
    return harm, _word(record, "response_refusal_label", {"refusal": True, "compliance": False}, at)


def _beaver_tails(record: Record, at: Origin) -> tuple[bool, bool | None] | None:
    return not flag_cell(record, "is_safe", at), None


def _word(record: Record, column: str, known: dict[str, bool], at: Origin) -> bool | None:
    value: Any = record.get(column)
    if value in (None, ""):
        return None
    if value not in known:
        raise at.error(f"`{column}` is neither {' nor '.join(known)} nor empty")
    return known[value]


_KNOWN: Final = (
    _Columns(frozenset({"prompt", "response", "harmful"}), _plain),
    _Columns(frozenset({"prompt", "response", "response_harm_label"}), _wild_guard),
    _Columns(frozenset({"prompt", "response", "is_safe"}), _beaver_tails),
)
