"""What `status --json` prints: the service, the store, what runs and what waits. Pure, as all views are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from daemon.steps import in_order
from daemon.views import View, control_view, metrics_of, metrics_view, plain, version_name
from state.rows import BatchRow, ControlRow, RoundRow, VersionRow


@dataclass(frozen=True)
class Standing:
    """Everything that `status` looks at, gathered by the caller."""

    current: VersionRow
    previous: VersionRow | None = None
    candidate: VersionRow | None = None
    held: ControlRow | None = None
    paused: ControlRow | None = None
    running: RoundRow | None = None
    waiting_rounds: Sequence[RoundRow] = ()
    queued: Sequence[BatchRow] = ()
    batch_names: Mapping[str, str] = field(default_factory=dict)
    progress: Mapping[str, Any] = field(default_factory=dict)
    """The service's run/progress.json; empty when no service runs."""
    num_waiting: int = 0
    num_quarantined: int = 0
    num_versions: int = 1
    service_pid: int | None = None
    free_bytes: int | None = None
    replicas: Sequence[View] = ()
    problems: Sequence[str] = ()
    base_metrics: Mapping[str, Any] = field(default_factory=dict)
    """What the newest round measured on the base."""


def status_view(standing: Standing) -> View:
    """The state of the service and its store."""
    return {
        "current": standing.current.name,
        "previous": standing.previous.name if standing.previous else None,
        "candidate": standing.candidate.name if standing.candidate else None,
        "metrics": metrics_view(metrics_of(standing.current, standing.base_metrics)),
        "num_versions": standing.num_versions,
        "held": standing.held is not None,
        "hold": control_view(standing.held),
        "paused": standing.paused is not None,
        "pause": control_view(standing.paused),
        "round": _running_view(standing),
        "queue": [*map(_request_view, standing.waiting_rounds), *map(_queued_view, standing.queued)],
        "inbox": {"waiting": standing.num_waiting},
        "quarantine": standing.num_quarantined,
        "service": {
            "running": standing.service_pid is not None,
            "pid": standing.service_pid,
            "state": standing.progress.get("state"),
            "message": standing.progress.get("message") or "",
            "page": standing.progress.get("page"),
        },
        "disk": {"free_bytes": standing.free_bytes},
        "serving": list(standing.replicas),
        "problems": list(standing.problems),
    }


def _running_view(standing: Standing) -> View | None:
    row = standing.running
    if row is None:
        return None
    told = standing.progress if standing.progress.get("round") == row.id else {}
    is_interrupted = standing.service_pid is None
    step = told.get("step") or (row.step if is_interrupted else None)
    fraction = told.get("fraction") if step else None  # a worker that has begun no step yet is at none
    return {
        "id": row.id,
        "kind": row.kind,
        "interrupted": is_interrupted,
        "batch": row.batch,
        "batch_name": standing.batch_names.get(row.batch) if row.batch else None,
        "target": version_name(row.target),
        "parent": version_name(row.parent),
        "step": step,
        "steps_done": in_order(row.kind, told.get("steps_done") or row.artefacts),
        "fraction": plain(fraction),
        "eta_s": plain(told.get("eta_s")),
        "loss": plain(told.get("loss")),
        "started_at": row.started_at,
        "attempts": row.attempts,
    }


def _queued_view(row: BatchRow) -> View:
    return {
        "kind": "batch",
        "batch": row.sha256,
        "name": row.name,
        "received": row.received_at,
        "attempts": row.attempts,
        "num_bytes": row.num_bytes,
    }


def _request_view(row: RoundRow) -> View:
    return {"kind": row.kind, "round": row.id, "target": version_name(row.target), "received": row.started_at}
