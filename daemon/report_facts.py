"""What the page about a version shows, gathered from ledger, record, audit file and v0's header; no prompt, no answer."""

from __future__ import annotations

from typing import Any

from daemon import explain
from daemon.standing import names
from daemon.views import View, audit_view, history_view
from state import audit
from state.rows import AuditRow, VersionRow
from state.store import Store
from state.tensors import ModelFolder


def gather(store: Store, row: VersionRow, view: View) -> dict[str, Any]:
    """Everything that the page needs, as plain values.

    Args:
        view: `commands_explain.version_view` of the same version.
    """
    record = view["record"]
    line = store.lineage(row.id)
    batch_names = {batch.sha256[:12]: batch.name for batch in store.ledger.batches()}
    return {
        "version": view,
        "lineage": history_view(line, names(store, line)),
        "rows": explain.rows_of(record),
        "harm_by_batch": explain.harm_by_batch(record, batch_names),
        "utility_by_category": explain.utility_by_category(record),
        "tensors": _tensors(store, record),
        "settings": _flat(record.get("config") or {}),
        "inputs": record.get("inputs") or {},
        "files": record.get("files") or {},
        "seeds": record.get("seeds") or {},
        "patches": (record.get("lineage") or {}).get("patches") or [],
        "audit": [audit_view(line) for line in audit.read(store) if _is_about(line, row)],
    }


def _tensors(store: Store, record: dict[str, Any]) -> list[View]:
    """Touched entries of each tensor and their share of it, in the order of the file."""
    counts = (record.get("touched") or {}).get("per_tensor") or {}
    sizes = {name: info.num_entries for name, info in ModelFolder.open(store.model_path(0)).tensors.items()}
    return [
        {"name": name, "num_touched": counts[name], "num_entries": size, "fraction": counts[name] / size}
        for name, size in sizes.items()
        if counts.get(name)
    ]


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by dotted name."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _is_about(line: AuditRow, row: VersionRow) -> bool:
    """True for lines about the version, its round or its batch."""
    about = {row.name, row.round, row.batch} - {None}
    return line.subject in about or line.details.get("round") in about
