"""Commands for whoever works in a shell: completions, the manual page."""

from __future__ import annotations

import argparse
from typing import Final

from daemon.command import Answer, Command, Context, arg
from daemon.completion import INSTALL, SHELLS


def completion(context: Context, args: argparse.Namespace) -> Answer:
    """Prints what a shell reads to complete commands, options and names of the home."""
    from daemon.completion import script

    text = script(args.shell)
    return Answer({"shell": args.shell, "script": text}, tuple(text.splitlines()))


def man(context: Context, args: argparse.Namespace) -> Answer:
    """Prints the manual page."""
    from daemon import manpage

    text = manpage.render()
    return Answer({"page": text}, tuple(text.splitlines()))


COMMANDS: Final = (
    Command(
        "completion",
        "Print completions for a shell: commands, options, names of the home",
        tuple(f"alignd completion {shell} > {place}" for shell, place in INSTALL.items()),
        completion,
        (arg("shell", metavar="SHELL", choices=SHELLS, help=f"one of {', '.join(SHELLS)}"),),
        needs_home=False,
    ),
    Command(
        "man",
        "Print the manual page",
        ("alignd man | man -l -", "alignd man > /usr/local/share/man/man1/alignd.1"),
        man,
        needs_home=False,
    ),
)
