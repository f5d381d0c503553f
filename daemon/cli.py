"""The command line: words in, one exit code out.

Hot commands must start fast, so nothing heavy is imported here; commands import what they need when they run.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import takewhile
from typing import Any, Final, NoReturn

from daemon import (
    commands_bisect,
    commands_check,
    commands_control,
    commands_explain,
    commands_export,
    commands_init,
    commands_judge,
    commands_plot,
    commands_probes,
    commands_rounds,
    commands_run,
    commands_serving,
    commands_setup,
    commands_shell,
    commands_show,
    commands_store,
    commands_tasks,
    commands_upgrade,
    complaint,
    completion,
    exitcodes,
)
from daemon.command import Answer, Command, CommandError, Context, check_home, service_file_of
from daemon.completion import let_complete
from daemon.terminal import printable, style_of

GROUPS: Final[tuple[tuple[str, tuple[Command, ...]], ...]] = (
    (
        "set up and run",
        (*commands_init.COMMANDS, *commands_setup.COMMANDS, *commands_probes.COMMANDS, *commands_run.COMMANDS),
    ),
    (
        "see",
        (
            *commands_show.COMMANDS,
            *commands_explain.COMMANDS,
            *commands_plot.COMMANDS,
            *commands_bisect.COMMANDS,
            *commands_judge.COMMANDS,
            *commands_tasks.COMMANDS,
        ),
    ),
    ("decide", (*commands_control.COMMANDS, *commands_rounds.COMMANDS)),
    ("serve", commands_serving.COMMANDS),
    ("keep", (*commands_store.COMMANDS, *commands_check.COMMANDS, *commands_upgrade.COMMANDS)),
    ("hand over", commands_export.COMMANDS),
    ("learn", commands_shell.COMMANDS),
)
COMMANDS: Final[tuple[Command, ...]] = tuple(command for _, commands in GROUPS for command in commands)

GROUP_PURPOSES: Final = {
    "quarantine": "See, release or delete what could not be used",
    "config": "Check or show the settings",
    "probes": "Fill the probe files",
}

_WRONG_WORD: Final = re.compile(
    r"argument (?P<what>COMMAND|ACTION): invalid choice: '(?P<word>.*)' \(choose from (?P<known>.*)\)", re.DOTALL
)


class Parser(argparse.ArgumentParser):
    """Raises instead of exiting, so that a usage error is reported like any other."""

    def error(self, message: str) -> NoReturn:
        wrong = _WRONG_WORD.match(message)
        if message.endswith("required: ACTION"):
            message = f"`{self.prog}` wants to be told what to do: {', '.join(self._actions_of_group())}"
        if wrong is None:
            raise CommandError(exitcodes.USAGE, message, f"see `{self.prog} --help`")
        self._refuse(wrong["what"].lower(), wrong["word"], re.findall(r"'([^']+)'", wrong["known"]))

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Refuses unknown options itself, since only the command's own parser knows what may have been meant."""
        words = list(sys.argv[1:] if args is None else args)
        # else what stands behind an unknown one would be taken for the command
        self._refuse_options(word for word in takewhile(_is_option, words) if self._is_unknown(word))
        found, left = super().parse_known_args(words, namespace)
        self._refuse_options(filter(_is_option, takewhile(lambda word: word != "--", left)))
        if left:  # by the command's own parser: the outermost one would name no command
            self.error(f"unrecognized arguments: {' '.join(left)}")
        return found, left

    def _actions_of_group(self) -> list[str]:
        groups = (action for action in self._actions if isinstance(action, argparse._SubParsersAction))
        return [name for group in groups for name in group.choices]

    def _is_unknown(self, word: str) -> bool:
        # what has one dash may be a value, -1 of `--limit -1`
        return word.startswith("--") and word.partition("=")[0] not in self._option_string_actions

    def _refuse_options(self, unknown: Iterator[str]) -> None:
        if option := next(unknown, None):
            self._refuse("option", option.partition("=")[0], self._option_string_actions)

    def _refuse(self, what: str, word: str, known: Iterable[str]) -> NoReturn:
        import difflib  # slow to import, and rarely wanted

        near = difflib.get_close_matches(word, known, n=1)
        meant = f"did you mean `{self.prog} {near[0]}`?" if near else f"see `{self.prog} --help`"
        raise CommandError(exitcodes.USAGE, f"there is no {what} {word!r}", meant)


def _is_option(word: str) -> bool:
    return word.startswith("-") and word not in ("-", "--")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and gives its exit code; prints data to stdout and everything else to stderr."""
    if completion.is_asked():
        completion.answer(build_parser())
    words = list(sys.argv[1:] if argv is None else argv)
    as_json = "--json" in words
    try:
        return _print(*_run(words))
    except BrokenPipeError:
        return _hush_stdout()
    except complaint.EXPECTED as err:
        return complaint.report(err, as_json=as_json)
    except ValueError as err:
        if not complaint.is_config_error(err):
            raise
        return complaint.report(err, as_json=as_json)
    except KeyboardInterrupt:
        return exitcodes.INTERRUPTED
    except SystemExit as stop:  # argparse: --help and --version
        return stop.code if isinstance(stop.code, int) else exitcodes.FAILED


def _run(words: list[str]) -> tuple[Context, Answer]:
    args = build_parser().parse_args(words)
    if getattr(args, "command", None) is None:
        raise CommandError(exitcodes.USAGE, "no command given", "see `alignd --help`")
    context = Context(service_file_of(args.service_file), json=args.json, style=style_of(sys.stdout))
    command: Command = args.command
    if command.needs_home:
        check_home(context.home)
    return context, command.run(context, args)


def _print(context: Context, answer: Answer) -> int:
    for note in answer.notes:
        print(f"alignd: {printable(note)}", file=sys.stderr)
    if answer.silent:
        return answer.code
    text = json.dumps(answer.data, indent=2, allow_nan=False) if context.json else "\n".join(answer.lines)
    if text:
        print(text, flush=True)
    return answer.code


def _hush_stdout() -> int:
    # the reader has seen enough; keep the interpreter from complaining when it closes stdout
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return exitcodes.OK


class _Version(argparse.Action):
    """Looks the version up only when it is asked for: that takes longer than all the rest of the start."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from importlib import metadata

        try:
            version = metadata.version("alignd")
        except metadata.PackageNotFoundError:
            version = "(run from its source, not installed)"
        print(f"alignd {version}")
        parser.exit()


def build_parser() -> Parser:
    """The parser of the whole command line."""
    parser = Parser(
        prog="alignd",
        usage="alignd [-c service.toml] [--json] COMMAND ...\n       alignd --version",
        description="Keeps an open-weight language model aligned while it is in service.",
        epilog=_epilog(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(command=None)
    _add_common(parser, service_file=None, json=False)
    parser.add_argument("--version", action=_Version, nargs=0, help="print alignd's version and exit")
    subparsers = parser.add_subparsers(metavar="COMMAND", title="commands", prog="alignd", parser_class=Parser)
    groups: dict[str, Any] = {}
    for command in COMMANDS:
        first, _, second = command.name.partition(" ")
        if second:
            if first not in groups:
                groups[first] = _add_group(subparsers, first)
            _add_command(groups[first], second, command)
        elif not _is_group(first):  # one that is a group too has its parser from that
            _add_command(subparsers, first, command)
    return parser


def _epilog() -> str:
    return (
        f"exit codes:\n{exitcodes.describe()}\n\n"
        "`alignd COMMAND --help` shows a command's options and examples.\n"
        "Data goes to stdout, talk to stderr."
    )


def _is_group(name: str) -> bool:
    return any(command.name.startswith(f"{name} ") for command in COMMANDS)


def _add_group(subparsers: Any, name: str) -> Any:
    alone = next((command for command in COMMANDS if command.name == name), None)
    purpose = alone.purpose if alone else GROUP_PURPOSES[name]
    members = [command for command in COMMANDS if f"{command.name} ".startswith(f"{name} ")]
    examples = [example for command in members for example in command.examples]
    parser = subparsers.add_parser(
        name,
        help=purpose,
        description=f"{purpose}.",
        epilog=_examples(examples),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_common(parser)
    parser.set_defaults(command=alone)
    return parser.add_subparsers(metavar="ACTION", title="actions", required=alone is None, parser_class=Parser)


def _examples(examples: Sequence[str]) -> str:
    lines = "\n".join(f"  {example}" for example in examples)
    return f"examples:\n{lines}\n\nexit codes: see `alignd --help`"


def _add_command(subparsers: Any, word: str, command: Command) -> None:
    parser = subparsers.add_parser(
        word,
        aliases=command.aliases,
        help=command.purpose,
        description=f"{command.purpose}.",
        epilog=_examples(command.examples),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    for argument in command.arguments:
        let_complete(parser.add_argument(*argument.flags, **argument.options), argument)
    _add_common(parser)
    parser.set_defaults(command=command)


def _add_common(parser: argparse.ArgumentParser, **defaults: Any) -> None:
    # Both options stand before or after the command: a sub-parser leaves them alone unless they are given to it.
    parser.add_argument(
        "-c",
        "--config",
        dest="service_file",
        metavar="FILE",
        default=defaults.get("service_file", argparse.SUPPRESS),
        help="service.toml, or its folder (default: ./service.toml, else /var/lib/alignd/service.toml)",
    )
    parser.add_argument(
        "--json",
        action="store_true",
        default=defaults.get("json", argparse.SUPPRESS),
        help="print one JSON document",
    )


if __name__ == "__main__":
    sys.exit(main())
