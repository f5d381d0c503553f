"""What stands on each page, gathered from the store in windows: no page grows with the number of versions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from daemon import charts, explain, judges_shown, live, views
from daemon.command import Context
from daemon.commands_explain import measured_together, moved, version_view
from daemon.report_page import who_is_shown
from daemon.standing import names
from daemon.steps import in_order
from daemon.views import View
from state import audit
from state.core import HELD, PAUSED
from state.errors import NotFoundError
from state.queue import RETRY_STATES
from state.rows import BatchRow, RoundRow, VersionRow

if TYPE_CHECKING:
    from state.store import Store

PAGE_ROWS: Final = 50
MAX_METRICS: Final = 80
MAX_POINTS: Final = 400
SPANS: Final = ("100", "1000", "all")
HEAT_COLUMNS: Final = 14
HEAT_ROWS: Final = 40
_NUM_ANCESTORS: Final = 12
_NUM_ROUNDS: Final = 6
_BY_BATCH: Final = "harm_by_batch."


def standing(context: Context, store: Store) -> View:
    """What every page says on top, and what the live parts of the first page show."""
    frame = live.frame_of(context, store, [])
    return {"frame": frame, "seq": store.ledger.note("audit_seq", "0"), "switches": switches(store)}


def switches(store: Store) -> str:
    """Which hold and which pause is on: changes with each new one."""
    rows = (store.ledger.control(HELD), store.ledger.control(PAUSED))
    return " ".join(f"{row.name}@{row.since}" for row in rows if row)


def now(context: Context, store: Store) -> View:
    """The service at work, and what came last."""
    told = standing(context, store)
    frame = told["frame"]
    round_ = frame["round"]
    step = round_["step"] if round_ else None
    losses = frame["losses"]
    shown = step if losses.get(step) else next(reversed(losses), None)
    last = [round_["loss"]] if round_ and shown == step else []  # the curve is thinned, and may end before it
    chart = charts.loss_chart(str(shown), [*losses[shown], *last]) if shown else ""
    return {
        **told,
        "steps": _steps(frame),
        "loss_step": shown,
        "loss_chart": chart,
        "versions": live.newest_versions(store)[::-1],
        "rounds": [_round_line(store, row) for row in store.ledger.newest_rounds(_NUM_ROUNDS)],
    }


def _steps(frame: View) -> list[View]:
    """The steps of the running round: done, running or to come."""
    round_ = frame["round"]
    if not round_:
        return []
    done, running = round_["steps_done"], round_["step"]
    every = list(dict.fromkeys([*frame["expected_steps"], *done, *([running] if running else [])]))
    return [
        {"name": name, "is": "done" if name in done else "running" if name == running else "to come"} for name in every
    ]


def _round_line(store: Store, row: RoundRow) -> View:
    batch = store.ledger.batch(row.batch) if row.batch else None
    return {
        "id": row.id,
        "what": batch.name if batch else views.without_batch(views.version_name(row.target)),
        "batch": row.batch,
        "state": row.state,
        "ended": row.ended_at,
        "started": row.started_at,
        "reason": row.reason,
        "version": views.version_name(row.version),
        "steps": in_order(row.kind, row.artefacts),
    }


def versions(store: Store, before: int | None, span: str) -> View:
    """The newest versions under a number as a table, and as a chart over as many as `span` says."""
    rows = store.ledger.newest(VersionRow, PAGE_ROWS, below=before)
    drawn = _spanned(store, rows[0].id if rows else 0, span)
    known = names(store, [*rows, *drawn])
    listed, charted = views.history_view(rows, known), views.history_view(drawn, known)
    return {
        "versions": listed[::-1],
        "chart": charts.versions_chart(charted),
        "judges": judges_shown.note(charted) or judges_shown.note(listed),
        "span": span,
        "spans": SPANS,
        "num_drawn": len(drawn),
        "before": before,
        "older": rows[-1].id if rows and rows[-1].id > 0 else None,
        "newer": _newer(rows[0].id if rows else 0, PAGE_ROWS, store.ledger.next_number(VersionRow) - 1),
    }


def _spanned(store: Store, newest: int, span: str) -> list[VersionRow]:
    wanted = newest + 1 if span == "all" else min(int(span), newest + 1)
    every = max(1, math.ceil(wanted / MAX_POINTS))
    rows = store.ledger.newest(VersionRow, math.ceil(wanted / every), below=newest + 1, every=every)
    return rows if not rows or rows[0].id == newest else [*store.ledger.newest(VersionRow, 1, below=newest + 1), *rows]


def _newer(shown: int, step: int, newest: int) -> int | None:
    """The `before` of the page with newer rows; None where this one has the newest."""
    return min(shown + step, newest) + 1 if shown < newest else None


def harm(store: Store, before: int | None) -> View:
    """Harm by category and by batch over some versions, as a heat map: the worst rows of the newest versions."""
    rows = store.ledger.newest(VersionRow, HEAT_COLUMNS, below=before)[::-1]
    listed = views.history_view(rows, names(store, rows))
    by_batch = _heat(listed, "harm_by_batch")
    named = store.ledger.batches_starting([row["group"] for row in by_batch["rows"]])
    for row in by_batch["rows"]:
        row["name"] = named[row["group"]].name if row["group"] in named else row["group"]
        row["batch"] = named[row["group"]].sha256 if row["group"] in named else None
    return {
        "versions": listed,
        "categories": _heat(listed, "standing_harm_by_category"),
        "batches": by_batch,
        "older": rows[0].id if rows and rows[0].id > 0 else None,
        "newer": _newer(rows[-1].id if rows else 0, HEAT_COLUMNS, store.ledger.next_number(VersionRow) - 1),
    }


def _heat(listed: Sequence[View], metric: str) -> View:
    columns = [view["metrics"].get(metric) or {} for view in listed]
    groups = list(dict.fromkeys(group for column in columns for group in column))
    newest = {group: [column.get(group) for column in columns] for group in groups}
    groups.sort(key=lambda group: max((share or 0.0 for share in newest[group]), default=0.0), reverse=True)
    rows = [{"group": group, "name": group, "cells": newest[group]} for group in groups[:HEAT_ROWS]]
    return {"rows": rows, "num_left_out": max(0, len(groups) - HEAT_ROWS)}


def version(store: Store, ref: str) -> View:
    """One version, explained."""
    row = store.resolve(ref)
    view = version_view(store, row)
    record, who = view["record"], who_is_shown(view)
    line = store.lineage(row.id)
    shown = line[-_NUM_ANCESTORS:][::-1]
    groups = explain.harm_by_batch(record, {})
    named = store.ledger.batches_starting([group["group"] for group in groups])
    search = view["search"]
    layers = (view["touched"] or {}).get("by_layer") or {}
    return {
        "v": view,
        "who": who,
        "axes_chart": charts.intervals_chart(view["axes"], who),
        "ancestors": views.history_view(shown, names(store, shown))[::-1],
        "num_older": len(line) - len(shown),
        "harm_by_batch": [
            {**group, "name": named[group["group"]].name if group["group"] in named else group["group"]}
            for group in groups
        ],
        "utility_by_category": explain.utility_by_category(record),
        "rows": explain.rows_of(record),
        "losses": [(item["step"], charts.loss_chart(item["step"], item["losses"])) for item in view["trainings"]],
        "layers_chart": charts.bars_chart(layers, "touched entries of each layer; the table has the figures"),
        "layers": layers,
        "lead": _lead(search),
        "audit": [views.audit_view(line) for line in audit.newest(store, PAGE_ROWS, about=f'"{row.name}"')],
        "is_awaiting": row.state == "awaiting_approval",
        "may_roll_back": not row.blocked and not view["current"] and store.ledger.was_current(row.id),
    }


def _lead(search: View | None) -> float | None:
    """How far the merge that won is ahead of the next best one."""
    if not search or search["winner"] is None:
        return None
    scores = [trial.get("score") for place, trial in enumerate(search["trials"]) if place != search["winner"]]
    others = [score for score in scores if isinstance(score, int | float)]
    own = search["trials"][search["winner"]].get("score")
    return own - max(others) if others and isinstance(own, int | float) else None


def difference(store: Store, a: str, b: str) -> View:
    """What a version has that another has not: numbers, batches, tensors by their digests."""
    from daemon.compare import batches_between, differing_tensors

    before, after = store.resolve(a), store.resolve(b)
    records = [store.version_record(row.id) for row in (before, after)]
    differing = differing_tensors(*(record["tensors"] for record in records))
    known = names(store, [before, after])
    sides = [views.version_view(row, known) for row in (before, after)]
    totals, delta = _by_layer(list(records[1]["tensors"])), moved(store, before, after)
    return {
        "a": sides[0],
        "b": sides[1],
        "metrics": _metrics(store, delta, measured_together(store, before, after)),
        "judges": judges_shown.note(sides),
        "num_metrics_left_out": max(0, len(delta) - MAX_METRICS),
        "batches": batches_between(store, before, after),
        "tensors": differing,
        "layers": [
            {"name": name, "num": count, "of": totals.get(name, count)} for name, count in _by_layer(differing).items()
        ],
        "touched": explain.touched(records[1]) if after.parent == before.id else None,
    }


def _by_layer(tensors: Sequence[str]) -> dict[str, int]:
    return explain.touched_by_layer(dict.fromkeys(tensors, 1))


def _metrics(store: Store, delta: Mapping[str, float | None], sides: Sequence[Mapping[str, Any]]) -> list[View]:
    old, new = map(views.flat_metrics, sides)
    shown = list(delta)[:MAX_METRICS]
    named = store.ledger.batches_starting([name.partition(".")[2] for name in shown if name.startswith(_BY_BATCH)])
    titles = {f"{_BY_BATCH}{start}": f"harm, {row.name}" for start, row in named.items()}
    return [
        {
            "name": titles.get(name, name.replace("_", " ").replace(".", ", ")),
            "a": old.get(name),
            "b": new.get(name),
            "delta": delta[name],
            "is_share": not name.endswith("_nll"),
        }
        for name in shown
    ]


def batches(store: Store, before: int | None, state: str) -> View:
    """The newest batches under a number."""
    rows = store.ledger.newest(BatchRow, PAGE_ROWS, below=before, states=[state] if state else ())
    newest = store.ledger.newest(BatchRow, 1, states=[state] if state else ())
    return {
        "batches": _batch_views(store, rows),
        "state": state,
        "older": rows[-1].seq if len(rows) == PAGE_ROWS and rows[-1].seq > 1 else None,
        "has_newer": bool(rows and newest and rows[0].seq < newest[0].seq),
    }


def _batch_views(store: Store, rows: Sequence[BatchRow]) -> list[View]:
    made: dict[str, list[int]] = {}
    for version_row in store.ledger.versions_of(*(row.sha256 for row in rows)):
        made.setdefault(version_row.batch or "", []).append(version_row.id)
    return [views.batch_view(row, made.get(row.sha256, ())) for row in rows]


def batch(store: Store, ref: str) -> View:
    """One batch, what was counted in it, and the rounds that tried it."""
    row = store.ledger.batch(ref)
    if row is None:
        raise NotFoundError(f"there is no batch {ref}", "the page of the batches lists them")
    rounds = store.ledger.rounds_of(row.sha256)
    counts = {key: value for key, value in row.stats.items() if isinstance(value, int | float)}
    return {
        "b": _batch_views(store, [row])[0],
        "may_retry": row.state in RETRY_STATES,
        "counts": counts,
        "rounds": [_round_line(store, found) | {"gates": views.find_gates(found.artefacts)} for found in rounds[::-1]],
    }


def quarantine(store: Store, page: int) -> View:
    """What could not be used, newest first."""
    entries = store.quarantined()[::-1]
    start = page * PAGE_ROWS
    return {
        "entries": [
            {"id": e.id, "name": e.name, "reason": e.reason, "at": e.at, "batch": e.batch}
            for e in entries[start : start + PAGE_ROWS]
        ],
        "num": len(entries),
        "page_number": page,
        "has_older": len(entries) > start + PAGE_ROWS,
    }


def trail(store: Store, before: int | None, about: str) -> View:
    """Who did what and why, newest first."""
    lines = audit.newest(store, PAGE_ROWS, before=before, about=about)
    return {
        "lines": [views.audit_view(line) for line in lines],
        "about": about,
        "before": before,
        "older": lines[-1].seq if len(lines) == PAGE_ROWS and lines[-1].seq > 1 else None,
    }
