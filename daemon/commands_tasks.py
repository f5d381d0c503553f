"""The commands about lm-evaluation-harness tasks: versions scored on them, and their documents as utility probes."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from daemon import exitcodes, suggest
from daemon.command import SELECTORS, Answer, Command, CommandError, Context, arg, positive_count
from daemon.terminal import Style, number, table

if TYPE_CHECKING:
    from daemon.config import Config
    from daemon.harness import Asked, TaskScore
    from state.rows import VersionRow
    from state.store import Store


def bench_tasks(context: Context, args: argparse.Namespace) -> Answer:
    """Scores versions on tasks of lm-evaluation-harness."""
    from daemon.harness import HarnessError
    from patches.errors import PatchError

    config = context.config()
    with context.store() as store:
        rows = list({row.id: row for row in map(store.resolve, args.refs or ("base", "current"))}.values())
        try:
            scores = {row.name: _score(store, config, row, _asked(args)) for row in rows}
        except (HarnessError, PatchError) as err:
            raise CommandError(exitcodes.CONFIG, str(err)) from err
    view = {
        "versions": [row.name for row in rows],
        "scores": {name: [score.to_dict() for score in found] for name, found in scores.items()},
    }
    return Answer(view, tuple(_score_lines(view, context.style)))


def _score(store: Store, config: Config, row: VersionRow, asked: Asked) -> list[TaskScore]:
    from daemon.harness import score
    from daemon.rebuilt import model_folder
    from patches.model import load_model, load_tokenizer, pick_device

    with model_folder(store, row) as folder:
        device = pick_device(config.model.device)
        return score(load_model(folder, dtype=config.model.dtype, device=device), load_tokenizer(folder), asked)


def _asked(args: argparse.Namespace) -> Asked:
    from daemon.harness import Asked

    include = Path(args.include).absolute() if args.include else None
    return Asked(tuple(args.task), include, args.limit, getattr(args, "chat", False))


def _score_lines(view: dict[str, Any], style: Style) -> Iterator[str]:
    """One line a metric, one column a version, and how far the last is from the first."""
    first, last = view["versions"][0], view["versions"][-1]
    cells = {name: {(s["task"], s["metric"]): s for s in found} for name, found in view["scores"].items()}
    rows = []
    for key, score in cells[first].items():
        moved = cells[last][key]["value"] - score["value"]
        shown = [number(cells[name][key]["value"]) for name in view["versions"]]
        rows.append([*key, str(score["num_docs"]), *shown, *([f"{moved:+.3f}"] if first != last else [])])
    moved_title = [f"{last} - {first}".upper()] if first != last else []
    yield from table(["TASK", "METRIC", "DOCUMENTS", *map(str.upper, view["versions"]), *moved_title], rows, style)


def probes_from_tasks(context: Context, args: argparse.Namespace) -> Answer:
    """Takes the documents of tasks into the utility probes."""
    from daemon.harness import HarnessError, probe_rows
    from daemon.probe_import import add

    config = context.config()
    try:
        rows = probe_rows(_asked(args))
    except HarnessError as err:
        raise CommandError(exitcodes.CONFIG, str(err)) from err
    added = add(context.home, config, {"utility": rows})
    view = {
        "tasks": args.task,
        "num_probes": len(rows),
        "added": {kind: found.to_dict() for kind, found in added.items()},
    }
    lines = [f"{len(rows)} documents of {', '.join(args.task)}"]
    for found in added.values():
        known = f", {found.num_known} were there already" if found.num_known else ""
        lines.append(f"utility: {found.num_added} added to {found.path}{known}")
    return Answer(view, tuple(lines))


_TASK: Final = arg("--task", metavar="NAME", action="append", required=True, help="a task; may be given several times")
_INCLUDE: Final = arg(
    "--include",
    metavar="FOLDER",
    words=suggest.files,
    help="tasks of one's own, as YAML files; what they name is run, so trust them",
)
_LIMIT: Final = arg("--limit", metavar="N", type=positive_count, help="documents of each task at most")

COMMANDS: Final = (
    Command(
        "bench-tasks",
        "Score versions on tasks of lm-evaluation-harness",
        (
            "alignd bench-tasks --task hellaswag --limit 200",
            "alignd bench-tasks base previous current --task mine --include tasks --chat",
        ),
        bench_tasks,
        (
            arg(
                "refs",
                metavar="REF",
                nargs="*",
                words=suggest.versions,
                help=f"versions (default: base and current): {SELECTORS}",
            ),
            _TASK,
            _INCLUDE,
            _LIMIT,
            arg("--chat", action="store_true", help="put questions into the model's chat template"),
        ),
    ),
    Command(
        "probes from-tasks",
        "Take the documents of lm-evaluation-harness tasks into the utility probes",
        ("alignd probes from-tasks --task gsm8k --limit 200", "alignd probes from-tasks --task mine --include tasks"),
        probes_from_tasks,
        (_TASK, _INCLUDE, _LIMIT),
    ),
)
