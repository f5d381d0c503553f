"""Commands that check the store: is everything what was written, and can every version be rebuilt?"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from itertools import groupby
from typing import TYPE_CHECKING, Final

from daemon import exitcodes, suggest
from daemon.command import SELECTORS, Answer, Command, Context, arg
from daemon.terminal import Style, printable, wrapped

if TYPE_CHECKING:
    from state.verified import Finding


def verify(context: Context, args: argparse.Namespace) -> Answer:
    """Checks that everything stored is what was written."""
    from state import verified
    from state.checked import Checked, verify_on
    from state.verify import drawn, parts
    from state.verify import verify as check

    with context.store() as store:
        names = parts(store)
        if args.sample is not None:
            left_out = drawn(store, args.sample / 100, random.Random())
            findings = check(store, deep=args.deep, passed_over=left_out)
            if findings:  # a sample that finds nothing takes nothing back
                verified.note(store.home, findings)
            num, good = len(names) - len(left_out), "what was looked at is what was written"
            return _findings_answer(context, findings, f"{good}: {num} of {len(names)} parts")
        known = len(Checked(store.home, deep=args.deep).parts()) if args.resume else 0
        teller = _teller(context, "checked")
        findings = verify_on(store, deep=args.deep, progress=teller, anew=not args.resume)
    earlier = f"; {known} of {len(names)} parts were checked by the run before" if known else ""
    return _findings_answer(context, findings, f"everything stored is what was written{earlier}")


def drill(context: Context, args: argparse.Namespace) -> Answer:
    """Rebuilds versions from base and overlays and compares them bit for bit."""
    from state.scratch import private_folder
    from state.verify import drill as rehearse

    with context.store() as store:
        rows = [store.resolve(ref) for ref in args.refs] or store.ledger.versions()
        with private_folder(store.home, "drill") as scratch:
            findings = rehearse(store, [row.id for row in rows], scratch)
    names = ", ".join(row.name for row in rows)
    return _findings_answer(context, findings, f"rebuilt bit for bit: {names}")


def _teller(context: Context, what: str) -> Callable[[float], None]:
    """Shows how far a long command is, to a person."""
    if context.json or not sys.stderr.isatty():
        return lambda done: None

    def tell(done: float) -> None:
        end = "\r\x1b[K" if done >= 1 else ""
        print(f"\r{what} {done:4.0%}{end}", end="", file=sys.stderr, flush=True)

    return tell


def _findings_answer(context: Context, findings: list[Finding], good: str) -> Answer:
    data = {"ok": not findings, "findings": [asdict(found) | {"path": str(found.path)} for found in findings]}
    if not findings:
        return Answer(data, (context.style.paint(good, "good"),))
    lines = [
        line for remedy, alike in groupby(findings, _remedy) for line in _alike_lines(remedy, alike, context.style)
    ]
    return Answer(data, tuple(lines), exitcodes.INTEGRITY)


def _remedy(finding: Finding) -> str:
    return finding.remedy


def _alike_lines(remedy: str, findings: Iterable[Finding], style: Style) -> Iterator[str]:
    """Findings that are mended in one way, and that way."""
    for finding in findings:
        first, *rest = wrapped(printable(f"{finding.path}: {finding.what}"), style, indent=4)
        path, colon, what = first.partition(": ")
        yield style.paint(path, "bad") + colon + what
        yield from rest
    yield from wrapped(f"  -> {printable(remedy)}", style, indent=5) if remedy else ()


def percent(text: str) -> float:
    """More than 0, at most 100."""
    value = float(text)
    if not 0 < value <= 100:
        raise argparse.ArgumentTypeError(f"{text}: more than 0 and at most 100 are allowed")
    return value


COMMANDS: Final = (
    Command(
        "verify",
        "Check that everything stored is what was written",
        ("alignd verify", "alignd verify --deep --resume", "alignd verify --sample 10"),
        verify,
        (
            arg("--deep", action="store_true", help="read every tensor, and name the one that is wrong"),
            arg("--resume", action="store_true", help="go on behind what a run that was cut short has found whole"),
            arg(
                "--sample",
                type=percent,
                metavar="PERCENT",
                help="only so many of the versions and of the batches, drawn",
            ),
        ),
        aliases=("fsck",),
    ),
    Command(
        "drill",
        "Rebuild versions from base and overlays and compare bit for bit",
        ("alignd drill", "alignd drill current previous"),
        drill,
        (arg("refs", nargs="*", metavar="REF", words=suggest.versions, help=f"versions (default: all): {SELECTORS}"),),
    ),
)
