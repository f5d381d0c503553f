"""The pages of docs/ that are made from the code: commands, settings, metrics, exit codes, files, events.

`python -m daemon.reference docs` writes them anew; a test holds them to it.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Final, Literal, get_args, get_origin

from daemon import cli, events, exitcodes, reference_settings
from daemon.command import SELECTORS, Argument, Command
from daemon.metrics import METRICS
from state.layout import Layout
from state.schema import TABLES

MADE: Final = "Made from the code by `python -m daemon.reference`; do not edit it."
_HOME_FILES: Final = {
    "service.toml": "The [settings](settings.md).",
    "inbox/": "People drop batches here: `[inbox] path`.",
    "probes/": "What the gates measure on: [the files to give](inputs.md#the-files-to-give).",
    "retain.jsonl": "Answers that must not drift: `[derive.retain] path`.",
    "signers/": "Public keys that batches may be signed with: `[inbox] signers`.",
    "web-token": "What a change on [the page](page.md) needs; 0600, made when the page is first served.",
    "run/progress.json": "What the service does right now, for `status`.",
    "store/ledger-schema-N.db": "The ledger as it was before an upgrade from schema N.",
    "run/durations.json": "How long the steps of the last rounds took, for the time that is left.",
    "run/checked.jsonl": "What a `verify` that was cut short had found whole, for `verify --resume`.",
    "run/verified.json": "What the last check of the store found, for `status` and `doctor`.",
    ".create.lock": "Held while a home is made.",
}
"""What lies in a home beside what `state.layout` names."""
_IN_WORDS: Final = {str: "text", int: "whole number", float: "number", bool: "yes or no", dict: "JSON"}


def pages() -> dict[str, str]:
    """Every generated page by its name."""
    made: dict[str, Callable[[], str]] = {
        "commands.md": commands,
        "settings.md": reference_settings.render,
        "metrics.md": metrics,
        "exit-codes.md": exit_codes,
        "files.md": files,
        "events.md": events.render,
    }
    return {name: make() for name, make in made.items()}


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(_cell(text) for text in line)} |\n" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def commands() -> str:
    """Every command with its options and examples, in the groups of the main help."""
    parts = [
        f"# Commands\n\n{MADE}\n\n",
        "`alignd [-c HOME] [--json] COMMAND …`. Every command has `--help`. Data goes to stdout, talk to stderr.\n\n",
        _options(_common()),
        f"\nA *REF* is a version: {SELECTORS}.\n",
    ]
    for title, group in cli.GROUPS:
        parts.append(f"\n## To {title}\n")
        parts += [_command(command) for command in group]
    return "".join(parts)


def _common() -> list[Argument]:
    """The options of the main parser."""
    actions = (action for action in cli.build_parser()._actions if action.option_strings)
    named = (action for action in actions if action.dest != "help")
    return [
        Argument(tuple(action.option_strings), {key: getattr(action, key) for key in ("help", "nargs", "metavar")})
        for action in named
    ]


def _command(command: Command) -> str:
    words = " ".join(_usage(argument) for argument in command.arguments)
    aliases = f" Also `alignd {'`, `alignd '.join(command.aliases)}`." if command.aliases else ""
    examples = "\n".join(command.examples)
    return (
        f"\n### alignd {command.name}\n\n{command.purpose}.{aliases}\n\n"
        f"```text\nalignd {command.name}{' ' if words else ''}{words}\n```\n\n"
        f"{_options(command.arguments)}\nExamples:\n"
        f"```text\n{examples}\n```\n"
    )


def _options(arguments: Sequence[Argument]) -> str:
    rows = [(f"`{_usage(argument).strip('[]')}`", _help(argument)) for argument in arguments]
    return table(("argument", "meaning"), rows) if rows else ""


def _help(argument: Argument) -> str:
    return str(argument.options.get("help") or "").replace("%%", "%").replace("<", "&lt;")


def _usage(argument: Argument) -> str:
    """One argument as a usage line has it."""
    flag, options = argument.flags[-1], argument.options
    value = _value(flag, options)
    if not flag.startswith("-"):
        return {"?": f"[{value}]", "*": f"[{value} …]", "+": f"{value} …"}.get(str(options.get("nargs")), value)
    is_switch = str(options.get("action", "")).startswith("store_") or options.get("nargs") == 0
    names = ", ".join(argument.flags)
    text = names if is_switch else f"{names} {value}"
    return text if options.get("required") else f"[{text}]"


def _value(flag: str, options: Mapping[str, Any]) -> str:
    if "metavar" not in options and options.get("choices"):
        return "|".join(map(str, options["choices"]))
    return str(options.get("metavar") or flag.lstrip("-").upper().replace("-", "_"))


def metrics() -> str:
    """Every metric of the endpoint."""
    rows = [(f"`{m.name}`", m.kind, ", ".join(f"`{label}`" for label in m.labels), m.help) for m in METRICS]
    told = "[Serving](serving.md#metrics) says how to collect them. No label holds anything that came with a batch."
    return f"# Metrics\n\n{MADE} {told}\n\n{table(('metric', 'kind', 'labels', 'meaning'), rows)}"


def exit_codes() -> str:
    """Every exit code."""
    rows = [(str(code), meaning) for code, meaning in exitcodes.MEANINGS.items()]
    told = "Scripts may rely on them. Codes may be added: an unknown one other than 0 means failure."
    return f"# Exit codes\n\n{MADE} {told}\n\n{table(('code', 'meaning'), rows)}"


def files() -> str:
    """What lies in a home, and the tables of its ledger."""
    rows = [(f"`{name}`", meaning) for name, meaning in {**_HOME_FILES, **dict(_laid_out())}.items()]
    parts = [
        f"# Files of a home\n\n{MADE} [The design](design.md#5-state-on-disk) has the rules that they follow.\n\n",
        table(("path", "what it is"), rows),
        "\n## The ledger\n\n`store/ledger.db` is SQLite. Each row has a seal over its columns, by which `alignd verify`"
        " finds one that was changed.\n",
    ]
    for row, name in TABLES.items():
        columns = [(f"`{field.name}`", _type(field.type), told) for field, told in _told_fields(row)]
        parts.append(f"\n### {name}\n\n{_first_line(row)}\n\n{table(('column', 'type', 'meaning'), columns)}")
    return "".join(parts)


def _laid_out() -> Iterator[tuple[str, str]]:
    """What `Layout` names: path and meaning."""
    layout = Layout(Path("/home"))
    for name, value in vars(Layout).items():
        if isinstance(value, property):
            path = getattr(layout, name)
            yield path.relative_to("/home").as_posix(), _first_line(value)


def _told_fields(row: type[Any]) -> Iterator[tuple[Any, str]]:
    told = reference_settings.told(row)
    yield from ((field, told.get(field.name, "")) for field in fields(row))


def _type(annotation: Any) -> str:
    """What a column holds, in words."""
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(annotation))
    if get_origin(annotation) is UnionType:
        return " or ".join("nothing" if one is NoneType else _type(one) for one in get_args(annotation))
    return _IN_WORDS[get_origin(annotation) or annotation]


def _first_line(of: object) -> str:
    return " ".join((inspect.getdoc(of) or "").split())


def main(words: list[str]) -> int:
    """Write the pages into the folder that is named."""
    if len(words) != 1 or not Path(words[0]).is_dir():
        print("usage: python -m daemon.reference FOLDER", file=sys.stderr)
        return exitcodes.USAGE
    for name, text in pages().items():
        Path(words[0], name).write_text(text, encoding="utf-8")
    return exitcodes.OK


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
