"""The manual page alignd(1), made from the table of commands: what `--help` says is said here too, and nothing else."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any, Final

from daemon import exitcodes
from daemon.command import SELECTORS, SYSTEM_SERVICE_FILE, Argument, Command

DESCRIPTION: Final = (
    "alignd watches a folder. When somebody drops a batch of harmful prompts with the harmful answers they drew, it makes "
    "two small weight patches from it, merges them into the model under masks, tests the result, and publishes it as the "
    "next version if the gates pass. Every version is kept, and any of them can be brought back with one command.",
    "Data goes to standard output and talk to standard error. With --json each command prints one JSON document, and an "
    "error is one too, on standard error.",
)
_SOURCE_COLUMNS: Final = 70
_FILES: Final = {
    "service.toml": "the settings; its folder is the home",
    "inbox/": "where batches are dropped",
    "models/current": "the model in service, a link that is replaced by one rename",
    "probes/, retain.jsonl": "what a candidate is measured on, and what must not drift",
    "quarantine/": "what could not be used, with the reasons",
    "store/": "the ledger, versions, batches and the audit file",
    str(SYSTEM_SERVICE_FILE): "the settings where neither -c nor the folder names any",
}
_ENVIRONMENT: Final = {
    "NO_COLOR": "no colours, whatever it is set to",
    "COLUMNS": "the width that lists are fitted into (default: that of the terminal, else 80)",
}
_SETUP: Final = (".nh", ".ad l")
"""No hyphens and no stretched lines: options and paths are to be copied."""
_COMMON: Final = (
    (
        "-c FILE, --config FILE",
        f"service.toml, or its folder (default: ./service.toml, else {SYSTEM_SERVICE_FILE}); before or after the command",
    ),
    ("--json", "print one JSON document; before or after the command"),
    ("-h, --help", "say what the command does, with examples, and exit"),
    ("--version", "print alignd's version and exit"),
)


def render(now: datetime | None = None) -> str:
    """The page in the macros of man(7)."""
    day = (now or datetime.now(UTC)).date().isoformat()
    lines = [f'.TH ALIGND 1 "{day}" "alignd" "User Commands"', *_SETUP, *_opening(), *_commands(), *_closing()]
    return "\n".join(lines) + "\n"


def _opening() -> Iterator[str]:
    yield from (".SH NAME", r"alignd \- keep an open-weight language model aligned while it is in service")
    yield from (".SH SYNOPSIS", ".B alignd", _escaped("[-c FILE] [--json] COMMAND ..."))
    yield from (".SH DESCRIPTION", *_paragraphs(DESCRIPTION))
    yield from (".SH OPTIONS", *_described(_COMMON))


def _commands() -> Iterator[str]:
    from daemon.cli import GROUPS  # which imports the command that prints this

    yield ".SH COMMANDS"
    for title, commands in GROUPS:
        yield f'.SS "{_escaped(title)}"'
        for command in commands:
            yield from _command(command)


def _command(command: Command) -> Iterator[str]:
    names = " or ".join([command.name, *command.aliases])
    operands = [_operand(argument) for argument in command.arguments if not argument.flags[0].startswith("-")]
    yield from (".TP", ".B " + _escaped(" ".join([f"alignd {names}", *operands])), *_filled(f"{command.purpose}."))
    if command.arguments:
        yield from (".RS", *_described((_title(argument), _help(argument)) for argument in command.arguments), ".RE")


def _operand(argument: Argument) -> str:
    name = argument.options.get("metavar") or argument.flags[0].upper()
    return {"?": f"[{name}]", "*": f"[{name} ...]", "+": f"{name} ..."}.get(argument.options.get("nargs", ""), name)


def _title(argument: Argument) -> str:
    """How an option is written, or what an operand is called."""
    options: dict[str, Any] = argument.options
    if not argument.flags[0].startswith("-"):
        return _operand(argument)
    flags = ", ".join(argument.flags)
    if options.get("action") == "store_true":
        return flags
    return f"{flags} {options.get('metavar') or argument.flags[-1].lstrip('-').upper().replace('-', '_')}"


def _help(argument: Argument) -> str:
    choices = [str(choice) for choice in argument.options.get("choices") or ()]
    shown: str = argument.options["help"]
    return shown if all(choice in shown for choice in choices) else f"{shown}: {', '.join(choices)}"


def _closing() -> Iterator[str]:
    from daemon.cli import COMMANDS

    yield from (".SH VERSIONS", *_filled(f"A version is named by {SELECTORS}."))
    codes = ((str(code), meaning) for code, meaning in exitcodes.MEANINGS.items())
    yield from (".SH EXIT STATUS", *_described(codes))
    yield from _filled("Any other code than 0 means failure, and codes may be added.", before=".PP")
    yield from (".SH FILES", *_filled("In the home:"), *_described(_FILES.items()))
    yield from (".SH ENVIRONMENT", *_described(_ENVIRONMENT.items()))
    examples = [example for command in COMMANDS for example in command.examples]
    yield from (".SH EXAMPLES", ".nf", *map(_line, examples), ".fi")
    yield from (".SH SEE ALSO", ".BR systemctl (1),", ".BR journalctl (1)")


def _described(pairs: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Titles, each with its text below it and indented."""
    for title, text in pairs:
        yield from (".TP", f".B {_escaped(title)}", *_filled(text))


def _paragraphs(texts: Iterable[str]) -> Iterator[str]:
    for number, text in enumerate(texts):
        yield from _filled(text, before=".PP" if number else "")


def _filled(text: str, *, before: str = "") -> Iterator[str]:
    """A text that the formatter fills, in source lines of moderate length."""
    yield from [before] if before else []
    yield from map(_line, textwrap.wrap(text, _SOURCE_COLUMNS, break_long_words=False, break_on_hyphens=False))


def _line(text: str) -> str:
    """A line of text: one that begins like a request is no request."""
    escaped = _escaped(text)
    return rf"\&{escaped}" if escaped[:1] in (".", "'") else escaped


def _escaped(text: str) -> str:
    """A text in which nothing is markup, and a hyphen stays the one that can be copied."""
    return text.replace("\\", r"\e").replace("-", r"\-").replace("'", r"\(aq").replace("`", r"\(ga")
