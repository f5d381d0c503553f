"""The page of all settings, out of the sections of `daemon/config.py`: keys, ranges, defaults, and what stands below them."""

from __future__ import annotations

import ast
import inspect
import json
import textwrap
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, Final

import msgspec

from daemon.config import Config, GateSection, GatesSection
from daemon.config_method import PRESETS
from daemon.config_told import allowed
from daemon.config_told import nested as nested_in

_HEAD: Final = """\
# Settings

Made from the code by `python -m daemon.reference`; do not edit it.

`service.toml` in the home. Every setting has a default, so the file may be nearly empty. An unknown key is refused, and
the error names the nearest known one. Paths are relative to the file. `alignd config show` prints what is in effect, and
`alignd config check` says whether it can be used.
"""


def render() -> str:
    """The page."""
    return "".join([_HEAD, *_section(Config, Config(), ""), *_presets()])


def told(kind: type[Any]) -> dict[str, str]:
    """The text below each field of a class, and of those that it inherits from."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if base.__module__.partition(".")[0] in ("daemon", "state"):
            found |= _told_by(base)
    return found


@cache
def _told_by(kind: type[Any]) -> dict[str, str]:
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(definition, ast.ClassDef)
    found = {}
    for node, below in zip(definition.body, definition.body[1:], strict=False):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and isinstance(below, ast.Expr):
            text = below.value.value if isinstance(below.value, ast.Constant) else ""
            found[node.target.id] = " ".join(str(text).split())
    return found


def _section(kind: type[Any], default: Any, at: str) -> Iterator[str]:
    """One table of the file, and those inside it."""
    if kind is GatesSection:
        yield from _gates(default)
        return
    inner = []
    rows = []
    below = told(kind)
    for field in msgspec.structs.fields(kind):
        value = default_of(field) if default is None else getattr(default, field.name)
        nested = nested_in(field.type)
        if nested is None:
            rows.append(
                f"| `{field.encode_name}` | {_allowed(field.type)} | {_shown(value)} | {_text(below, field)} |\n"
            )
        else:
            inner.append(
                (
                    nested,
                    value,
                    f"{at}.{field.encode_name}".lstrip("."),
                    field.type is not nested,
                    below.get(field.name, ""),
                )
            )
    if at:
        yield f"\n### {at}\n\n{_about(kind)}\n"
    else:
        yield "\n## Tables\n\n### The top of the file\n"
    if rows:
        yield "\n| key | allowed | default | meaning |\n| --- | --- | --- | --- |\n" + "".join(rows)
    for nested, value, name, is_list, text in inner:
        if text:
            yield f"\n*{name}*: {_escaped(text)}\n" if not is_list else ""
        yield from _section(nested, None if is_list else value, name)


def _gates(default: GatesSection) -> Iterator[str]:
    """All gates at once, since each has the same keys."""
    yield f"\n### gates\n\n{_about(GatesSection)} Each is a table of its own, `[gates.harm]`. {_about(GateSection)}\n"
    keys = msgspec.structs.fields(GateSection)
    below = told(GateSection)
    rows = "".join(f"| `{key.encode_name}` | {_allowed(key.type)} | {_text(below, key)} |\n" for key in keys)
    yield f"\n| key | allowed | meaning |\n| --- | --- | --- |\n{rows}"
    yield f"\n| gate | {' | '.join(f'`{key.encode_name}`' for key in keys)} |\n|{' --- |' * (len(keys) + 1)}\n"
    remarks = told(GatesSection)
    for gate in msgspec.structs.fields(GatesSection):
        values = (_shown(getattr(getattr(default, gate.name), key.name)) for key in keys)
        yield f"| `{gate.name}` | {' | '.join('' if value == 'none' else value for value in values)} |\n"
    yield "".join(f"\n*gates.{name}*: {_escaped(text)}\n" for name, text in remarks.items())


def default_of(field: Any) -> Any:
    """A field's default where no instance has it; `msgspec.NODEFAULT` where it must be given."""
    if field.default_factory is not msgspec.NODEFAULT:
        return field.default_factory()
    return field.default


def _about(kind: type[Any]) -> str:
    return _escaped(" ".join((kind.__doc__ or "").split()))


def _text(below: Mapping[str, str], field: Any) -> str:
    return _escaped(below.get(field.name, ""))


def _escaped(text: str) -> str:
    """Text as it stands, in Markdown."""
    for sign in "\\|<*{}":
        text = text.replace(sign, f"\\{sign}")
    return text


def _shown(value: Any) -> str:
    if value is msgspec.NODEFAULT:
        return "must be given"
    if value is None:
        return "none"
    return f"`{json.dumps(msgspec.to_builtins(value), ensure_ascii=False)}`"


def _allowed(kind: Any) -> str:
    return allowed(kind).replace("|", "\\|")


def _presets() -> Iterator[str]:
    """What each preset sets otherwise than the defaults."""
    yield (
        "\n## Presets\n\n`preset` sets values that the file's own override. `alignd` is the defaults above;"
        " `safepatching` is the method as published, as far as public sources pin it down.\n"
    )
    for name, values in PRESETS.items():
        if values:
            rows = "".join(f"| `{key}` | `{json.dumps(value)}` |\n" for key, value in _flat(values, ""))
            yield f"\n### {name}\n\n| key | value |\n| --- | --- |\n{rows}"


def _flat(values: Mapping[str, Any], at: str) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{at}{key}.")
        else:
            yield f"{at}{key}", value
