"""What a setting may be, in words: for the page of settings, and for whoever wrote something else."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import takewhile
from typing import Any, Final, Literal, TypeVar, get_args, get_origin

import msgspec
from msgspec.inspect import (
    BoolType,
    FloatType,
    IntType,
    Metadata,
    NoneType,
    StrType,
    Type,
    UnionType,
    VarTupleType,
    type_info,
)

Settings = TypeVar("Settings", bound=msgspec.Struct)
MAX_SHOWN: Final = 60
MOST_TOLD: Final = 12
"""Faults that are told where there are many."""
_PLACE: Final = re.compile(r" - at `\$\.?(.*)`$")
_MISSING: Final = re.compile(r"missing required field `(\w+)`")


def allowed(kind: Any) -> str:
    """What a setting of a type may be."""
    if get_origin(kind) is Literal:
        return ", ".join(f"`{json.dumps(value)}`" for value in get_args(kind))
    return _allowed_by(type_info(kind))


def nested(kind: Any) -> type[msgspec.Struct] | None:
    """The section that a field holds, alone or many of it."""
    for candidate in (kind, *get_args(kind)):
        if isinstance(candidate, type) and issubclass(candidate, msgspec.Struct):
            return candidate
    return None


def converted(values: dict[str, Any], root: type[Settings]) -> tuple[Settings, list[str]]:
    """The settings that plain values are, and a sentence for each value that may not be, of a list for the first.

    Where there are such sentences the settings are made of the other values.

    Args:
        values: without keys that ``root`` does not have.
    """
    found: list[str] = []
    while True:
        try:
            return msgspec.convert(values, root), found
        except msgspec.ValidationError as err:
            problem = str(err)
        found.append(_wrong(problem, values, root))
        # of a list all of it, since its places are told by number
        values = _without(values, list(takewhile(lambda step: isinstance(step, str), _steps(problem))))


def at_once(found: Sequence[str]) -> str:
    """One fault as it is, more than one counted and numbered, the first of many; there is at least one."""
    if len(found) == 1:
        return found[0]
    told = "; ".join(f"({number}) {fault}" for number, fault in enumerate(found[:MOST_TOLD], 1))
    more = len(found) - MOST_TOLD
    return f"{len(found)} faults: {told}" + (f"; and {more} more" if more > 0 else "")


def _wrong(problem: str, values: Any, root: type[msgspec.Struct]) -> str:
    """What msgspec says of a value, put as the key, the value that stands there, and what is allowed."""
    found = _PLACE.search(problem)
    assert found is not None, "the root itself is a table"
    steps = _steps(problem)
    if missing := _MISSING.search(problem):
        return f"`{found[1]}` has no `{missing[1]}`, which must be given"
    for step in steps:
        values = values[step]
    kind = _kind_at(root, steps)
    what = _headed(kind, found[1]) if nested(kind) else allowed(kind)
    return f"`{found[1]}` is {_shown(values)}; allowed: {what}"


def _steps(problem: str) -> list[str | int]:
    """From the root to what a ValidationError is about."""
    place = _PLACE.findall(problem)[0]
    return [int(step) if step.isdigit() else step for step in re.findall(r"\w+", place)]


def _without(values: dict[str, Any], steps: Sequence[Any]) -> dict[str, Any]:
    """A copy that lacks what is there; the tables on the way are copied, too."""
    first, *rest = steps
    if rest:
        return values | {first: _without(values[first], rest)}
    return {key: value for key, value in values.items() if key != first}


def _headed(kind: Any, place: str) -> str:
    return f"tables, each headed `[[{place}]]`" if get_origin(kind) is tuple else "a table"


def _kind_at(kind: Any, steps: Sequence[str | int]) -> Any:
    for step in steps:
        section = nested(kind)
        if isinstance(step, int):
            kind = section or get_args(kind)[0]
        else:
            assert section is not None, f"{step}: a key of no table"
            kind = next(field.type for field in msgspec.structs.fields(section) if field.encode_name == step)
    return kind


def _shown(value: Any) -> str:
    """A value as it stands; of tables and lists not what is in them, which may be a password in an address."""
    if isinstance(value, dict | list):
        return "a table" if isinstance(value, dict) else "a list"
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 1]}…"


def _allowed_by(kind: Type) -> str:
    match kind:
        case BoolType():
            return "`true`, `false`"
        case IntType():
            return f"whole number{_bounds(kind)}"
        case FloatType():
            return f"number{_bounds(kind)}"
        case Metadata(extra_json_schema={"description": str(told)}):
            return told
        case StrType(pattern=None):
            return "text"
        case VarTupleType(item_type=item):
            return f"list: {_allowed_by(item)}"
        case UnionType(types=types):
            return " or ".join("nothing" if isinstance(one, NoneType) else _allowed_by(one) for one in types)
    raise TypeError(f"a setting of an unknown type: {kind}")


def _bounds(kind: IntType | FloatType) -> str:
    named = (("above", kind.gt), ("from", kind.ge), ("to", kind.le), ("below", kind.lt))
    return "".join(f" {word} {bound:g}" for word, bound in named if bound is not None)
