"""Questions to the person at a terminal. Where there is none nothing is asked: every answer is an option too."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TypeVar

from daemon import exitcodes
from daemon.command import CommandError, Context
from daemon.config import ConfigError
from daemon.terminal import printable
from state.errors import StoreError

T = TypeVar("T")


def can_ask(context: Context) -> bool:
    """Whether somebody sits there: both the questions and the answers go through a terminal."""
    return not context.json and sys.stdin.isatty() and sys.stderr.isatty()


def ask(question: str, accept: Callable[[str], T]) -> T:
    """Asks until an answer is accepted; what is wrong with one is said before the question is asked again.

    Raises:
        CommandError: there are no more answers.
    """
    while True:
        print(f"{question}: ", end="", file=sys.stderr, flush=True)
        try:
            text = input().strip()
        except EOFError:
            print(file=sys.stderr)
            hint = "every answer is an option too: `alignd init --help`"
            raise CommandError(exitcodes.USAGE, "there was no answer; nothing was made", hint) from None
        try:
            return accept(text)
        except (CommandError, ConfigError, StoreError) as err:
            hint = getattr(err, "hint", "")
            print(printable(f"  {err}{'; ' if hint else ''}{hint}"), file=sys.stderr)
        except OSError as err:
            print(printable(f"  {err.filename}: {err.strerror}"), file=sys.stderr)


def tell(context: Context, text: str) -> None:
    """Says what takes long, to a person who may be waiting."""
    if can_ask(context):
        print(text, file=sys.stderr, flush=True)
