"""Commands that explain a version: what it is, how it came to be, how it differs."""

from __future__ import annotations

import argparse
import contextlib
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from daemon import exitcodes, judges_shown, render, suggest, views
from daemon.command import SELECTORS, Answer, Command, CommandError, Context, arg, check_free, service_pid
from daemon.standing import names
from state.core import UNNAMED
from state.errors import ModelFormatError, NotFoundError
from state.quarantine import Quarantined
from state.rows import BatchRow, DuplicateRow, RoundRow, VersionRow

if TYPE_CHECKING:
    from state.store import Store

TO_STDOUT: Final = "-"


def show(context: Context, args: argparse.Namespace) -> Answer:
    """Shows a version, a round or a batch."""
    with context.store() as store:
        found = _find(store, args.ref)
        if isinstance(found, RoundRow):
            return _show_round(context, store, found)
        if isinstance(found, BatchRow | DuplicateRow):
            return _show_batch(context, store, found)
        if isinstance(found, Quarantined):
            view = views.quarantined_view(found)
            return Answer(view, tuple(render.quarantine_lines([view], context.style)))
        view = version_view(store, found)
    from daemon import render_version

    return Answer(view, tuple(render_version.version_lines(view, context.style)))


def _find(store: Store, ref: str) -> VersionRow | RoundRow | BatchRow | DuplicateRow | Quarantined:
    if re.fullmatch(r"r[0-9]+", ref) and (row := store.ledger.round(ref)) is not None:
        return row
    try:
        return store.resolve(ref)
    except NotFoundError as err:
        if not store.ledger.batches_named(ref) and (again := store.find_duplicate(ref)) is not None:
            return again
        with contextlib.suppress(NotFoundError):
            return store.find_batch(ref)
        aside = store.find_entries(ref)
        if aside:
            return aside[-1]
        if ref in UNNAMED:
            raise
        hint = f"{err.hint}; rounds are called like r000001, batches by name or sha256 (`alignd batches`)"
        raise NotFoundError(f"no version, round or batch is called {ref!r}", hint) from err


def version_view(store: Store, row: VersionRow) -> views.View:
    """Everything that is known of a version, as `show --json` prints it."""
    from daemon import explain

    record = store.version_record(row.id)
    known = names(store, [row])
    view = views.version_view(row, known)
    touched = record.get("touched") or {}
    others = {} if row.parent is None else {"v0": known.base_metrics, "parent": store.version(row.parent).metrics}
    own = known.base_metrics if row.id == 0 else row.metrics
    steps = views.plain(record.get("steps") or {})
    return view | {
        "lineage": [ancestor.name for ancestor in reversed(store.lineage(row.id))],
        "model": str(store.model_path(row.id)) if store.is_materialized(row.id) else None,
        "num_touched": touched.get("num_entries"),
        "touched_by_layer": explain.touched_by_layer(touched.get("per_tensor") or {}),
        "gates": views.gates_view(record.get("gates")),
        "against": _against(store, row),
        "axes": explain.axes(record, own, others),
        "why": _why(store, row, steps),
        "judge": judges_shown.judge_text(record),
        **explain.derivation(
            steps, record.get("kind", "batch"), config=record.get("config"), num_entries=_num_entries(store)
        ),
        "touched": explain.touched(record),
        "source": views.plain(record.get("imported")),
        "record": views.plain(record),
    }


def _num_entries(store: Store) -> dict[str, int]:
    """How large each tensor of the model is; empty where v0 cannot be read, which `verify` tells of."""
    from state.header import read_header

    with contextlib.suppress(OSError, ModelFormatError):
        files = [path for path in store.model_path(0).iterdir() if path.suffix == ".safetensors"]
        return {info.name: info.num_entries for path in files for info in read_header(path, path.name)}
    return {}


def _why(store: Store, row: VersionRow, steps: Mapping[str, Any]) -> list[str]:
    from daemon import explain

    made_by = store.ledger.round(row.round) if row.round else None
    batch = store.ledger.batch(row.batch) if row.batch else None
    arrival = store.ledger.arrival(row.id) if store.ledger.was_current(row.id) else None
    imported = "another home made it, and no gate of this one measured it" if row.is_import else ""
    return explain.why(
        row.state,
        steps,
        arrival=asdict(arrival) if arrival else None,
        kind=made_by.kind if made_by else "",
        taken_out=views.version_name(made_by.target) if made_by else None,
        reasons=[imported, made_by.reason if made_by else "", _batch_reason(batch) if batch and row.blocked else ""],
    )


def _batch_reason(batch: BatchRow) -> str:
    """Why its batch is where it is."""
    if batch.state == "rolled_back" and batch.reason:
        return f"rolled back: {batch.reason}"
    return batch.reason


def _against(store: Store, row: VersionRow) -> dict[str, dict[str, float | None]]:
    """How the metrics moved against the parent and against the base."""
    others = [] if row.parent is None else dict.fromkeys([row.parent, 0])
    return {f"v{other}": moved(store, store.version(other), row) for other in others}


def moved(store: Store, before: VersionRow, after: VersionRow) -> dict[str, float | None]:
    """How the metrics moved, as they were measured together.

    Null where two judges measured them: what then moved may be the judge.
    """
    sides = measured_together(store, before, after)
    delta = views.metrics_delta(*sides)
    if judges_shown.are_comparable(*sides):
        return delta
    return {name: move if name in judges_shown.UNJUDGED else None for name, move in delta.items()}


def measured_together(
    store: Store, before: VersionRow, after: VersionRow
) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """The metrics of two versions; where the newer one's round measured the older one too, both of that: the same probes."""
    older, newer = sorted((before, after), key=lambda row: row.id)
    subject = "base" if older.id == 0 else "current" if older.id == newer.parent else ""
    measured = store.version_record(newer.id).get("measured") or {}
    metrics = {older.id: measured.get(subject) or older.metrics, newer.id: newer.metrics}
    return metrics[before.id], metrics[after.id]


def _show_round(context: Context, store: Store, row: RoundRow) -> Answer:
    from daemon import explain

    batch = store.ledger.batch(row.batch) if row.batch else None
    view = views.round_view(row, batch.name if batch else None)
    view |= explain.derivation(view["artefacts"], row.kind, config=row.config, num_entries=_num_entries(store))
    view["batch_names"] = {batch.sha256[:12]: batch.name for batch in store.ledger.batches()}
    view |= {"config": row.config, "interrupted": _is_interrupted(store, row)}
    from daemon import render_show

    return Answer(view, tuple(render_show.round_lines(view, context.style)))


def _show_batch(context: Context, store: Store, found: BatchRow | DuplicateRow) -> Answer:
    """A batch; for a drop of content that was known already the batch that it repeats."""
    row = found if isinstance(found, BatchRow) else store.find_batch(found.sha256)
    versions = [version.id for version in store.ledger.versions_of(row.sha256)]
    view = views.batch_view(row, versions, store.ledger.duplicates()) | {"interrupted": _is_interrupted(store, row)}
    view["rounds"] = [tried.id for tried in store.ledger.rounds_of(row.sha256)]
    view["duplicate"] = {"name": found.name, "at": found.at} if isinstance(found, DuplicateRow) else None
    from daemon import render_show

    return Answer(view, tuple(render_show.batch_lines(view, context.style)))


def _is_interrupted(store: Store, row: RoundRow | BatchRow) -> bool:
    """Whether the ledger says that it runs, but no service is there to run it."""
    return row.state == "running" and service_pid(store) is None


def diff(context: Context, args: argparse.Namespace) -> Answer:
    """Compares two versions: numbers, batches, tensors."""
    from daemon.compare import batches_between, compare, differing_tensors
    from daemon.rebuilt import model_folder
    from state.tensors import ModelFolder

    with context.store() as store:
        before, after = store.resolve(args.a), store.resolve(args.b)
        records = [store.version_record(row.id) for row in (before, after)]
        differing = differing_tensors(*(record["tensors"] for record in records))
        with model_folder(store, before) as old, model_folder(store, after) as new:
            tensors = compare(ModelFolder.open(old), ModelFolder.open(new), differing)
        batch_names = {row.sha256[:12]: row.name for row in store.ledger.batches()}
        batches = batches_between(store, before, after)
        metrics = moved(store, before, after)
        known = names(store, [before, after])
        sides = [views.version_view(row, known) for row in (before, after)]
    is_told = any(move is not None for name, move in metrics.items() if name not in judges_shown.UNJUDGED)
    view = {
        "a": before.name,
        "b": after.name,
        "num_entries": sum(item.num_entries for item in tensors),
        "metrics": metrics,
        "batches": batches,
        "batch_names": batch_names,
        "tensors": [asdict(item) for item in tensors],
    }
    from daemon import render_show

    notes = () if is_told else tuple(filter(None, [judges_shown.note(sides)]))
    return Answer(view, tuple(render_show.diff_lines(view, context.style)), notes=notes)


def report(context: Context, args: argparse.Namespace) -> Answer:
    """Writes one page about one version."""
    from daemon import report_facts, report_page
    from state import durable

    with context.store() as store:
        row = store.resolve(args.ref)
        page = report_page.render(report_facts.gather(store, row, version_view(store, row)))
    if args.out == TO_STDOUT:
        return Answer({"id": row.name, "page": page}, (page,))
    path = Path(args.out or ".").absolute()
    path = path / f"{row.name}.html" if path.is_dir() else path
    if not path.parent.is_dir():
        raise CommandError(exitcodes.FAILED, f"{path.parent} is no folder", "create it first")
    check_free([path], force=args.force)
    data = page.encode()
    durable.write_file(path, data, 0o644)
    return Answer({"id": row.name, "path": str(path), "num_bytes": len(data)}, (f"{row.name} is explained in {path}",))


_REF: Final = arg("ref", metavar="REF", words=suggest.versions, help=f"a version: {SELECTORS}")

COMMANDS: Final = (
    Command(
        "show",
        "Explain a version, a round or a batch",
        ("alignd show current", "alignd show r000003", "alignd show 3f9a12bc"),
        show,
        (
            arg(
                "ref",
                metavar="REF",
                words=suggest.everything,
                help=f"a round's id, a drop's name or sha256, or a version: {SELECTORS}",
            ),
        ),
    ),
    Command(
        "report",
        "Write a page about a version: measurements, gates, losses, merges, sets",
        ("alignd report current", "alignd report v3 --out /tmp/v3.html", "alignd report v3 --out - > v3.html"),
        report,
        (
            _REF,
            arg(
                "--out",
                metavar="PATH",
                words=suggest.files,
                help="a file, a folder for vN.html in it, or - for stdout (default: this folder)",
            ),
            arg("--force", action="store_true", help="overwrite what is there"),
        ),
    ),
    Command(
        "diff",
        "Compare two versions: metrics, batches, tensors",
        ("alignd diff previous current", "alignd --json diff base v3 | jq .num_entries"),
        diff,
        (
            arg("a", metavar="A", words=suggest.versions, help=f"a version: {SELECTORS}"),
            arg("b", metavar="B", words=suggest.versions, help="likewise"),
        ),
    ),
)
