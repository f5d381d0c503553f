"""What is told of a version outside its home: plain values, without paths, names of files, prompts or answers."""

from __future__ import annotations

from importlib import metadata
from typing import Any, Final

from daemon.judges_shown import judge_of, judge_text
from daemon.views import View
from state.digests import Digests
from state.rows import VersionRow
from state.store import Store
from state.tensors import ModelFolder, read_object

_GATE_KEYS: Final = ("name", "class", "verdict", "value", "low", "high", "num_samples")
_BOUND_KEYS: Final = ("max", "min", "max_regression", "max_drift")
_METHOD_KEYS: Final = ("order", "backend", "sparse_fraction")


def gather(store: Store, row: VersionRow, view: View, *, base_name: str) -> View:
    """What card, bill of materials and overlay say of a version.

    Args:
        view: `commands_explain.version_view` of the same version.
        base_name: what strangers call the base.
    """
    record = view["record"]
    base = ModelFolder.open(store.model_path(0))
    config = read_object(base.files["config.json"])
    return {
        "id": row.name,
        "state": row.state,
        "blocked": row.blocked,
        "created": row.created_at,
        "alignd": metadata.version("alignd"),
        "base": {"name": base_name, "files": Digests.of_record(store.version_record(0)).sha256},
        "architecture": _text((config.get("architectures") or [None])[0]),
        "model_type": _text(config.get("model_type")),
        "num_parameters": sum(info.num_entries for info in base.tensors.values()),
        "dtypes": sorted({info.dtype for info in base.tensors.values()}),
        "judge": judge_text(record) or judge_of(view["metrics"]),
        "axes": view["axes"],
        "gates": [
            {key: gate[key] for key in _GATE_KEYS} | {"bounds": _bounds(record, gate["name"])} for gate in view["gates"]
        ],
        "touched": view["touched"],
        "touched_by_layer": view["touched_by_layer"],
        "method": _method(record),
        "seeds": record.get("seeds") or {},
        "lineage": [_ancestor(store, ancestor) for ancestor in store.lineage(row.id)],
    }


def _ancestor(store: Store, row: VersionRow) -> View:
    made_by = store.ledger.round(row.round) if row.round else None
    came = "base" if row.state == "base" else "import" if made_by is None else made_by.kind
    return {
        "id": row.name,
        "came_by": came,
        "batch": row.batch,
        "takes_out": f"v{made_by.target}" if made_by and made_by.target is not None else None,
        "created": row.created_at,
        "touched_fraction": row.touched_fraction,
        "record": row.record,
    }


def _bounds(record: View, gate: str) -> dict[str, float]:
    """What the gate held the figure against, by the names of its settings."""
    settings = ((record.get("config") or {}).get("gates") or {}).get(gate) or {}
    return {key: settings[key] for key in _BOUND_KEYS if settings.get(key) is not None}


def _method(record: View) -> View:
    config = record.get("config") or {}
    derive = config.get("derive") or {}
    return {"preset": config.get("preset"), **{key: derive.get(key) for key in _METHOD_KEYS}}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
