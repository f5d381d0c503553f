"""The command that finds the version which broke something."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from daemon import exitcodes, suggest
from daemon.command import SELECTORS, Answer, Command, CommandError, Context, arg
from daemon.views import version_name
from state.rows import VersionRow

if TYPE_CHECKING:
    from daemon.bisect import Question, Step
    from policies.bisect import Found
    from state.store import Store

STDIN: Final = Path("/dev/stdin")
DEFAULT_BOUND: Final = 0.5


def bisect(context: Context, args: argparse.Namespace) -> Answer:
    """Tries versions on a probe until the one that broke it is known."""
    from daemon import bisect as method  # torch comes with it
    from daemon import probes
    from patches.errors import PatchError

    config = context.config()
    with context.store() as store:
        line = _line(store, args.good, args.bad)
        files = probes.load(store.home, config)
        question = method.Question(args.axis, _rows(args.probe), _share(args.bound))
        examiner = method.Examiner(store, config, files, question, line[-1])
        try:
            found, steps = method.search(
                line, question, examiner.counts, is_good_given=bool(args.good), tell=_teller(context)
            )
        except PatchError as err:  # 1 would say that no version is to blame; so for the next
            raise CommandError(exitcodes.CONFIG, f"the versions cannot be asked: {err}") from err
        except OSError as err:
            what = f"{err.filename}: {err.strerror}" if err.filename else str(err)
            raise CommandError(exitcodes.TRY_AGAIN, f"the search came to no end: {what}") from err
        view = _view(store, line, question, found=found, steps=steps)
    code = exitcodes.OK if view["found"] else exitcodes.FAILED
    from daemon.render_bisect import conclusion_lines

    return Answer(view, tuple(conclusion_lines(view, context.style)), code)


def _line(store: Store, good: str | None, bad: str) -> list[VersionRow]:
    """The versions to search, each after its parent; from the good one on, or from v0."""
    newest = store.resolve(bad)
    line = store.lineage(newest.id)
    if good is None:
        return line
    oldest = store.resolve(good)
    numbers = [row.id for row in line]
    if oldest.id not in numbers:
        hint = f"its ancestors are {', '.join(row.name for row in line[:-1]) or 'none'}"
        raise CommandError(exitcodes.USAGE, f"{oldest.name} is no ancestor of {newest.name}", hint)
    return line[numbers.index(oldest.id) :]


def _rows(probe: str) -> Sequence[Any]:
    from daemon import probes
    from daemon.config import ConfigError

    path = STDIN if probe == "-" else Path(probe)
    try:
        rows, _ = probes.read(path)
    except OSError as err:  # 1 would say that no version is to blame
        raise CommandError(exitcodes.USAGE, f"{path} cannot be read: {err.strerror}", "name a file of prompts") from err
    except ConfigError as err:
        raise CommandError(exitcodes.USAGE, str(err)) from err
    if not rows:
        raise CommandError(exitcodes.USAGE, f"{path} holds no prompt", 'one {"prompt", "response"?} a line is expected')
    return rows


def _share(bound: float) -> float:
    if not 0 <= bound <= 1:
        raise CommandError(exitcodes.USAGE, f"--bound is {bound:g}", "a share from 0 to 1 is expected")
    return bound


def _teller(context: Context) -> Callable[[Step], None]:
    """Prints each step when it is done, for a version may take minutes; `--json` is one document at the end."""
    if context.json:
        return lambda step: None
    from daemon.render_bisect import step_line

    return lambda step: print(step_line(step.to_dict(), context.style), flush=True)


def _view(
    store: Store, line: Sequence[VersionRow], question: Question, *, found: Found, steps: Sequence[Step]
) -> dict[str, Any]:
    from daemon.bisect import METRICS, dividing_bound, overlap_notes

    tried = {step.version for step in steps}
    return {
        "axis": question.axis,
        "metric": METRICS[question.axis],
        "bound": question.bound,
        "num_prompts": len(question.rows),
        "oldest": line[0].name,
        "newest": line[-1].name,
        "steps": [step.to_dict() for step in steps],
        "found": None if found.broken_at is None else _breaker_view(store, line[found.broken_at]),
        "reasons": [*found.decision.reasons, *overlap_notes(found.broken_at, line, steps)],
        "untried": [row.name for row in line if row.name not in tried],
        "dividing_bound": dividing_bound(question.axis, steps),
    }


def _breaker_view(store: Store, row: VersionRow) -> dict[str, Any]:
    batch = store.ledger.batch(row.batch) if row.batch else None
    made_by = store.ledger.round(row.round) if row.round else None
    return {
        "id": row.name,
        "parent": version_name(row.parent),
        "round": row.round,
        "kind": made_by.kind if made_by else None,
        "took_out": version_name(made_by.target) if made_by else None,
        "batch": row.batch,
        "batch_name": batch.name if batch else None,
        "is_in_service": row.id in {ancestor.id for ancestor in store.lineage(store.current().id)},
    }


COMMANDS: Final = (
    Command(
        "bisect",
        "Find the version that broke something, by asking versions the prompts of a file",
        (
            "alignd bisect broken.jsonl --axis utility",
            "alignd bisect jailbreak.jsonl --good v1 --bad v7",
            "alignd bisect - --axis over_safety --bound 0.1",
        ),
        bisect,
        (
            arg(
                "probe",
                metavar="PROBE",
                words=suggest.files,
                help='JSON Lines of {"prompt", "response"?}, or - for stdin',
            ),
            arg(
                "--good",
                metavar="REF",
                words=suggest.versions,
                help="an ancestor that passes (default: v0, else the oldest that passes)",
            ),
            arg(
                "--bad",
                metavar="REF",
                words=suggest.versions,
                default="current",
                help=f"one that fails (default: current): {SELECTORS}",
            ),
            arg(
                "--axis",
                choices=("harm", "over_safety", "utility"),
                default="harm",
                help="what is counted: answers with harmful content, refusals, or right answers (default: harm)",
            ),
            arg(
                "--bound",
                type=float,
                default=DEFAULT_BOUND,
                metavar="SHARE",
                help="a version passes when its harm or refusal rate is at most this, its utility at least "
                "(default: 0.5)",
            ),
        ),
    ),
)
