"""The service's state as plain values, and as one line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from daemon.board import job_facts
from daemon.claims import Claims
from daemon.intakes import Intakes
from daemon.job import Workshop
from daemon.rounds import Rounds
from state.rows import BatchRow, RoundRow


def facts(
    shop: Workshop, *, claims: Claims, intakes: Intakes, rounds: Rounds, queue: Sequence[BatchRow]
) -> dict[str, Any]:
    """What run/progress.json says, but for its time and process id."""
    row = shop.store.ledger.round(rounds.job.name) if rounds.job else None
    job = rounds.job or intakes.job
    batch = shop.store.ledger.batch(row.batch if row and row.batch else job.name) if job else None
    return {
        "state": _state(shop, claims, intakes, rounds),
        "round": row.id if row else None,
        "batch": batch.name if batch else None,
        "kind": row.kind if row else ("intake" if job else None),
        **job_facts(job, rounds.durations_s if rounds.job else {}, _steps_done(row)),
        "queue": [waiting.name for waiting in queue],
        "inbox": {
            "waiting": [{"name": drop.label, "lacks": drop.lacks} for drop in claims.inbox.waiting],
            "problems": claims.inbox.problems,
        },
        "message": _message(shop, rounds),
    }


def status_line(told: dict[str, Any]) -> str:
    """The facts in one line, for ``systemctl status``."""
    words = [told["state"]]
    if told["kind"]:
        at = f", {told['step']} {told['fraction']:.0%}" if told["step"] else ""
        words.append(f"{told['kind']} of {told['batch'] or told['round']}{at}")
    if told["queue"]:
        words.append(f"{len(told['queue'])} queued")
    if told["message"]:
        words.append(told["message"])
    return "; ".join(words)


def _state(shop: Workshop, claims: Claims, intakes: Intakes, rounds: Rounds) -> str:
    if rounds.job is not None:
        return "training"
    if intakes.job is not None:
        return "reading"
    if shop.store.held is not None:
        return "held"
    if shop.store.paused is not None:
        return "paused"
    if rounds.held_back or claims.stopped_by:
        return "waiting"
    return "idle"


def _message(shop: Workshop, rounds: Rounds) -> str:
    return "; ".join((*shop.notes.values(), *rounds.held_back))


def _steps_done(row: RoundRow | None) -> list[str]:
    return list(row.artefacts) if row else []
