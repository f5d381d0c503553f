"""One cell of a record, checked for its shape: text, a true-or-false mark, chat turns, a category."""

from __future__ import annotations

from typing import Any

from daemon.rows import Message, Origin

Record = dict[str, Any]  # column in lower case -> cell
MAX_CATEGORY_CHARS = 200

_ROLES = {
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "system": "system",
    "developer": "system",
}
_BOOLS = {True: True, False: False, "true": True, "false": False, "1": True, "0": False}


def text_cell(record: Record, column: str, at: Origin) -> str:
    """The text of a column, possibly blank; raises BatchError when it is missing, null or not text."""
    value = record.get(column)
    if isinstance(value, str):
        return value
    state = f"is of type {type(value).__name__}, not text" if value is not None else "is missing or null"
    raise at.error(f"`{column}` {state}", hint="give every row text there, or leave the row out")


def flag_cell(record: Record, column: str, at: Origin) -> bool:
    """A mark as CSV, JSON or Parquet write it: true or false, 1 or 0, in any case."""
    value = record.get(column)
    key = value.strip().lower() if isinstance(value, str) else value
    if isinstance(key, bool | int | str) and key in _BOOLS:
        return _BOOLS[key]
    raise at.error(f"`{column}` is neither true nor false", hint="the mark decides whether the row is harmful")


def chat_turns(value: object, column: str, at: Origin) -> list[Message]:
    """The turns of a chat in OpenAI's or ShareGPT's keys; raises BatchError on any other shape."""
    if not isinstance(value, list) or not all(isinstance(turn, dict) for turn in value):
        raise at.error(f"`{column}` is not a list of turns", hint="each turn is an object with role and content")
    return [_turn(turn, column, at) for turn in value]


def _turn(turn: Record, column: str, at: Origin) -> Message:
    role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
    if not isinstance(role, str) or role not in _ROLES:
        raise at.error(f"a turn in `{column}` has an unknown role", hint=f"known ones are {', '.join(_ROLES)}")
    if isinstance(content, list):
        content = _joined_parts(content)
    if not isinstance(content, str):
        raise at.error(f"a turn in `{column}` has no text")
    return Message(_ROLES[role], content)


def _joined_parts(parts: list[Any]) -> str | None:
    """The text of OpenAI content parts, or None when one of them is not text."""
    texts = [part.get("text") if isinstance(part, dict) else None for part in parts]
    return "\n".join(map(str, texts)) if texts and all(isinstance(text, str) for text in texts) else None


def category_label(value: object, at: Origin) -> str | None:
    """One label: the text itself, the first name that is marked true, or the first of a list."""
    if isinstance(value, dict):
        if not all(isinstance(marked, bool | None) for marked in value.values()):
            raise at.error("the category object holds something else than true and false")
        value = next((name for name, marked in value.items() if marked), None)
    elif isinstance(value, list):
        value = value[0] if value else None
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if value is not None and not isinstance(value, str):
        raise at.error("the category is neither text nor an object of true and false nor a list of text")
    if value is not None and len(value) > MAX_CATEGORY_CHARS:
        raise at.error(f"the category is longer than {MAX_CATEGORY_CHARS} characters", hint="are columns swapped?")
    return (value or "").strip() or None
