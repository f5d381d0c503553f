"""Where the values of the metrics come from: the ledger, the loop, the process. Read on a thread of its own."""

from __future__ import annotations

import math
import os
import resource
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final, get_args

from daemon.metrics import Labels, Tally, render
from daemon.views import AXES, find_gates
from policies.handover import Replica, State
from state import durable
from state.errors import StoreError
from state.rows import BatchRow, BatchState, RoundRow, RoundState, VersionRow, VersionState
from state.store import Store

Values = dict[str, list[tuple[Labels, float]]]

_STATM: Final = Path("/proc/self/statm")
_STAT: Final = Path("/proc/self/stat")
_BOOT: Final = Path("/proc/stat")
_WORKERS: Final = ("intake", "round", "verify")
_RECENT_ROUNDS: Final = 20


def text(store: Store, tally: Tally, loop: Callable[[], Values]) -> str:
    """All metrics now; where the ledger cannot be read, those that do not need it.

    Args:
        loop: what the loop knows.
    """
    values: Values = {**tally.samples(), **_process(), **loop()}
    values["alignd_build_info"] = [({"version": _version()}, 1.0)]
    try:
        values |= _ledger(store)
        values["alignd_ledger_readable"] = [({}, 1.0)]
    except (StoreError, OSError):
        values["alignd_ledger_readable"] = [({}, 0.0)]
    return render(values)


def loop_values(
    *,
    jobs: Sequence[str],
    num_problems: int,
    num_findings: int,
    num_waiting: int,
    replicas: Sequence[Replica],
    durations_s: Mapping[str, float],
) -> Values:
    """What the loop knows and the ledger does not."""
    states = Counter(replica.state for replica in replicas)
    by_replica = [({"replica": replica.name}, replica) for replica in replicas]
    return {
        "alignd_worker_running": [({"kind": kind}, float(kind in jobs)) for kind in _WORKERS],
        "alignd_problems": [({}, float(num_problems))],
        "alignd_store_findings": [({}, float(num_findings))],
        "alignd_inbox_waiting": [({}, float(num_waiting))],
        "alignd_round_step_last_duration_seconds": [({"step": name}, s) for name, s in dict(durations_s).items()],
        "alignd_serving_replicas": [({"state": state}, float(states[state])) for state in get_args(State)],
        "alignd_serving_replica_in_sync": [(labels, float(r.state == "in_sync")) for labels, r in by_replica],
        "alignd_serving_replica_version": [
            (labels, -1.0 if r.observed is None else float(r.observed)) for labels, r in by_replica
        ],
        "alignd_serving_replica_failures": [(labels, float(r.num_failures)) for labels, r in by_replica],
    }


def _ledger(store: Store) -> Values:
    ledger, current = store.ledger, store.current()
    batches, rounds = ledger.counts(BatchRow), ledger.counts(RoundRow)
    since = datetime.fromisoformat(ledger.current_pointer().at).timestamp()
    return {
        "alignd_current_version": [({}, float(current.id))],
        "alignd_current_since_timestamp_seconds": [({}, since)],
        "alignd_versions": _by_state(ledger.counts(VersionRow), get_args(VersionState)),
        "alignd_rounds": _by_state(rounds, get_args(RoundState)),
        "alignd_batches": _by_state(batches, get_args(BatchState)),
        "alignd_queue_length": [({}, float(batches.get("queued", 0) + rounds.get("queued", 0)))],
        "alignd_held": [({}, float(store.held is not None))],
        "alignd_paused": [({}, float(store.paused is not None))],
        "alignd_axis_ratio": [
            ({"axis": axis}, value) for axis in AXES if (value := _finite(current.metrics.get(axis))) is not None
        ],
        **_gates(ledger.newest_rounds(_RECENT_ROUNDS)),
        "alignd_disk_free_bytes": [({}, float(durable.free_bytes(store.root)))],
    }


def _by_state(counts: Mapping[str, int], states: Sequence[str]) -> list[tuple[Labels, float]]:
    """Every state, also those that nothing is in: a series that comes and goes cannot be alerted on."""
    return [({"state": state}, float(counts.get(state, 0))) for state in states]


def _gates(rounds: Sequence[RoundRow]) -> Values:
    gates: Sequence[Mapping[str, Any]] = next(filter(None, (find_gates(row.artefacts) for row in rounds)), [])
    measured = [(gate["name"], value) for gate in gates if (value := _finite(gate["value"])) is not None]
    return {
        "alignd_gate_value": [({"gate": name}, value) for name, value in measured],
        "alignd_gate_passed": [({"gate": gate["name"]}, float(gate["verdict"] == "pass")) for gate in gates],
    }


def _finite(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None


def _process() -> Values:
    used = resource.getrusage(resource.RUSAGE_SELF)
    pages = int(_STATM.read_text().split()[1])
    ticks = int(_STAT.read_text().rpartition(")")[2].split()[19])
    boot = next(int(line.split()[1]) for line in _BOOT.read_text().splitlines() if line.startswith("btime"))
    return {
        "process_resident_memory_bytes": [({}, float(pages * resource.getpagesize()))],
        "process_cpu_seconds_total": [({}, used.ru_utime + used.ru_stime)],
        "process_start_time_seconds": [({}, boot + ticks / os.sysconf("SC_CLK_TCK"))],
    }


def _version() -> str:
    try:
        return version("alignd")
    except PackageNotFoundError:
        return "unknown"
