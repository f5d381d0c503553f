"""Ledger rows as the plain values that `--json` prints. Pure; fields are added, never renamed or removed.

Shares are in [0, 1], times UTC ISO-8601, versions are named `v3`. What was not measured is null.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from daemon.steps import in_order
from state.quarantine import Quarantined
from state.rows import AuditRow, BatchRow, ControlRow, DuplicateRow, RoundRow, VersionRow

DUPLICATE: Final = "duplicate"
CONSOLIDATION: Final = "consolidation"
AXES: Final = ("harm_rate", "over_refusal_rate", "utility")
JUDGE: Final = "judge"
"""Among metrics: who judged, and no number."""

View = dict[str, Any]


@dataclass(frozen=True)
class Names:
    """What a version's row does not say itself."""

    current: int
    batch_names: Mapping[str, str] = field(default_factory=dict)
    """Batch sha256 -> what its dropper called it."""
    tags: Mapping[int, Sequence[str]] = field(default_factory=dict)
    round_reasons: Mapping[str, str] = field(default_factory=dict)
    taken_out: Mapping[str, int] = field(default_factory=dict)
    """Round -> the version whose patch it took out."""
    consolidations: Collection[str] = ()
    """Rounds that learnt all batches anew together."""
    base_metrics: Mapping[str, Any] = field(default_factory=dict)
    """What the newest round that measured anything measured on the base."""


def plain(value: Any) -> Any:
    """A value that JSON can carry: no NaN or infinity (null instead), no tuples, keys as text."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    return value if value is None or isinstance(value, str | int | bool) else str(value)


def version_name(version_id: int | None) -> str | None:
    """`v3` of 3."""
    return None if version_id is None else f"v{version_id}"


def metrics_view(metrics: Mapping[str, Any]) -> View:
    """All metrics of a version, the three axes always among them."""
    return {**dict.fromkeys(AXES), **plain(metrics)}


def version_view(row: VersionRow, names: Names) -> View:
    """One version, as `history` lists it."""
    return {
        "id": row.name,
        "parent": version_name(row.parent),
        "state": row.state,
        "batch": row.batch,
        "batch_name": names.batch_names.get(row.batch) if row.batch else None,
        "round": row.round,
        "created": row.created_at,
        "metrics": metrics_view(metrics_of(row, names.base_metrics)),
        "touched_fraction": plain(row.touched_fraction),
        "current": row.id == names.current,
        "blocked": row.blocked,
        "pinned": row.pinned,
        "imported": row.is_import,
        "tags": list(names.tags.get(row.id, ())),
        "reason": names.round_reasons.get(row.round, "") if row.round else "",
        "takes_out": version_name(names.taken_out.get(row.round)) if row.round else None,
        "consolidated": row.round in names.consolidations,
    }


def same_weights_as(view: Mapping[str, Any]) -> str | None:
    """The parent of a version whose round found nothing to change; else None."""
    return view["parent"] if view["touched_fraction"] == 0 else None


def history_view(rows: Iterable[VersionRow], names: Names) -> list[View]:
    """All versions, oldest first."""
    return [version_view(row, names) for row in sorted(rows, key=lambda row: row.id)]


def batch_view(row: BatchRow, versions: Sequence[int] = (), duplicates: Iterable[DuplicateRow] = ()) -> View:
    """One batch, with the versions that came of it and the later drops of the same content among `duplicates`."""
    return {
        "sha256": row.sha256,
        "name": row.name,
        "state": row.state,
        "received": row.received_at,
        "num_bytes": row.num_bytes,
        "num_files": row.num_files,
        "attempts": row.attempts,
        "reason": row.reason,
        "stats": plain(row.stats),
        "versions": [version_name(version) for version in versions],
        "duplicates": [{"name": again.name, "at": again.at} for again in duplicates if again.sha256 == row.sha256],
    }


def quarantined_view(entry: Quarantined) -> View:
    """One entry of the quarantine."""
    return {
        "id": entry.id,
        "name": entry.name,
        "reason": entry.reason,
        "at": entry.at,
        "batch": entry.batch,
        "path": str(entry.path),
    }


def ending_view(end: BatchRow | Quarantined, versions: Sequence[int] = ()) -> View:
    """How a batch ended, or a drop that never became one."""
    return {
        "id": end.sha256 if isinstance(end, BatchRow) else end.id,
        "name": end.name,
        "state": end.state if isinstance(end, BatchRow) else "quarantined",
        "reason": end.reason,
        "versions": [version_name(version) for version in versions],
    }


def without_batch(target: str | None) -> str:
    """What a round is called that no batch was dropped for, by the version that it takes out."""
    return f"revert of {target}" if target else CONSOLIDATION


def is_wanted(row: RoundRow) -> bool:
    """Whether something is missing where this round made no version: a consolidation may well gain nothing, or be ended."""
    return row.batch is not None or row.target is not None or row.state == "failed"


def request_ending_view(row: RoundRow) -> View:
    """How a revert or a consolidation ended, as `ending_view` tells of batches."""
    return {
        "id": row.id,
        "name": without_batch(version_name(row.target)),
        "wanted": is_wanted(row),
        "state": row.state,
        "reason": "" if row.version is not None else row.reason,
        "versions": [] if row.version is None else [version_name(row.version)],
    }


def duplicate_view(row: DuplicateRow, known: BatchRow) -> View:
    """A drop whose content was known already, as `ending_view` tells of batches."""
    return {
        "id": known.sha256,
        "name": row.name,
        "state": DUPLICATE,
        "reason": f"same content as {known.name} ({known.sha256[:12]}), which is {known.state}",
        "versions": [],
        "original_state": known.state,
    }


def waiting_view(row: BatchRow | RoundRow, reasons: Sequence[str]) -> View:
    """What has not come to its end, and why, as `ending_view` tells of what has."""
    return {
        "id": row.sha256 if isinstance(row, BatchRow) else row.id,
        "name": row.name if isinstance(row, BatchRow) else without_batch(version_name(row.target)),
        "state": "interrupted" if row.state == "running" else row.state,
        "reason": "; ".join(reasons),
        "versions": [],
    }


def round_view(row: RoundRow, batch_name: str | None = None) -> View:
    """One round, with what each finished step recorded."""
    return {
        "id": row.id,
        "kind": row.kind,
        "state": row.state,
        "batch": row.batch,
        "batch_name": batch_name,
        "target": version_name(row.target),
        "parent": version_name(row.parent),
        "version": version_name(row.version),
        "step": row.step,
        "steps": in_order(row.kind, row.artefacts),
        "started": row.started_at,
        "ended": row.ended_at,
        "attempts": row.attempts,
        "reason": row.reason,
        "gates": find_gates(row.artefacts),
        "metrics": {name: plain(measured(row.artefacts, name)) for name in ("candidate", "current", "base")},
        "artefacts": plain(row.artefacts),
    }


def gates_view(gates: Any) -> list[View]:
    """Gate results, as a version or a round keeps them; empty when there are none."""
    if not isinstance(gates, list | tuple):
        return []
    return [_gate_view(gate) for gate in gates if isinstance(gate, Mapping)]


def _gate_view(gate: Mapping[str, Any]) -> View:
    low, high = gate.get("interval") or (None, None)
    return {
        "name": str(gate.get("name", "")),
        "class": gate.get("klass", ""),
        "verdict": gate.get("verdict", ""),
        "value": plain(gate.get("value")),
        "low": plain(low),
        "high": plain(high),
        "num_samples": gate.get("num_samples"),
        "current": plain(gate.get("current")),
        "base": plain(gate.get("base")),
        "reasons": [str(reason) for reason in gate.get("reasons") or ()],
    }


def find_gates(artefacts: Mapping[str, Any]) -> list[View]:
    """The gate results that a round's steps recorded, wherever they stand."""
    for value in artefacts.values():
        if isinstance(value, Mapping):
            found = gates_view(value.get("gates")) or find_gates(value)
            if found:
                return found
    return []


def control_view(row: ControlRow | None) -> View | None:
    """A switch that is on, or null."""
    return None if row is None else {"reason": row.reason, "actor": row.actor, "since": row.since}


def audit_view(row: AuditRow) -> View:
    """One audit line."""
    return {
        "seq": row.seq,
        "at": row.at,
        "actor": row.actor,
        "action": row.action,
        "subject": row.subject,
        "details": plain(row.details),
        "hash": row.hash,
    }


def metrics_of(row: VersionRow, base_metrics: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a version measured; the base has no round of its own, and is measured in each."""
    return base_metrics if row.state == "base" else row.metrics


def flat_metrics(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics with groups taken apart: `{"harm_by_batch": {"b1": 0.1}}` gives `{"harm_by_batch.b1": 0.1}`."""
    flat: dict[str, Any] = {}
    for name, value in metrics.items():
        if name == JUDGE:
            continue
        groups = value if isinstance(value, Mapping) else None
        flat |= {name: value} if groups is None else {f"{name}.{key}": item for key, item in groups.items()}
    return flat


def measured(artefacts: Mapping[str, Any], subject: str) -> dict[str, Any]:
    """What a round measured on its `candidate`, on `current` or on the `base`; empty when it did not come so far."""
    found = (artefacts.get("evaluate") or {}).get(subject)
    return dict(found) if isinstance(found, Mapping) else {}


def metrics_delta(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, float | None]:
    """How far each metric of either side moved; null where one side was not measured."""
    before, after = flat_metrics(before), flat_metrics(after)
    names = [*AXES, *sorted((set(before) | set(after)) - set(AXES))]
    return {name: _difference(before.get(name), after.get(name)) for name in names}


def _difference(before: Any, after: Any) -> float | None:
    numbers = (before, after)
    if any(isinstance(value, bool) or not isinstance(value, int | float) for value in numbers):
        return None
    return after - before if math.isfinite(before) and math.isfinite(after) else None
