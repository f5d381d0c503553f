"""Completions for shells, by argcomplete: the shell runs `alignd` at each Tab, which answers instead of working.

So they know every command and option of the installed version, and the names in the home that `-c` says.
"""

from __future__ import annotations

import argparse
import os
import sqlite3
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from daemon.command import Argument, CommandError, Context, service_file_of
from daemon.suggest import Words, files
from state.errors import StoreError

SHELLS: Final = ("bash", "zsh", "fish")
INSTALL: Final = {
    "bash": "~/.local/share/bash-completion/completions/alignd",
    "zsh": "~/.zfunc/_alignd",
    "fish": "~/.config/fish/completions/alignd.fish",
}
_ASKED: Final = "_ARGCOMPLETE"
"""Set by the shell's function while it completes."""


def is_asked() -> bool:
    """Whether a shell asks for completions, and nothing is to be done."""
    return _ASKED in os.environ


def answer(parser: argparse.ArgumentParser) -> None:
    """Tells the shell what may stand at its cursor, and ends the process."""
    import argcomplete

    # without options among the words: who wants one types its dash
    argcomplete.autocomplete(parser, always_complete_options=False)


def script(shell: str) -> str:
    """What a shell has to read to complete `alignd`."""
    from argcomplete.shell_integration import shellcode

    return shellcode(["alignd"], shell=shell)


def let_complete(action: argparse.Action, argument: Argument) -> None:
    """Says what completes an argument; one with choices has these, and files are the shell's own."""
    if argument.options.get("choices") is None and argument.words is not files:
        found: Any = action
        found.completer = _completer(argument.words)


def _completer(words: Callable[[Context], Words] | None) -> Callable[..., Mapping[str, str]]:
    def complete(*, parsed_args: argparse.Namespace, **_: Any) -> Mapping[str, str]:
        if words is None:
            return {}
        given = getattr(parsed_args, "service_file", None)
        try:
            return words(Context(service_file_of(None if given is None else str(Path(given).expanduser()))))
        except (CommandError, StoreError, OSError, sqlite3.DatabaseError):
            return {}  # no home, or one that another user owns: nothing to offer

    return complete
